"""CIFAR-10: a small GELU CNN forgets 1% of its training set.

python experiments/unlearn.py --config=configs/cifar10.py
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
