"""One ledger of a single model and of a SISA system on digits, 3 requests each, and verified.

python experiments/verify_deletion.py --config=configs/deletion/verify_digits_sisa.py

Measured on 2 CPU cores beside other work, 1438 training images, 14 seconds: all 8 entries hold,
with equal bits, and 28 of 28 requests are shown absent; to train and log takes 8.6 seconds, to
train all again 1.8.
"""

import ml_collections
from verify_config import verify_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = verify_config("verify_digits_sisa", variant)
    config.sisa = "sisa(shards=2, slices=1)" if variant == "smoke" else "sisa(shards=4, slices=4)"
    return config
