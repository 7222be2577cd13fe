"""CIFAR-10 subset: forget sets of 266 images by memorization and by entanglement, four methods.

python experiments/difficulty.py --config=configs/memorization/difficulty_cifar10.py

Not measured yet, and the minutes are not known. 4000 images, which make 15 groups of this
size, and the small CNN whose models the exact scores are of; these are in the store where
experiments/memorization.py leaves them.
"""

import ml_collections
from memorization_config import cifar10_scores_config
from rum_config import CIFAR10, with_levels


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = with_levels(cifar10_scores_config("difficulty_cifar10", variant), variant, CIFAR10)
    config.part_size = 12 if variant == "smoke" else 266
    return config
