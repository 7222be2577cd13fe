"""Projected-gradient unlearning of a class: how many directions to protect, and by which rule.

python experiments/unlearn.py --config=configs/pgu/ablation.py

Measured on 2 CPU cores, 8 minutes beside other work, the models of class_removal.py from the store,
3 seeds, 30 epochs for all. Accuracy on forget and retain set: nothing protected 0, 0.39; energy 0.5
0, 0.68; 0.8 0.0004, 0.73; 0.9 0.011, 0.790; 0.95 0.024, 0.78; 0.98 0.41, 0.78; l1_singular 0.6
0.007, 0.69; 0.7 0.026, 0.70; 0.8 0.18, 0.78; 0.9 0.64, 0.796; energy 0.95 with importance 10 0,
0.711; with moving biases 0.023, 0.78. Retrained: 0, 0.824.
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
