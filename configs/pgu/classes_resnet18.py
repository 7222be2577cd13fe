"""Projected-gradient unlearning of five classes of a hundred: a ResNet-18 on CIFAR-100.

python experiments/unlearn.py --config=configs/pgu/classes_resnet18.py

Measured on 2 CPU cores, 61 minutes beside other work, 3 seeds. Accuracy on forget and retain set:
original 0.21, 0.32; retrained 0, 0.36; projected at an energy of 0.9 0.08, 0.31; l1_singular 0.9
0.20, 0.32; not projected 0.003, 0.24; finetune 0, 0.34. Tiny-ImageNet in its folder layout, full
width (not run):

  --config.dataset="image_folder(root='...')" --config.model="resnet18(width=64)"
"""

import ml_collections
from pgu_config import projected, small_vgg_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = small_vgg_config("classes_resnet18", variant)
    smoke = variant == "smoke"
    config.dataset = (
        f"cifar100(num_train={400 if smoke else 10000}, num_test={100 if smoke else 2000})"
    )
    config.model = f"resnet18(width={4 if smoke else 16})"
    config.forget = "random(fraction=1.0, classes=(0, 1, 2, 3, 4))"
    config.epochs = 1 if smoke else 8
    if smoke:
        config.methods = ("projected_gradient(epochs=2)",)
        return config
    until = "forget_level(level=0.01)"
    config.methods = (
        "finetune(learning_rate=0.05, epochs=2)",
        projected("energy(threshold=0.9)", until),
        projected("l1_singular(threshold=0.9)", until),
        projected("energy(threshold=0)", until),
    )
    return config
