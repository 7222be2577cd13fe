"""Digits: SISA with 1 to 16 shards of 1 and 4 slices, 20 deletions, MLP.

python experiments/sisa.py --config=configs/deletion/sisa_digits.py

Measured on 2 CPU cores, 4 minutes beside other work, 5 seeds, all systems bit-equal to ones trained
from scratch. Test accuracy after the deletions (vote) 0.979, 0.974, 0.965, 0.955, 0.923 for 1, 2,
4, 8, 16 shards of one slice; gradients of one request, of retraining, 1, 0.50, 0.25, 0.124, 0.062.
"""

import ml_collections
from sisa_config import sisa_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = sisa_config("sisa_digits", variant)
    smoke = variant == "smoke"
    config.dataset = "digits(num_train=128, num_test=50)" if smoke else "digits()"
    config.forget = "random(size=4, seed=0)" if smoke else "random(size=20, seed=0)"
    config.model = "mlp(hidden=(16,))" if smoke else "mlp(hidden=(128, 128), activation='gelu')"
    config.epochs = 5 if smoke else 20
    config.batch_size = 16
    config.train_seeds = (0,) if smoke else (0, 1, 2, 3, 4)
    return config
