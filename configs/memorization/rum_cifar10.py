"""CIFAR-10 subset: RUM and its variants on 130 low, 130 medium and 130 highly memorized images.

python experiments/rum.py --config=configs/memorization/rum_cifar10.py

Not measured yet, and the minutes are not known. 4000 images and the small CNN whose
models the exact scores are of; these are in the store where experiments/memorization.py leaves
them.
"""

import ml_collections
from memorization_config import cifar10_scores_config
from rum_config import CIFAR10, CIFAR10_REFINED, with_variants


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = cifar10_scores_config("rum_cifar10", variant)
    config = with_variants(config, variant, CIFAR10, CIFAR10_REFINED, high="random_label")
    config.part_size = 6 if variant == "smoke" else 130
    return config
