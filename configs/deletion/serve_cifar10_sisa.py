"""CIFAR-10 subset: 20 deletions of a SISA system of 4 shards and 4 slices, small CNN.

python experiments/serve_deletions.py --config=configs/deletion/serve_cifar10_sisa.py

Not measured yet, neither the numbers nor the minutes.
"""

import ml_collections
from serving_config import serving_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = serving_config("serve_cifar10_sisa", variant)
    smoke = variant == "smoke"
    sizes = "num_train=128, num_test=50" if smoke else "num_train=4000, num_test=1000"
    config.dataset = f"cifar10({sizes})"
    config.model = f"cnn(channels={(4, 8) if smoke else (16, 32, 32)}, activation='gelu')"
    config.optimizer.learning_rate = 0.06
    config.epochs = 3 if smoke else 10
    config.batch_size = 32
    config.stream = f"uniform(requests={3 if smoke else 20}, rate=0.05)"
    return config
