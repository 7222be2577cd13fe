"""Experiment A of Unrolling SGD at the paper's size: 5 epochs of 50,000 images in batches of 32.

python experiments/proxies.py --config=configs/unrolling/proxies_full.py

Written for a GPU and a data folder with all of CIFAR. Not run here: neither numbers nor minutes are
known. GroupNorm and GELU stand where the paper has batch normalisation and ReLU, for a gradient
must be a function of one example. Three seeds and two forgotten batches instead of one.
Pretraining uses the forgotten batch too: the "retrained" model leaves it out of the fine-tuning
only. `proxies.py` is the small version, with measured numbers.
"""

import ml_collections
from default_config import default_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("unrolling/proxies_full", variant)
    smoke = variant == "smoke"
    config.forget = "a batch"
    config.model = "mlp(hidden=(16,))"
    config.batch_size = 32
    config.optimizer.learning_rate = 0.01
    config.objective.sd_norm = "reference"
    config.steps = 8 if smoke else 7810
    config.record_every = 2 if smoke else 200
    config.sigma_every = 2
    config.curvature_examples = 16 if smoke else 1024
    config.pretrain = ml_collections.ConfigDict(
        dict(epochs=1 if smoke else 20, batch_size=128, learning_rate=0.1, schedule="constant")
    )
    # Which batch, numbered in the order that the seed makes, and where it stands in each epoch.
    config.forget_batch = 0
    config.position = 0
    config.train_seeds = (0,) if smoke else (0, 1, 2)
    if smoke:
        config.dataset = "digits(num_train=128, num_test=50)"
        config.variants = ((),)
        config.axes = (("objective.sd_gamma", (0.0, 1.0)),)
        return config
    config.variants = tuple(
        (("model", f"{net}(activation='gelu')"), ("dataset", data), ("objective.sd_gamma", gamma))
        for net in ("resnet18", "vgg19")
        for data, gammas in (
            ("cifar10()", (0.0, 0.1, 1.0, 5.0, 10.0, 15.0, 20.0, 25.0)),
            ("cifar100()", (0.0, 50.0, 100.0, 150.0, 200.0, 250.0)),
        )
        for gamma in gammas
    )
    config.axes = (("forget_batch", (0, 1)),)
    return config
