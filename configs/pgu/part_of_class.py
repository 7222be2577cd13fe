"""Projected-gradient unlearning of a tenth of one class: an All-CNN on CIFAR-10.

python experiments/unlearn.py --config=configs/pgu/part_of_class.py

Measured on 2 CPU cores, 32 minutes beside other work, 3 seeds. Accuracy on forget and retain set
and ToW: original 0.850, 0.73, 0.83; retrained 0.70, 0.73, 1; independent retrain 0.73, 0.74, 0.92;
projected at an energy of 0.95 0.69, 0.73, 0.955; l1_singular 0.9 0.82, 0.73, 0.86; not projected
0, 0.17, 0.07; gradient_ascent 0.63, 0.71, 0.90; finetune 0.74, 0.73, 0.92.
"""

import ml_collections
from pgu_config import projected, small_vgg_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = small_vgg_config("part_of_class", variant)
    smoke = variant == "smoke"
    config.model = f"allcnn(width={0.0625 if smoke else 0.25})"
    config.forget = f"class(label=0, fraction={0.5 if smoke else 0.1})"
    if smoke:
        config.methods = ("projected_gradient(epochs=2)",)
        return config
    # What the original reaches on test images of that class; known before the request.
    until = "forget_level(level=0.6)"
    config.methods = (
        "finetune(learning_rate=0.05, epochs=2)",
        "gradient_ascent(batch_size=32, learning_rate=0.002, epochs=2)",
        projected("energy(threshold=0.95)", until),
        projected("l1_singular(threshold=0.9)", until),
        projected("energy(threshold=0)", until),
    )
    return config
