"""CIFAR-10 subset: 20 requests and 200 corrupted lines to a small CNN (SISA), killed 20 times.

python experiments/stress_deletions.py --config=configs/deletion/stress_cifar10.py

Measured on 2 CPU cores, 4 minutes: 10 of 20 kills fall into an application; each of the 220 lines
has one fate, each of the 7 deletions is applied once, and the final model has the bits of training
from scratch on what remains. 200 of 200 corrupted lines of 50 kinds are refused for their reason,
25 of 25 damages of 19 kinds end in one line, or in a model that is made again.
"""

import ml_collections
from serving_config import serve_cifar10
from stress_config import stress_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = stress_config("stress_cifar10", variant)
    smoke = variant == "smoke"
    serve_cifar10(config, smoke)
    config.stream = "mixed(requests=20, rate=0.05)"
    # A deletion takes seconds here.
    config.kill_delay = 0.2 if smoke else 5.0
    return config
