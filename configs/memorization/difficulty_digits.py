"""Digits: forget sets of 100 examples by memorization and by entanglement, three methods, MLP.

python experiments/difficulty.py --config=configs/memorization/difficulty_digits.py

Not measured yet. It is expected to take a few minutes on 2 CPU cores where the exact scores are in
the store, which is where experiments/memorization.py leaves them.
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
