"""Digits (embedded, 1797 images of 8x8): a GELU MLP forgets 1% of its training set.

python experiments/unlearn.py --config=configs/digits.py

Measured on 2 CPU cores, 1438 training and 359 test images, 3 seeds, 13 seconds:
relative verification error 0.064 +- 0.010 (order 1), 0.006 +- 0.004 (order 2), 0.0007 +- 0.0006
(order 3), 2.30 +- 0.09 (single gradient), 0 exactly (replay); test accuracy 0.93.
"""

import ml_collections
from default_config import default_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("digits", variant)
    if variant == "smoke":
        config.dataset = "digits(num_train=200, num_test=100)"
        config.model = "mlp(hidden=(128, 128), activation='gelu')"
        return config
    config.dataset = "digits()"
    config.model = "mlp(hidden=(128, 128), activation='gelu')"
    config.epochs = 10
    config.batch_size = 32
    config.record_every = 45
    config.methods = (*config.methods, "taylor(order=3)")
    return config
