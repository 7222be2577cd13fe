"""CIFAR-10 at the size of the papers: RUM and its variants on 3 times 1000 images, ResNet-18.

python experiments/rum.py --config=configs/memorization/rum_full.py

Written for a GPU and a data folder with all of the data. Not run here: neither numbers nor minutes
are known. The other two pairs of the papers are the same command with

  --config.dataset="cifar100()" --config.model="resnet50"
  --config.dataset="image_folder(root='...')" --config.model="vgg16"
"""

import ml_collections
from memorization_config import full_scores_config
from rum_config import untuned, with_variants


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = with_variants(full_scores_config("rum_full", variant), variant, untuned(256, 5))
    config.part_size = 6 if variant == "smoke" else 1000
    return config
