"""Projected-gradient unlearning of a class: how many directions to protect, and by which rule.

python experiments/unlearn.py --config=configs/pgu/ablation.py

Not measured yet; some minutes on 2 CPU cores.
"""

import ml_collections
from pgu_config import projected, small_vgg_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = small_vgg_config("ablation", variant)
    config.forget = "class(label=0)"
    if variant == "smoke":
        config.methods = ("projected_gradient(epochs=2, projection='energy(threshold=0.5)')",)
        return config
    rules = [f"energy(threshold={share})" for share in (0, 0.5, 0.8, 0.9, 0.95, 0.98)]
    rules += [f"l1_singular(threshold={share})" for share in (0.6, 0.7, 0.8, 0.9)]
    rules += ["energy(threshold=0.95, importance=10)", "energy(threshold=0.95, bias='moves')"]
    # The same steps for all: what differs is where they may go.
    config.methods = tuple(projected(rule, "fixed_epochs") for rule in rules)
    return config
