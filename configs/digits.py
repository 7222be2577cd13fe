"""Digits (embedded, 1797 images of 8x8): a GELU MLP forgets 1% of its training set.

python experiments/unlearn.py --config=configs/digits.py
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
