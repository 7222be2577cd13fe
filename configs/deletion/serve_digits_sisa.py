"""Digits: 500 mixed requests to a SISA system of 4 shards and 4 slices, deletions at once.

python experiments/serve_deletions.py --config=configs/deletion/serve_digits_sisa.py

Not measured yet, neither the numbers nor the minutes.
"""

import ml_collections
from serving_config import serving_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = serving_config("serve_digits_sisa", variant)
    smoke = variant == "smoke"
    config.dataset = "digits(num_train=128, num_test=50)" if smoke else "digits()"
    config.model = "mlp(hidden=(16,))" if smoke else "mlp(hidden=(128, 128), activation='gelu')"
    config.epochs = 3 if smoke else 20
    config.batch_size = 16
    return config
