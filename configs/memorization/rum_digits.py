"""Digits: RUM and its variants on 30 low, 30 medium and 30 highly memorized examples, MLP.

python experiments/rum.py --config=configs/memorization/rum_digits.py

Measured on 2 CPU cores, 40 seconds where the exact scores are in the store, which is where
experiments/memorization.py leaves them, 10 seeds. ToW: do nothing 0.783, retrain_vs_retrain 0.958;
neggrad_plus vanilla 0.83, shuffle 0.89, RUM^F 0.64; random_label 0.862, 0.86, 0.88 (by confidence
0.943); salun 0.89, 0.84, 0.83; RUM by hand 0.881, selected 0.92;
RUM^F with a tuning of its own: neggrad_plus 0.87, random_label 0.85.
"""

import ml_collections
from memorization_config import digits_scores_config
from rum_config import DIGITS, DIGITS_REFINED, with_variants


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = digits_scores_config("rum_digits", variant)
    config = with_variants(config, variant, DIGITS, DIGITS_REFINED)
    config.part_size = 6 if variant == "smoke" else 30
    if variant != "smoke":
        # A training takes a second here, and three of them leave wide intervals.
        config.train_seeds = tuple(range(10))
        config.development_seeds = (100, 101, 102, 103)
    return config
