"""Unlearning errors against the verification error along fine-tuning (Unrolling SGD, A).

python experiments/proxies.py --config=configs/unrolling/proxies.py

Measured on 2 CPU cores, VGG (width 0.25) and ResNet-18 (width 4) with GroupNorm, 1600 images, 100
steps, 48 runs (3 gammas, 2 seeds, 2 forgotten batches), 13 minutes. Sigma on the first 128 images.

Within a run every quantity correlates with the verification error: Pearson 0.88 to 0.98, `paper`
0.91, 0.97, 0.91, 0.96 (VGG CIFAR-10, CIFAR-100, ResNet CIFAR-10, CIFAR-100), and the step count
alone 0.93, 0.98, 0.93, 0.97. Across runs at t = 100: `paper` and `eta1` 0.53, 0.17, 0.37, 0.81, eta
t sigma 0.55, 0.19, -0.11, 0.78, `gradnorm` 0.97, 0.46, 0.86, 0.89, and the norm of the forgotten
gradient alone 0.99, 0.55, 0.98, 0.95: that norm, not the curvature, tells runs apart at this t.
`paper` grows like VE to the power 2.1 to 2.3 along a run; `eta1` is 36 to 120 times VE.

Verification error over the no-unlearning distance at t = 100, gamma 0, 0.3, 1: 2.3, 2.4, 4.9 (VGG
CIFAR-10), 0.8, 1.1, 2.2 (VGG CIFAR-100), 1.8, 1.8, 2.2 (ResNet CIFAR-10), 0.9, 1.0, 1.1 (ResNet
CIFAR-100). Gamma 1 changes VE by -14, +12, -32 and -34% (in the order above), with intervals as
wide, but the no-unlearning distance by -59, -60, -46 and -45%: in this unit the penalty makes it
worse. Rows above 1 by eta t sigma: 5 of 32 below 2, 32 of 98 from 2 to 5, 29 of 62 to 8, 49 of 78
to 12, 85 of 116 to 20, 64 of 94 above.
Test accuracy is 0.18 to 0.30 on CIFAR-10 and 0.013 to 0.020 on CIFAR-100, where these few images
teach next to nothing.

Pretraining uses all of these images, the forgotten batch included: the "retrained" model leaves it
out of the fine-tuning only. The 12 runs of a net and data set share two seeds, so intervals across
runs are too narrow: at t = 100 `paper` has 0.53 [-0.07, 0.85], 0.17 [-0.45, 0.68], 0.37 [-0.26,
0.78], 0.81 [0.44, 0.94]. At t = 60 the gradient's norm is not the best for VGG CIFAR-100: 0.28
[-0.35, 0.74] against 0.70 [0.22, 0.91] of `gradnorm`.
"""

import ml_collections
from default_config import default_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("unrolling/proxies", variant)
    smoke = variant == "smoke"
    config.forget = "a batch"
    config.model = "mlp(hidden=(16,))"
    config.batch_size = 32
    config.optimizer.learning_rate = 0.01
    config.steps = 8 if smoke else 100
    config.record_every = 2 if smoke else 10
    config.sigma_every = 3
    config.curvature_examples = 16 if smoke else 128
    config.pretrain = ml_collections.ConfigDict(
        dict(epochs=1 if smoke else 4, batch_size=64, learning_rate=0.1, schedule="constant")
    )
    # Which batch, numbered in the order that the seed makes, and where it stands in each epoch.
    config.forget_batch = 0
    config.position = 0
    config.train_seeds = (0,) if smoke else (0, 1)
    if smoke:
        config.dataset = "digits(num_train=128, num_test=50)"
        config.variants = ((),)
        config.axes = (("objective.sd_gamma", (0.0, 1.0)), ("forget_batch", (0, 1)))
        return config
    config.variants = tuple(
        (("model", f"{net}, activation='gelu')"),)
        for net in ("vgg_small(width=0.25", "resnet18(width=4")
    )
    config.axes = (
        (
            "dataset",
            tuple(f"{name}(num_train=1600, num_test=1000)" for name in ("cifar10", "cifar100")),
        ),
        ("objective.sd_gamma", (0.0, 0.3, 1.0)),
        ("forget_batch", (0, 1)),
    )
    return config
