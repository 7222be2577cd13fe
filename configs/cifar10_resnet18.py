"""CIFAR-10: one epoch of ResNet-18 (GroupNorm, GELU, width 16) forgets 1% of its data.

python experiments/unlearn.py --config=configs/cifar10_resnet18.py

Measured on 2 CPU cores, the subset of 15000 training and 3000 test images, 2 seeds, 8 minutes:
relative verification error 0.33 and 0.10 (order 1), 1.8 +- 0.2 (single gradient), 0 exactly
(replay); test accuracy 0.21 after this one slow epoch. At a learning rate of 0.05 the network
learns (0.36) and the series diverges (1000); docs/results.md has the rates between.
"""

import ml_collections
from default_config import default_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("cifar10_resnet18", variant)
    if variant == "smoke":
        config.dataset = "cifar10(num_train=128, num_test=50)"
        config.model = "resnet18(width=4, activation='gelu')"
        return config
    config.dataset = "cifar10()"
    config.model = "resnet18(width=16, activation='gelu')"
    config.optimizer.learning_rate = 0.005
    config.epochs = 1
    config.record_every = 50
    config.methods = ("replay", "single_gradient", "taylor(order=1)")
    config.train_seeds = (0, 1)
    config.independents = 2
    return config
