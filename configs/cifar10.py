"""CIFAR-10: a small GELU CNN forgets 1% of its training set.

python experiments/unlearn.py --config=configs/cifar10.py

Measured on 2 CPU cores, the subset of 15000 training and 3000 test images, 3 seeds, 7 minutes:
relative verification error 0.10 +- 0.05 (order 1, 2.3 times the seconds of retraining) and
0.02 +- 0.05 (order 2, 4.7 times), 1.7 +- 1.1 (single gradient), 0 exactly (replay); test accuracy
0.56.
"""

import ml_collections
from default_config import default_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("cifar10", variant)
    if variant == "smoke":
        config.dataset = "cifar10(num_train=256, num_test=100)"
        config.model = "cnn(channels=(4, 8), activation='gelu')"
        return config
    config.dataset = "cifar10()"
    config.model = "cnn(channels=(16, 32, 32), activation='gelu')"
    config.record_every = 235
    return config
