"""CIFAR-10 subset: RUM^F with random labels and parts by each of ten proxies, small CNN.

python experiments/rum.py --config=configs/memorization/rum_proxies_cifar10.py

Forget set, network and method are those of rum_cifar10.py. Measured on 2 CPU cores, 12 minutes
beside other work, 3 seeds. ToW: vanilla 0.92, random cut 0.93, parts by any proxy 0.93 to 0.96; RUM
(nothing, random_label, random_label) 0.92, with a ToW-MIA of 0.95.
"""

import ml_collections
from memorization_config import cifar10_scores_config
from rum_config import CIFAR10, with_all_proxies


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = cifar10_scores_config("rum_proxies_cifar10", variant)
    config = with_all_proxies(config, variant, CIFAR10, 63)
    config.part_size = 6 if variant == "smoke" else 130
    return config
