"""CIFAR-100: a small GELU CNN forgets 1% of its training set.

python experiments/unlearn.py --config=configs/cifar100.py

Measured on 2 CPU cores, the subset of 10000 training and 2000 test images, 3 seeds, 6 minutes:
relative verification error 0.149 +- 0.015 (order 1) and 0.046 +- 0.013 (order 2), 1.2 +- 0.6
(single gradient), 0 exactly (replay); test accuracy 0.21, forget accuracy 0.42 before and 0.19
after retraining.
"""

import ml_collections
from default_config import default_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("cifar100", variant)
    if variant == "smoke":
        config.dataset = "cifar100(num_train=256, num_test=100)"
        config.model = "cnn(channels=(4, 8), activation='gelu')"
        return config
    config.dataset = "cifar100()"
    config.model = "cnn(channels=(16, 32, 64), activation='gelu')"
    return config
