"""Digits: cheap proxies of memorization against exact scores from 400 MLPs.

python experiments/score_proxies.py --config=configs/memorization/proxies_digits.py

Measured on 2 CPU cores, half a minute where the exact scores are in the store, where
experiments/memorization.py leaves them, 3 seeds. Spearman from 0.43 (binary accuracy) to 0.57
(forgetting events), ceiling 0.91; precision at the top 5% from 0.47 (holdout retraining) to 0.77
(confidence).
"""

import ml_collections
from memorization_config import digits_scores_config, with_proxies


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = with_proxies(digits_scores_config("proxies_digits", variant), variant)
    config.augmentations = (False,)
    return config
