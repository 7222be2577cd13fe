"""Digits: 1,000 requests and 200 corrupted lines to a single model that is killed 20 times.

python experiments/stress_deletions.py --config=configs/deletion/stress_digits_single.py

Measured on 2 CPU cores, 4 minutes beside other work: 19 of 20 kills fall into an application; each
of the 1,200 lines has one fate, each of the 410 deletions is applied once, and the final model has
the bits of training from scratch on what remains. 200 of 200 corrupted lines of 50 kinds are
refused for their reason, 25 of 25 damages of 19 kinds end in one line, or in a model that is made
again.
"""

import ml_collections
from serving_config import serve_digits
from stress_config import stress_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = stress_config("stress_digits_single", variant)
    smoke = variant == "smoke"
    serve_digits(config, smoke, epochs=10, batch_size=32)
    config.service = "single"
    # Approximate by one gradient, until more than 16 examples are so; then exact.
    config.policy = f"budgeted(method='single_gradient', threshold={4 if smoke else 16})"
    config.stream = f"mixed(requests={20 if smoke else 1000}, rate=0.5)"
    return config
