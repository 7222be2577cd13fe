"""Digits: 12 candidates for each of 8 methods and of 3 as RUM^F, judged by tug of war, MLP.

python experiments/tuning.py --config=configs/memorization/tuning_digits.py

Data, model and training are RUM's on digits, and so is the development forget set: 30 low, 30
medium and 30 highly memorized examples of those that RUM's results are not about. Training seeds
are others than the results', and candidates are judged on the half of the test set that no result
is of. Measured on 2 CPU cores, 1.5 minutes where the exact scores are in the store, 132 candidates
on 3 seeds. Best mean ToW: do nothing 0.77, retrain_vs_retrain 0.96; l1_sparse 0.9, salun 0.87,
neggrad_plus, random_label and influence 0.86, gradient_ascent 0.83, finetune and scrub 0.77;
as RUM^F salun 0.91, random_label 0.90, neggrad_plus 0.8.
"""

import ml_collections
from memorization_config import digits_scores_config
from tuning_config import with_sweep


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = with_sweep(digits_scores_config("tuning_digits", variant), variant)
    config.part_size = 6 if variant == "smoke" else 30
    return config
