"""CIFAR-10 at the size of the papers: proxies of memorization, with and without augmentation.

python experiments/score_proxies.py --config=configs/memorization/proxies_full.py

Written for a GPU and a data folder with all of the data. Not run here: neither numbers nor minutes
are known. The other two pairs of the papers are the same command with

  --config.dataset="cifar100()" --config.model="resnet50"
  --config.dataset="image_folder(root='...')" --config.model="vgg16"
"""

import ml_collections
from memorization_config import full_scores_config, with_proxies


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = with_proxies(full_scores_config("proxies_full", variant), variant)
    config.augmentations = (False,) if variant == "smoke" else (False, True)
    return config
