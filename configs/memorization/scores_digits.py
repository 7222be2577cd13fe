"""Digits: exact memorization scores from 400 MLPs, each on 70% of the training set.

python experiments/memorization.py --config=configs/memorization/scores_digits.py

Not measured yet. It is expected to take less than a minute on 2 CPU cores.
"""

import ml_collections
from memorization_config import digits_scores_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = digits_scores_config("scores_digits", variant)
    config.pairs = 8
    return config
