"""CIFAR-10 subset: cheap proxies of memorization, with and without augmentation, small CNN.

python experiments/score_proxies.py --config=configs/memorization/proxies_cifar10.py

Not measured yet. It is expected to take about 10 minutes on 2 CPU cores where the exact scores are
in the store, where experiments/memorization.py leaves them. These are of models trained without
augmentation for both kinds of originals.
"""

import ml_collections
from memorization_config import cifar10_scores_config, with_proxies


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = with_proxies(cifar10_scores_config("proxies_cifar10", variant), variant)
    config.augmentations = (False, True)
    return config
