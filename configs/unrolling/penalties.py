"""Four penalties on CIFAR-10 at several strengths: accuracy, sigma, verification error (D).

python experiments/penalties.py --config=configs/unrolling/penalties.py

Measured on 2 CPU cores, 4000 training and 3000 test images, 40 forgotten, 3 seeds, 8.7 minutes
(means and 95% intervals; `none` is the distance to the retrained model without unlearning, VE the
verification error, in brackets relative to `none`; steps in seconds of a plain one):

    whole training, 315 steps, eta t sigma 500 without penalty
                           accuracy     sigma  D    none  VE single gradient  VE taylor(1)   step
    none                   0.41 +- 0.02 32     2.66 0.134 0.16 +- 0.05 (1.2)  0.014 (0.11)   1
    SD 0.3                 0.40 +- 0.04 25     2.06 0.097 0.15 +- 0.06 (1.6)  0.007 (0.07)   1.2
    SD 0.8                 0.37 +- 0.03 6      1.0  0.040 0.18 +- 0.09 (5)    0.0012 (0.030) 1.0
    softmax Hessian 2      0.42 +- 0.05 38     3.5  0.202 0.22 +- 0.05 (1.1)  0.07 (0.3)     1.0
    singular value 0.005   0.41 +- 0.01 20     2.63 0.121 0.15 +- 0.06 (1.3)  0.013 (0.11)   3.35
    singular value 0.02    0.40 +- 0.01 9      2.5  0.16  0.18 +- 0.14 (1.2)  1 +- 4 (6)     3.35
    weight decay 0.02      0.40 +- 0.03 33     2.91 0.110 0.14 +- 0.04 (1.3)  0.010 (0.09)   1.0

    fine-tuning, 63 steps, eta t sigma 4.1 without penalty
    none                   0.43 +- 0.02 32   0.07  0.0031 0.0019 (0.6 +- 0.2)  1.7e-5 (0.006)
    SD 0.3                 0.42 +- 0.03 23   0.06  0.0023 0.0014 (0.6 +- 0.3)  1.1e-5 (0.005)
    SD 0.8                 0.37 +- 0.02 6    0.022 0.0009 0.0003 (0.4 +- 0.3)  3.6e-6 (0.004)
    softmax Hessian 2      0.44 +- 0.02 32   0.10  0.0043 0.0027 (0.6 +- 0.2)  2.9e-5 (0.007)
    singular value 0.005   0.42 +- 0.01 13   0.076 0.0029 0.0015 (0.5 +- 0.1)  1.9e-4 (0.066)
    singular value 0.02    0.41 +- 0.02 6.5  0.069 0.0027 0.0018 (0.7 +- 0.4)  2.9e-4 (0.11)
    weight decay 0.02      0.42 +- 0.01 33   0.07  0.0028 0.0018 (0.7 +- 0.3)  1.6e-5 (0.006)

At equal accuracy, 0.021 less than without penalty (the softmax Hessian and weight decay never cost
as much on fine-tuning and stand at their strongest; geometric means of the ratios to no penalty,
seed by seed, with 95% intervals), fine-tuning: SD takes the error of the single gradient to 0.67
[0.63, 0.71], but the distance without unlearning to 0.69 [0.63, 0.76] as well, so that the relative
error stays (0.94 [0.83, 1.1]); Taylor's falls to 0.58 [0.41, 0.83]. The singular-value penalty
takes sigma to 0.24 [0.19, 0.31], at more than three times the cost of a step, and the error only to
0.90 [0.37, 2.2]; weight decay to 0.97 [0.90, 1.0], the softmax Hessian to 1.4 [0.98, 2.1], at an
accuracy that is 0.014 lower and 0.004 higher. Over the whole training the single gradient is worse
than doing nothing under each penalty, and SD does not lower its error (0.99 [0.82, 1.2]), only
Taylor's (0.37 [0.28, 0.49]). So the paper's claim for SD holds for fine-tuning in absolute terms
alone: what shrinks is how far the forgotten examples moved the model. Less sigma by itself buys
little, and the stronger singular-value penalty ruins Taylor's series (37 times [0.47, 2900], seeds
of 7 to 238).
"""

import ml_collections
from default_config import default_config

STRENGTHS = {
    "sd_gamma": (0.1, 0.3, 0.8),
    "hessian_gamma": (0.6, 2.0),
    "singular_gamma": (0.005, 0.02),
    "l2": (0.005, 0.02),
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("unrolling/penalties", variant)
    smoke = variant == "smoke"
    size = "num_train=128, num_test=50" if smoke else "num_train=4000, num_test=3000"
    config.dataset = f"cifar10({size})"
    config.shadow_dataset = ""
    config.model = f"cnn(channels={(4, 8) if smoke else (8, 16, 16)}, activation='gelu')"
    config.epochs = 1 if smoke else 5
    config.fine_tuning_epochs = 1
    config.fine_tuning_rate = 0.002
    config.fine_tuning_batch_size = config.batch_size
    config.curvature_examples = 32 if smoke else 512
    config.curvature_chunk = 32 if smoke else 128
    config.proxies = False
    config.keep_runs = False
    config.methods = ("single_gradient", "taylor(order=1)")
    penalties = [
        ((f"objective.{field}", strength),)
        for field, strengths in STRENGTHS.items()
        for strength in (strengths[-1:] if smoke else strengths)
    ]
    config.variants = ((), *penalties)
    config.axes = ()
    for field in ("method_seeds", "independents", "record_every"):
        del config[field]
    return config
