"""Fashion-MNIST: a small GELU CNN forgets 1% of its training set.

python experiments/unlearn.py --config=configs/fashion_mnist.py

Measured on 2 CPU cores, the subset of 10000 training and 2000 test images, 3 seeds, 3.5 minutes:
relative verification error 0.16 +- 0.16 (order 1) and 0.1 +- 0.3 (order 2), 3.9 +- 1.9 (single
gradient), 0 exactly (replay); test accuracy 0.82.
"""

import ml_collections
from default_config import default_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("fashion_mnist", variant)
    if variant == "smoke":
        config.dataset = "fashion_mnist(num_train=256, num_test=100)"
        config.model = "cnn(channels=(4, 8), activation='gelu')"
        return config
    config.dataset = "fashion_mnist()"
    config.model = "cnn(channels=(16, 32, 32), activation='gelu')"
    config.optimizer.learning_rate = 0.02
    return config
