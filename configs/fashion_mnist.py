"""Fashion-MNIST: a small GELU CNN forgets 1% of its training set.

python experiments/unlearn.py --config=configs/fashion_mnist.py
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = ml_collections.ConfigDict()
    config.experiment = "fashion_mnist"
    config.dataset = "fashion_mnist()"
    config.corruption = "none"
    config.forget = "random(fraction=0.01, seed=0)"
    config.model = "cnn(channels=(16, 32, 32), activation='gelu')"
    config.objective = ml_collections.ConfigDict(
        dict(loss="cross_entropy", sd_gamma=0.0, sd_norm="population", l2=0.0)
    )
    config.optimizer = ml_collections.ConfigDict(
        dict(name="sgd", learning_rate=0.05, momentum=0.0, schedule="constant")
    )
    config.denominator = "batch"
    config.augment = False
    config.epochs = 6
    config.batch_size = 64
    config.partial = "pad"
    config.record_every = 157
    config.methods = (
        "replay",
        "single_gradient",
        "gradient_ascent",
        "finetune",
        "taylor(order=1)",
        "taylor(order=2)",
    )
    config.train_seeds = (0, 1, 2)
    config.method_seeds = (0,)
    config.independents = 3
    if variant == "smoke":
        config.dataset = "fashion_mnist(num_train=256, num_test=100)"
        config.model = "cnn(channels=(4, 8), activation='gelu')"
        config.epochs = 1
        config.batch_size = 32
        config.record_every = 4
        config.train_seeds = (0, 1)
        config.independents = 2
        config.methods = ("replay", "taylor(order=1)")
    elif variant:
        raise ValueError(
            f"unknown variant {variant!r}; use configs/fashion_mnist.py or fashion_mnist.py:smoke"
        )
    return config
