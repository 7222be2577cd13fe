"""CIFAR-10 subset: 20 requests and 200 corrupted lines to a small CNN (SISA), killed 20 times.

python experiments/stress_deletions.py --config=configs/deletion/stress_cifar10.py

Not measured yet, neither the numbers nor the minutes.
"""

import ml_collections
from stress_config import stress_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = stress_config("stress_cifar10", variant)
    smoke = variant == "smoke"
    sizes = "num_train=128, num_test=50" if smoke else "num_train=4000, num_test=1000"
    config.dataset = f"cifar10({sizes})"
    config.model = f"cnn(channels={(4, 8) if smoke else (16, 32, 32)}, activation='gelu')"
    config.optimizer.learning_rate = 0.06
    config.epochs = 3 if smoke else 10
    config.batch_size = 32
    config.stream = "mixed(requests=20, rate=0.05)"
    # A deletion takes seconds here.
    config.kill_delay = 0.2 if smoke else 5.0
    return config
