"""CIFAR-10 subset: 12 candidates for each of 8 methods and of 3 as RUM^F, small CNN.

python experiments/tuning.py --config=configs/memorization/tuning_cifar10.py

Data, model and training are RUM's on this subset, and so is the development forget set: 130 low,
130 medium and 130 highly memorized images of those that RUM's results are not about. Training seeds
are others than the results', and candidates are judged on the half of the test set that no result
is of. Measured on 2 CPU cores, 22 minutes beside other work where the exact scores are in the
store, 132 candidates on 3 seeds. Best mean ToW: do nothing 0.503, retrain_vs_retrain 0.97;
random_label 0.89, neggrad_plus 0.80, influence 0.76, salun 0.72, l1_sparse 0.65, finetune and
gradient_ascent 0.56, scrub 0.51 (9 of its 12 diverge); as RUM^F salun 0.80, random_label 0.73,
neggrad_plus 0.70. The winners are the defaults of the methods.
"""

import ml_collections
from memorization_config import cifar10_scores_config
from tuning_config import with_sweep


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = with_sweep(cifar10_scores_config("tuning_cifar10", variant), variant)
    config.part_size = 6 if variant == "smoke" else 130
    return config
