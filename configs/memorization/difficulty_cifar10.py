"""CIFAR-10 subset: forget sets of 266 images by memorization and by entanglement, four methods.

python experiments/difficulty.py --config=configs/memorization/difficulty_cifar10.py

4000 images, which make 15 groups of this size, and the small CNN whose models the exact scores are
of; these are in the store where experiments/memorization.py leaves them. Measured on 2 CPU cores,
13 minutes beside other work. ToW of low, medium and high memorization: do nothing 0.979, 0.54,
0.02; neggrad_plus 0.985, 0.7, 0.35; finetune 0.97, 0.57, 0.16; random_label 0.65, 0.82, 0.77; salun
0.65, 0.85, 0.611; of low, medium and high entanglement: do nothing 0.55, 0.50, 0.54; random_label
0.92, 0.82, 0.95.
"""

import ml_collections
from memorization_config import cifar10_scores_config
from rum_config import CIFAR10, with_levels


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = with_levels(cifar10_scores_config("difficulty_cifar10", variant), variant, CIFAR10)
    config.part_size = 12 if variant == "smoke" else 266
    return config
