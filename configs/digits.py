"""Digits (embedded, 1797 images of 8x8): a GELU MLP forgets 1% of its training set.

python experiments/unlearn.py --config=configs/digits.py
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = ml_collections.ConfigDict()
    config.experiment = "digits"
    config.dataset = "digits()"
    config.corruption = "none"
    config.forget = "random(fraction=0.01, seed=0)"
    config.model = "mlp(hidden=(128, 128), activation='gelu')"
    config.objective = ml_collections.ConfigDict(
        dict(loss="cross_entropy", sd_gamma=0.0, sd_norm="population", l2=0.0)
    )
    config.optimizer = ml_collections.ConfigDict(
        dict(name="sgd", learning_rate=0.05, momentum=0.0, schedule="constant")
    )
    config.denominator = "batch"
    config.augment = False
    config.epochs = 10
    config.batch_size = 32
    config.partial = "pad"
    config.record_every = 45
    config.methods = (
        "replay",
        "single_gradient",
        "gradient_ascent",
        "finetune",
        "taylor(order=1)",
        "taylor(order=2)",
        "taylor(order=3)",
    )
    config.train_seeds = (0, 1, 2)
    config.method_seeds = (0,)
    config.independents = 3
    if variant == "smoke":
        config.dataset = "digits(num_train=200, num_test=100)"
        config.epochs = 2
        config.train_seeds = (0, 1)
        config.independents = 2
        config.methods = ("replay", "single_gradient", "finetune", "taylor(order=1)")
    elif variant:
        raise ValueError(f"unknown variant {variant!r}; use configs/digits.py or digits.py:smoke")
    return config
