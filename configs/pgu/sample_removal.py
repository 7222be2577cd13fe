"""Projected-gradient unlearning of 500 random samples by a small VGG on CIFAR-10.

python experiments/unlearn.py --config=configs/pgu/sample_removal.py

Not measured yet; some minutes on 2 CPU cores.
"""

import ml_collections
from pgu_config import projected, small_vgg_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = small_vgg_config("sample_removal", variant)
    if variant == "smoke":
        config.forget = "random(size=20)"
        config.methods = ("projected_gradient(epochs=2)",)
        return config
    config.forget = "random(size=500)"
    # What the original reaches on images that it has not seen; known before the request.
    until = "forget_level(level=0.64)"
    config.methods = (
        "finetune(epochs=2)",
        "gradient_ascent(learning_rate=0.002, epochs=2)",
        "neggrad_plus",
        projected("l1_singular(threshold=0.8)", until, rate=1.0, last=0.2),
        projected("energy(threshold=0.95)", until, rate=1.0, last=0.2),
        projected("energy(threshold=0.8)", until),
        projected("energy(threshold=0)", until, rate=0.02, last=0.02),
    )
    return config
