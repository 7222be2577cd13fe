"""Unlearning errors over a whole training run from random weights (Unrolling SGD, B).

python experiments/proxies.py --config=configs/unrolling/proxies_training.py

Unlike the reference, with the verification error.

Measured on 2 CPU cores, the nets and images of `proxies.py` on CIFAR-10, learning rate 0.05, 150
steps, 8 runs (gamma 0 and 1, 2 seeds), 3 minutes.

At the end eta t sigma is 176 to 263, and single-gradient unlearning no better than doing nothing:
error over the no-unlearning distance 2.1, 2.9 (VGG, gamma 0, 1) and 1.02, 1.11 (ResNet); it is
above 1 at 96% of the recorded steps. Within a run Pearson is 0.95 and 0.98 for `paper`, 0.96 and
0.99 for the step count alone. Four runs of a net settle nothing across runs: `paper` has -0.27 and
-0.46, with intervals that end above 0.9. Test accuracy 0.17 to 0.26.
"""

import ml_collections
from default_config import default_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("unrolling/proxies_training", variant)
    smoke = variant == "smoke"
    config.forget = "a batch"
    config.model = "mlp(hidden=(16,))"
    config.batch_size = 32
    config.optimizer.learning_rate = 0.05
    config.steps = 8 if smoke else 150
    config.record_every = 2 if smoke else 10
    config.sigma_every = 3
    config.curvature_examples = 16 if smoke else 128
    config.pretrain = ml_collections.ConfigDict(
        dict(epochs=0, batch_size=64, learning_rate=0.1, schedule="constant")
    )
    # Which batch, numbered in the order that the seed makes, and where it stands in each epoch.
    config.forget_batch = 0
    config.position = 0
    config.train_seeds = (0,) if smoke else (0, 1)
    if smoke:
        config.dataset = "digits(num_train=128, num_test=50)"
        config.variants = ((),)
        config.axes = (("objective.sd_gamma", (0.0, 1.0)),)
        return config
    config.variants = tuple(
        (("model", f"{net}, activation='gelu')"),)
        for net in ("vgg_small(width=0.25", "resnet18(width=4")
    )
    config.axes = (
        ("dataset", ("cifar10(num_train=1600, num_test=1000)",)),
        ("objective.sd_gamma", (0.0, 1.0)),
    )
    return config
