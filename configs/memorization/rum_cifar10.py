"""CIFAR-10 subset: RUM and its variants on 130 low, 130 medium and 130 highly memorized images.

python experiments/rum.py --config=configs/memorization/rum_cifar10.py

4000 images and the small CNN whose models the exact scores are of; these are in the store where
experiments/memorization.py leaves them. Measured on 2 CPU cores, 10 minutes, 3 seeds. ToW: do
nothing 0.50, retrain_vs_retrain 0.95; neggrad_plus vanilla 0.81, shuffle and RUM^F 0.3, tuned for
RUM^F 0.71; random_label 0.92, 0.93, 0.93 (by confidence 0.94), tuned 0.73; RUM by hand 0.81,
selected 0.93. salun diverges on one of the three seeds.
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
