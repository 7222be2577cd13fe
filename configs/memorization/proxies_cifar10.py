"""CIFAR-10 subset: cheap proxies of memorization, with and without augmentation, small CNN.

python experiments/score_proxies.py --config=configs/memorization/proxies_cifar10.py

Measured on 2 CPU cores, 7 minutes beside other work where the exact scores are in the store, where
experiments/memorization.py leaves them; these are of models trained without augmentation for both
kinds of originals. Spearman without augmentation: confidence 0.80, el2n 0.77, binary_accuracy 0.76,
max_confidence and self_influence 0.70, entropy 0.68, grand 0.665, loss_curvature 0.58,
holdout_retraining 0.34, forgetting_events 0.24. With it: between 0.04 and 0.29 less, for
forgetting_events 0.17 more.
"""

import ml_collections
from memorization_config import cifar10_scores_config, with_proxies


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = with_proxies(cifar10_scores_config("proxies_cifar10", variant), variant)
    config.augmentations = (False, True)
    return config
