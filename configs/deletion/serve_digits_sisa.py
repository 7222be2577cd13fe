"""Digits: 500 mixed requests to a SISA system of 4 shards and 4 slices, deletions at once.

python experiments/serve_deletions.py --config=configs/deletion/serve_digits_sisa.py

Not measured yet, neither the numbers nor the minutes.
"""

import ml_collections
from serving_config import serve_digits, serving_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = serving_config("serve_digits_sisa", variant)
    serve_digits(config, smoke=variant == "smoke")
    return config
