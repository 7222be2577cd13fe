"""Digits: SISA of 4 and 16 shards on the scoreboard beside approximate unlearning, 1% forgotten.

python experiments/unlearn.py --config=configs/deletion/sisa_row_digits.py

Measured on 2 CPU cores beside other work, 1438 training and 359 test images, 3 seeds, 65 seconds.
14 ids at once; SISA of 4 and 16 shards of 4 slices: relative verification error 0 exactly, against
itself trained from scratch, for 0.8 +- 0.4 and 0.4 +- 0.2 of the gradients of retraining, at a test
accuracy of 0.940 +- 0.004 and 0.884 +- 0.014; retraining has 0.964 +- 0.007. Prepared by 1.00 and
1.01 trainings, with 1.59 and 6.38 MiB kept. Taylor to order 1 and 2: 0.18 +- 0.05 and 0.05 +- 0.03
for 3 and 6; finetune 1.20 +- 0.16 for 0.05.
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
    # Longer than configs/digits.py: a constituent of 16 shards takes a sixteenth of the steps.
    config.epochs = 20
    config.batch_size = 16
    config.record_every = 90
    config.methods = (
        "finetune(learning_rate=0.05, epochs=1)",
        "taylor(order=1)",
        "taylor(order=2)",
        "sisa(shards=4, slices=4)",
        "sisa(shards=16, slices=4)",
    )
    return config
