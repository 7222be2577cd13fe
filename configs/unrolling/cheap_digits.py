"""Cheap unrolling on digits: sampled batches, L-BFGS and constant curvature on the scoreboard.

python experiments/unlearn.py --config=configs/unrolling/cheap_digits.py

Measured on 2 CPU cores, 1438 training and 359 test images, 5 seeds, 90 seconds: relative
verification error at a cost in gradients of 0.20 of retraining 0.22 +- 0.04 (sampled, 6 of 32
examples), at 0.13 0.32 +- 0.04 (4 of 32), at 0.51 0.076 +- 0.013 (16 of 32); deltagrad 0.30 +- 0.05
at 0.52 and 0.55 +- 0.05 at 0.23; segments 0.50 +- 0.02 at 4.8. In seconds none is cheaper than
retraining, which takes 0.1.
"""

import ml_collections
from default_config import default_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("unrolling/cheap_digits", variant)
    smoke = variant == "smoke"
    config.dataset = "digits(num_train=200, num_test=100)" if smoke else "digits()"
    config.model = "mlp(hidden=(128, 128), activation='gelu')"
    config.batch_size = 32
    config.methods = (
        "taylor(order=1)",
        "amnesiac(only='forget')",
        "sampled(examples=4)",
        "sampled(examples=6)",
        "sampled(examples=16)",
        "deltagrad(period=2)",
        "deltagrad(period=5)",
        "segments(count=10, examples=64, rank=2)",
        "segments(count=20, examples=128, rank=10)",
    )
    if smoke:
        config.methods = ("sampled(examples=4)", "deltagrad()", "segments(count=4, examples=16)")
        return config
    config.epochs = 10
    config.record_every = 45
    config.train_seeds = (0, 1, 2, 3, 4)
    return config
