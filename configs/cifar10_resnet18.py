"""CIFAR-10: one epoch of ResNet-18 (GroupNorm, GELU, width 16) forgets 1% of its training set.

python experiments/unlearn.py --config=configs/cifar10_resnet18.py
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = ml_collections.ConfigDict()
    config.experiment = "cifar10_resnet18"
    config.dataset = "cifar10()"
    config.corruption = "none"
    config.forget = "random(fraction=0.01, seed=0)"
    config.model = "resnet18(width=16, activation='gelu')"
    config.objective = ml_collections.ConfigDict(
        dict(loss="cross_entropy", sd_gamma=0.0, sd_norm="population", l2=0.0)
    )
    config.optimizer = ml_collections.ConfigDict(
        dict(name="sgd", learning_rate=0.05, momentum=0.0, schedule="constant")
    )
    config.denominator = "batch"
    config.augment = False
    config.epochs = 1
    config.batch_size = 64
    config.partial = "pad"
    config.record_every = 50
    config.methods = (
        "replay",
        "single_gradient",
        "taylor(order=1)",
    )
    config.train_seeds = (0, 1)
    config.method_seeds = (0,)
    config.independents = 2
    if variant == "smoke":
        config.dataset = "cifar10(num_train=128, num_test=50)"
        config.model = "resnet18(width=4, activation='gelu')"
        config.epochs = 1
        config.batch_size = 32
        config.record_every = 4
        config.train_seeds = (0, 1)
        config.independents = 2
        config.methods = ("replay", "taylor(order=1)")
    elif variant:
        raise ValueError(
            f"unknown variant {variant!r}; use cifar10_resnet18.py or cifar10_resnet18.py:smoke"
        )
    return config
