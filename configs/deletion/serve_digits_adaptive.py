"""Digits: a SISA system is asked, 200 times, to forget the example that it is least sure of.

python experiments/serve_deletions.py --config=configs/deletion/serve_digits_adaptive.py

Every request depends on what the model puts out after the one before. Measured on 2 CPU cores, 1.5
minutes beside other work: 0.19 of the gradients of retraining at each, test accuracy 0.969 at
first and 0.936 at last; the final model has the bits of training from scratch on what remains.
"""

import ml_collections
from serving_config import serving_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = serving_config("serve_digits_adaptive", variant)
    smoke = variant == "smoke"
    config.dataset = "digits(num_train=128, num_test=50)" if smoke else "digits()"
    config.model = "mlp(hidden=(16,))" if smoke else "mlp(hidden=(128, 128), activation='gelu')"
    config.epochs = 3 if smoke else 20
    config.batch_size = 16
    config.aggregation = "mean_probability"  # votes are nearly always equally sure
    config.stream = f"adaptive(requests={4 if smoke else 200}, rate=0.5, choice='least_sure')"
    return config
