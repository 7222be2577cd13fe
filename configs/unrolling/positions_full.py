"""Experiment C of Unrolling SGD at the paper's size: 50 epochs, then one epoch with checkpoints.

python experiments/proxies.py --config=configs/unrolling/positions_full.py

Written for a GPU and a data folder with all of CIFAR. Not run here: neither numbers nor minutes are
known. Momentum and weight decay, which the theory leaves out, are left out here too.
Pretraining uses the forgotten batch too: the "retrained" model leaves it out of the fine-tuning
only. `positions.py` is the small version, with measured numbers.
"""

import ml_collections
from default_config import default_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("unrolling/positions_full", variant)
    smoke = variant == "smoke"
    config.forget = "a batch"
    config.model = "mlp(hidden=(16,))"
    config.batch_size = 32
    config.optimizer.learning_rate = 0.01
    config.objective.sd_norm = "reference"
    config.steps = 4 if smoke else 1562
    config.record_every = 2 if smoke else 71
    config.sigma_every = 2
    config.curvature_examples = 16 if smoke else 1024
    config.pretrain = ml_collections.ConfigDict(
        dict(epochs=1 if smoke else 50, batch_size=128, learning_rate=0.1, schedule="constant")
    )
    # Which batch, numbered in the order that the seed makes, and where it stands in each epoch.
    config.forget_batch = ml_collections.config_dict.placeholder(int)
    config.position = 0
    config.train_seeds = (0,) if smoke else (0, 1, 2)
    if smoke:
        config.dataset = "digits(num_train=128, num_test=50)"
        config.variants = ((),)
        config.axes = (("position", (0, 2)),)
        return config
    config.variants = tuple(
        (("model", f"{net}(activation='gelu')"), ("dataset", "cifar10()"))
        for net in ("resnet18", "vgg19")
    )
    config.axes = (
        ("objective.sd_gamma", (0.0, 1.0)),
        ("position", (0, 114, 400, 800, 1200, 1561)),
    )
    return config
