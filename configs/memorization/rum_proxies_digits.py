"""Digits: RUM^F with random labels and parts by each of ten proxies, MLP.

python experiments/rum.py --config=configs/memorization/rum_proxies_digits.py

Forget set, network and method are those of rum_digits.py. Measured on 2 CPU cores, 1 minute, 10
seeds. ToW: vanilla 0.862, five random cuts (shuffle_seed 0 to 4) 0.86, 0.913, 0.91, 0.85 and 0.82;
parts by forgetting_events 0.95, confidence 0.943, holdout_retraining 0.94, binary_accuracy 0.936,
el2n and max_confidence 0.90, loss_curvature 0.892, exact and grand 0.88, entropy 0.855,
self_influence 0.85.
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
