"""CIFAR-10 at the size of the papers: 12 candidates for each of 8 methods and of 3 as RUM^F.

python experiments/tuning.py --config=configs/memorization/tuning_full.py

Written for a GPU and a data folder with all of the data. Not run here: neither numbers nor minutes
are known. The other two pairs of the papers are the same command with

  --config.dataset="cifar100()" --config.model="resnet50"
  --config.dataset="image_folder(root='...')" --config.model="vgg16"
"""

import ml_collections
from memorization_config import full_scores_config
from tuning_config import with_sweep


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = with_sweep(full_scores_config("tuning_full", variant), variant)
    config.part_size = 6 if variant == "smoke" else 1000
    return config
