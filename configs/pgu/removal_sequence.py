"""Four deletions of 100 random samples, one after the other, by a small VGG on CIFAR-10.

python experiments/removal_sequence.py --config=configs/pgu/removal_sequence.py

Not measured yet; some minutes on 2 CPU cores.
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
