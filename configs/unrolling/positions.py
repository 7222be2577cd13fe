"""Positions of the forgotten batch, and checkpoints (Unrolling SGD, C).

python experiments/proxies.py --config=configs/unrolling/positions.py

Measured on 2 CPU cores, the nets and images of `proxies.py` on CIFAR-10, gamma 0, 40 steps, a
snapshot every 5, 20 runs (5 positions, 2 seeds), 4.5 minutes. The means below are over n = 2 seeds,
with half-widths of 0.5 to 7. Pretraining uses all images, the forgotten batch included: the
"retrained" model leaves it out of the fine-tuning only.

Error over the no-unlearning distance at t = 40 for positions 0, 10, 20, 30, 39: single gradient at
w_0 1.8, 1.9, 2.2, 1.4, 0.7 (VGG) and 1.2, 1.2, 1.8, 1.2, 0.9 (ResNet); gradient at the last
snapshot 1.8, 1.6, 1.0, 0.6, 0.2 and 1.2, 0.9, 0.8, 0.4, 0.15. Late batches are unlearned well if
the gradient is taken late. `paper`, `eta1` and their accumulated forms do not know the position:
across positions they tell the two seeds apart and no more; `leading`, which does, takes the
gradient at w_0 and says 0 at position 39, where VE is 0.7 to 0.9 of the distance.
"""

import ml_collections
from default_config import default_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("unrolling/positions", variant)
    smoke = variant == "smoke"
    config.forget = "a batch"
    config.model = "mlp(hidden=(16,))"
    config.batch_size = 32
    config.optimizer.learning_rate = 0.01
    config.steps = 4 if smoke else 40
    config.record_every = 2 if smoke else 5
    config.sigma_every = 2
    config.curvature_examples = 16 if smoke else 128
    config.pretrain = ml_collections.ConfigDict(
        dict(epochs=1 if smoke else 4, batch_size=64, learning_rate=0.1, schedule="constant")
    )
    # Which batch, numbered in the order that the seed makes, and where it stands in each epoch.
    config.forget_batch = ml_collections.config_dict.placeholder(int)
    config.position = 0
    config.train_seeds = (0,) if smoke else (0, 1)
    if smoke:
        config.dataset = "digits(num_train=128, num_test=50)"
        config.variants = ((),)
        config.axes = (("position", (0, 2)),)
        return config
    config.variants = tuple(
        (("model", f"{net}, activation='gelu')"),)
        for net in ("vgg_small(width=0.25", "resnet18(width=4")
    )
    config.axes = (
        ("dataset", ("cifar10(num_train=1600, num_test=1000)",)),
        ("position", (0, 10, 20, 30, 39)),
    )
    return config
