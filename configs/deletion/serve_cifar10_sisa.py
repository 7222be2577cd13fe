"""CIFAR-10 subset: 20 deletions of a SISA system of 4 shards and 4 slices, small CNN.

python experiments/serve_deletions.py --config=configs/deletion/serve_cifar10_sisa.py

Measured on 2 CPU cores, 2 minutes beside other work: 0.18 of the gradients of retraining at each,
2.0 seconds per deletion, test accuracy 0.479 at first and 0.474 at last; the final model has the
bits of training from scratch on what remains.
"""

import ml_collections
from serving_config import serve_cifar10, serving_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = serving_config("serve_cifar10_sisa", variant)
    smoke = variant == "smoke"
    serve_cifar10(config, smoke)
    config.stream = f"uniform(requests={3 if smoke else 20}, rate=0.05)"
    return config
