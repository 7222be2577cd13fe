"""Projected-gradient unlearning of a whole class: a small VGG on CIFAR-10 forgets the airplanes.

python experiments/unlearn.py --config=configs/pgu/class_removal.py

Not measured yet; some minutes on 2 CPU cores.
"""

import ml_collections
from pgu_config import projected, small_vgg_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = small_vgg_config("class_removal", variant)
    config.forget = "class(label=0)"
    until = "forget_level(level=0.04)"
    if variant == "smoke":
        config.methods = (
            "projected_gradient(epochs=2)",
            "gradient_ascent(projection='energy(threshold=0.9)')",
        )
        return config
    config.methods = (
        "finetune(epochs=2)",
        projected("energy(threshold=0.95)", until),
        projected("energy(threshold=0.8)", until),
        projected("l1_singular(threshold=0.8)", until, rate=1.0, last=0.2),
        projected("energy(threshold=0)", until),
        projected("energy(threshold=0)", until, rate=0.02, last=0.02),
        # What projection buys other methods: each without and with it, the same steps.
        "gradient_ascent(learning_rate=0.0005)",
        "gradient_ascent(learning_rate=0.0005, projection='energy(threshold=0.8)')",
        "gradient_ascent(learning_rate=0.005)",
        "gradient_ascent(learning_rate=0.005, projection='energy(threshold=0.8)')",
        "random_label",
        "random_label(projection='energy(threshold=0.8)')",
        "neggrad_plus",
        "neggrad_plus(projection='energy(threshold=0.8)')",
        "salun",
        "salun(projection='energy(threshold=0.8)')",
    )
    return config
