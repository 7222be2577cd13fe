"""Online tangents on CIFAR-10: 8 cohorts of 1%, deleted one, two, four and eight at a time.

python experiments/cohorts.py --config=configs/unrolling/cohorts_cifar10.py

Measured on 2 CPU cores, the subset of 15000 training and 3000 test images, 3 seeds, 14 minutes:
relative verification error of order 1 0.12 +- 0.06 for one cohort, 0.15 +- 0.07 for two, 0.20 +-
0.08 for four and 0.27 +- 0.08 for eight, where an independent retrain is at 16 +- 3; test accuracy
0.56. A deletion takes 0.2 ms, a training 11 seconds. Registering a cohort costs 2.3 +- 0.7
trainings (2.1 counted in gradients) and keeps one state, of 139 kB.
"""

import ml_collections
from default_config import default_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("unrolling/cohorts_cifar10", variant)
    smoke = variant == "smoke"
    config.dataset = "cifar10(num_train=256, num_test=100)" if smoke else "cifar10()"
    channels = (4, 8) if smoke else (16, 32, 32)
    config.model = f"cnn(channels={channels}, activation='gelu')"
    config.cohorts = f"random(count={3 if smoke else 8}, fraction=0.01, seed=0)"
    # The cross terms of 8 cohorts would take more than a hundred trainings.
    config.orders = (1, 2) if smoke else (1,)
    config.union_sizes = (1, 2) if smoke else (1, 2, 4, 8)
    config.group_size = ml_collections.config_dict.placeholder(int)
    for field in ("forget", "methods", "method_seeds", "independents", "record_every"):
        del config[field]
    return config
