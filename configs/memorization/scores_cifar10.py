"""CIFAR-10 subset: exact memorization scores of 4000 images from 240 small CNNs.

python experiments/memorization.py --config=configs/memorization/scores_cifar10.py

Not measured yet. It is expected to take about 30 minutes on 2 CPU cores.
"""

import ml_collections
from memorization_config import cifar10_scores_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = cifar10_scores_config("scores_cifar10", variant)
    config.pairs = 8
    return config
