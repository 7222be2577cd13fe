"""Digits: what the work of a deletion tells about what was deleted, plainly and with constant work.

python experiments/side_channels.py --config=configs/deletion/side_channels_digits.py

Measured on 2 CPU cores, about 330 seconds beside other work, 3 seeds (means and 95% intervals),
4 shards of 4 slices, constant work with a bound of 2 examples. A request for one example:

                     plain          constant work   single model
    gradients        2690           7424            14380
    seconds          0.24 +- 0.08   0.61 +- 0.15    0.08 +- 0.03

Bits that gradients tell, counted exactly over all requests, plain: the slice 2 of 2, whether two
examples are of one shard 0.81 of 0.81, whether the example was there 1 of 1, two examples or one
0.87 of 1; with constant work and for the single model 0 of all. Accuracy of guesses from seconds:

                       chance   plain         constant work   plain,        constant work,
                                                              batched       batched
    slice              0.25     0.5 +- 0.5    0.22 +- 0.06    0.53 +- 0.16  0.26 +- 0.12
    different shards   0.5      0.83 +- 0.18  0.5 +- 0.6      0.77 +- 0.18  0.6 +- 0.3
    it was there       0.75     1             0.67 +- 0.12    1             0.64 +- 0.09
    two, not one       0.6      0.64 +- 0.07  0.51 +- 0.14    0.72 +- 0.06  0.5 +- 0.2

What constant work does not hide is the exact size on disk, since noise and states compress
differently: batched, it tells 1.1 +- 0.5 of the 2 bits of the slice (0.4 +- 0.2 would be nothing)
and 0.31 +- 0.05 of the 0.81 bits of whether the example was there (0.14 +- 0.05).
"""

import ml_collections
from default_config import default_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("deletion/side_channels_digits", variant)
    smoke = variant == "smoke"
    config.dataset = "digits(num_train=128, num_test=50)" if smoke else "digits()"
    config.model = "mlp(hidden=(16,))" if smoke else "mlp(hidden=(64,), activation='gelu')"
    config.optimizer.momentum = 0.9
    config.epochs = 3 if smoke else 10
    config.batch_size = 16
    config.shards, config.slices = (2, 2) if smoke else (4, 4)
    # Requests for one example, in turn from each slice; for two; and for one that is not there.
    config.requests, config.pairs, config.absent = (4, 4, 2) if smoke else (24, 16, 8)
    config.train_seeds = (0,) if smoke else (0, 1, 2)
    for field in ("methods", "independents", "method_seeds", "record_every"):
        del config[field]
    return config
