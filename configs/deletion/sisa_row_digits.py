"""Digits: SISA of 4 and 16 shards on the scoreboard beside approximate unlearning, 1% forgotten.

python experiments/unlearn.py --config=configs/deletion/sisa_row_digits.py

Not measured yet; seconds.
"""

import ml_collections
from default_config import default_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("deletion/sisa_row_digits", variant)
    config.model = "mlp(hidden=(128, 128), activation='gelu')"
    if variant == "smoke":
        config.dataset = "digits(num_train=200, num_test=100)"
        config.methods = ("taylor(order=1)", "sisa(shards=2, slices=1)")
        return config
    config.dataset = "digits()"
    config.epochs = 10
    config.batch_size = 32
    config.record_every = 45
    config.methods = (
        "finetune",
        "taylor(order=1)",
        "taylor(order=2)",
        "sisa(shards=4, slices=4)",
        "sisa(shards=16, slices=4)",
    )
    return config
