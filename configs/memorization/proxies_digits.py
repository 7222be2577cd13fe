"""Digits: cheap proxies of memorization against exact scores from 400 MLPs.

python experiments/score_proxies.py --config=configs/memorization/proxies_digits.py

Not measured yet. It is expected to take about a minute on 2 CPU cores where the exact scores are in
the store, where experiments/memorization.py leaves them.
"""

import ml_collections
from memorization_config import digits_scores_config, with_proxies


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = with_proxies(digits_scores_config("proxies_digits", variant), variant)
    config.augmentations = (False,)
    return config
