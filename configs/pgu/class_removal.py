"""Projected-gradient unlearning of a whole class: a small VGG on CIFAR-10 forgets the airplanes.

python experiments/unlearn.py --config=configs/pgu/class_removal.py

Measured on 2 CPU cores, 17 minutes beside other work, 3 seeds. Accuracy on forget and retain set:
original 0.82, 0.79; retrained 0, 0.824; projected at an energy of 0.8 0.036, 0.791, at 0.95 0.036,
0.78; l1_singular 0.8 0.035, 0.76; the same ascent without projection 0, 0.4 at a rate of 0.2 and
0.005, 0.75 at 0.02; finetune 0.040, 0.82; random_label 0, 0.79; neggrad_plus 0, 0.74.
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
        "finetune(learning_rate=0.05, epochs=2)",
        projected("energy(threshold=0.95)", until),
        projected("energy(threshold=0.8)", until),
        projected("l1_singular(threshold=0.8)", until, rate=1.0, last=0.2),
        projected("energy(threshold=0)", until),
        projected("energy(threshold=0)", until, rate=0.02, last=0.02),
        # What projection buys other methods: each without and with it, the same steps.
        "gradient_ascent(epochs=1, batch_size=32, learning_rate=0.0005)",
        "gradient_ascent(epochs=1, batch_size=32, learning_rate=0.0005, "
        "projection='energy(threshold=0.8)')",
        "gradient_ascent(epochs=1, batch_size=32, learning_rate=0.005)",
        "gradient_ascent(epochs=1, batch_size=32, learning_rate=0.005, "
        "projection='energy(threshold=0.8)')",
        "random_label(learning_rate=0.05, epochs=1)",
        "random_label(learning_rate=0.05, epochs=1, projection='energy(threshold=0.8)')",
        "neggrad_plus(alpha=0.95, learning_rate=0.05, epochs=1)",
        "neggrad_plus(alpha=0.95, learning_rate=0.05, epochs=1, "
        "projection='energy(threshold=0.8)')",
        "salun(learning_rate=0.05, epochs=1)",
        "salun(learning_rate=0.05, epochs=1, projection='energy(threshold=0.8)')",
    )
    return config
