"""Digits: RUM^F with random labels and parts by each of ten proxies, MLP.

python experiments/rum.py --config=configs/memorization/rum_proxies_digits.py

Forget set, network and method are those of rum_digits.py. Not measured yet.
"""

import ml_collections
from memorization_config import digits_scores_config
from rum_config import DIGITS, with_all_proxies


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = digits_scores_config("rum_proxies_digits", variant)
    config = with_all_proxies(config, variant, DIGITS, 45)
    config.part_size = 6 if variant == "smoke" else 30
    if variant != "smoke":
        config.train_seeds = tuple(range(10))
    return config
