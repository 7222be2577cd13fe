"""CIFAR-10 subset: 12 candidates for each of 8 methods and of 3 as RUM^F, small CNN.

python experiments/tuning.py --config=configs/memorization/tuning_cifar10.py

Data, model and training are RUM's on this subset, and so is the development forget set: 130 low,
130 medium and 130 highly memorized images of those that RUM's results are not about. Training seeds
are others than the results', and candidates are judged on the half of the test set that no result
is of. Not measured yet. 132 candidates on 3 seeds; about 20 minutes are expected on 2 CPU cores
where the exact scores are in the store.
"""

import ml_collections
from memorization_config import cifar10_scores_config
from tuning_config import with_sweep


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = with_sweep(cifar10_scores_config("tuning_cifar10", variant), variant)
    config.part_size = 6 if variant == "smoke" else 130
    return config
