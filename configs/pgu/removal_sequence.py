"""Four deletions of 100 random samples, one after the other, by a small VGG on CIFAR-10.

python experiments/removal_sequence.py --config=configs/pgu/removal_sequence.py

Measured on 2 CPU cores, 8 minutes beside other work (15 with the trainings), 3 seeds. After four
deletions, accuracy on all that was forgotten and on what is retained: retrained 0.63, 0.80;
l1_singular 0.8 subtracted 0.578, 0.78, recomputed 0.58, 0.78; energy 0.95 0.72, 0.76; not projected
0.52, 0.52.
"""

import ml_collections
from pgu_config import projected, small_vgg_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = small_vgg_config("removal_sequence", variant)
    if variant == "smoke":
        config.forget = "random(size=20)"
        config.deletions = 2
        config.sequences = (("subtract", "subtract", "projected_gradient(epochs=2)"),)
        config.methods = ()
        return config
    config.forget = "random(size=400)"
    config.deletions = 4
    until = "forget_level(level=0.6)"
    strict = projected("l1_singular(threshold=0.8)", until, rate=1.0, last=0.2)
    config.sequences = (
        ("l1_singular, subtracted", "subtract", strict),
        ("l1_singular, recomputed", "recompute", strict),
        ("energy, subtracted", "subtract", projected("energy(threshold=0.95)", until)),
        ("not projected", "subtract", projected("energy(threshold=0)", until, 0.02, 0.02)),
    )
    config.methods = ()
    return config
