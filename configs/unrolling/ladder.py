"""The Taylor ladder on digits: orders 0 to 4 over recipes, epochs and deletion fractions.

python experiments/ladder.py --config=configs/unrolling/ladder.py

Measured on 2 CPU cores, 120 cells of 3 seeds each, 5.4 minutes. Relative verification error of
orders 1 to 4, 10 epochs, 14 of 1438 forgotten: GELU 0.064, 0.006, 0.0007, 0.0002; tanh 0.063,
0.005, 0.0004, 0.0002; SiLU 0.053, 0.004, 0.0005, 0.0002; ReLU 0.7 at every order; momentum 0.061,
0.006, 0.0007, 0.0002; Adam (eps_root 1e-4) 0.14, 0.027, 0.009, 0.005. GELU, 30 epochs, 288
forgotten: 0.23, 0.083, 0.038, 0.015. Order 4 of Adam is more than 1.2 times order 3 in 19 of 60
runs. The estimate from the next term is within a factor of 2 of the true error in 1071 of 1197
rungs (89%) whose true error is below 0.5, ReLU excluded: 300 of 300, 290 of 300, 249 of 300, 232 of
297 at orders 1 to 4, for Adam 60, 56 and 30 of 60 and 29 of 57; 786 of the 906 (87%) whose estimate
is not mostly the rounding floor. 124 misses are too high, 2 too low.
"""

import ml_collections
from default_config import default_config

ACTIVATIONS = ("gelu", "tanh", "silu", "relu")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("unrolling/ladder", variant)
    smoke = variant == "smoke"
    config.dataset = "digits(num_train=200, num_test=100)" if smoke else "digits()"
    config.batch_size = 32
    config.order = 2 if smoke else 4
    recipes = [(("model", f"mlp(hidden=(128, 128), activation='{name}')"),) for name in ACTIVATIONS]
    smooth = recipes[0]
    momentum = (*smooth, ("optimizer.momentum", 0.9), ("optimizer.learning_rate", 0.005))
    adam = (
        *smooth,
        ("optimizer.name", "adam"),
        ("optimizer.learning_rate", 0.001),
        ("optimizer.eps_root", 1e-4),
    )
    config.variants = (smooth, momentum) if smoke else (*recipes, momentum, adam)
    forgets = ("random(size=1)", *(f"random(fraction={f})" for f in (0.01, 0.05, 0.1, 0.2)))
    config.axes = (
        ("epochs", (1, 2) if smoke else (1, 3, 10, 30)),
        ("forget", forgets[:2] if smoke else forgets),
    )
    return config
