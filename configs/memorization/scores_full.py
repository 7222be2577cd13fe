"""CIFAR-10 at the size of the papers: exact memorization scores from 400 ResNet-18.

python experiments/memorization.py --config=configs/memorization/scores_full.py

Written for a GPU and a data folder with all of the data. Not run here: neither numbers nor minutes
are known. The other two pairs of the papers are the same command with

  --config.dataset="cifar100()" --config.model="resnet50"
  --config.dataset="image_folder(root='...')" --config.model="vgg16"
"""

import ml_collections
from memorization_config import full_scores_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = full_scores_config("scores_full", variant)
    config.pairs = 8
    return config
