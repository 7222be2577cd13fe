"""Digits: forget sets of 100 examples by memorization and by entanglement, four methods, MLP.

python experiments/difficulty.py --config=configs/memorization/difficulty_digits.py

Measured on 2 CPU cores, 1.5 minutes beside other work, with the exact scores in the store, where
experiments/memorization.py leaves them, 10 seeds. ToW of doing nothing at low, medium and high
memorization 0.998, 0.979, 0.566, at low, medium and high entanglement 0.69, 0.987, 0.995.
"""

import ml_collections
from memorization_config import digits_scores_config
from rum_config import DIGITS, with_levels


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = with_levels(digits_scores_config("difficulty_digits", variant), variant, DIGITS)
    config.part_size = 12 if variant == "smoke" else 100
    if variant != "smoke":
        config.train_seeds = tuple(range(10))
    return config
