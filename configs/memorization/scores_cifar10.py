"""CIFAR-10 subset: exact memorization scores of 4000 images from 240 small CNNs.

python experiments/memorization.py --config=configs/memorization/scores_cifar10.py

Measured on 2 CPU cores in parts beside other work, the last 160 models in 10 minutes. The models
are right on 0.986 of their own images, 0.501 of the others and 0.510 of the test set; mean score
0.484 (accuracy), 0.494 of the images above 0.5, mean standard error 0.041.
"""

import ml_collections
from memorization_config import cifar10_scores_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = cifar10_scores_config("scores_cifar10", variant)
    config.pairs = 8
    return config
