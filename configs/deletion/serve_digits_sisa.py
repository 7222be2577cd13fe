"""Digits: 500 mixed requests to a SISA system of 4 shards and 4 slices, deletions at once.

python experiments/serve_deletions.py --config=configs/deletion/serve_digits_sisa.py

Measured on 2 CPU cores, 3 minutes beside other work: 446 examples deleted by 224 requests, 0.33 of
the gradients of retraining at each, 0.064 seconds per deletion, test accuracy 0.969 at first and
0.961 at last; the final model has the bits of training from scratch on what remains. With
`--config.policy="batches(size=8)"` 0.12 of the gradients, and a mean wait of 16 seconds.
"""

import ml_collections
from serving_config import serve_digits, serving_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = serving_config("serve_digits_sisa", variant)
    serve_digits(config, smoke=variant == "smoke")
    return config
