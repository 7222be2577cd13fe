"""Privacy risk score of the forget set against verification error on CIFAR-10 (F).

python experiments/penalties.py --config=configs/unrolling/privacy.py

Measured on 2 CPU cores, 3000 training images and as many for the shadow model, 60 forgotten, 3
seeds, 3.9 minutes (means and 95% intervals; `gap`: mean score of the forget set less that under the
retrained model; VE: verification error; `none`: that of doing nothing), whole training:

                       accuracy        gap original   none  single gradient        taylor(order=1)
                                                            gap        VE          gap       VE
    none               0.455 +- 0.014  0.105 +- 0.011 0.79  0.0 +- 0.2    1.1 +- 0.5  .03 +- .04 .26
    SD 0.2             0.456 +- 0.011  0.09 +- 0.10   0.65  -0.1 +- 0.3   1.1 +- 0.7  .01 +- .04 .14
    SD 0.6             0.451 +- 0.019  0.05 +- 0.03   0.43  -0.1 +- 0.3   1.2 +- 1.2  .01 +- .02 .06
    weight decay 0.005 0.453 +- 0.014  0.08 +- 0.06   0.68  -0.03 +- 0.14 1.0 +- 0.4  .02 +- .01 .20
    weight decay 0.02  0.45 +- 0.02    0.02 +- 0.06   0.444 -0.02 +- 0.06 0.7 +- 0.3  .00 +- .03 .18

|gap| against VE over penalties and seeds (n = 15 for each model), Pearson and Spearman: 0.77 and
0.77 for all models together (n = 45, three for each run, hence no interval); single gradient 0.76
[0.41, 0.92] and 0.88 [0.62, 0.97], where the distance of doing nothing has 0.07 and 0.24;
taylor(order=1) 0.52 [0.01, 0.82] and 0.53 [-0.01, 0.83], where the distance of doing nothing alone
has 0.70 and 0.80; the distance travelled has -0.07 and 0.01 for all models. On fine-tuning nothing
is left to see: gaps of at most 0.025, most of them exactly 0 since no forgotten example changes its
bin (Pearson 0.26 for all models together), while VE differs by a factor of a hundred.
"""

import ml_collections
from default_config import default_config

STRENGTHS = {"sd_gamma": (0.2, 0.6), "l2": (0.005, 0.02)}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("unrolling/privacy", variant)
    smoke = variant == "smoke"
    size, tested = (256, 200) if smoke else (3000, 1000)

    def part(number: int) -> str:
        train = f"train[{number * size}:{(number + 1) * size}]"
        test = f"test[{number * tested}:{(number + 1) * tested}]"
        return f"cifar10(train_split='{train}', test_split='{test}')"

    config.dataset, config.shadow_dataset = part(0), part(1)
    config.forget = "random(fraction=0.02, seed=0)"
    config.model = f"cnn(channels={(4, 8) if smoke else (8, 16, 16)}, activation='gelu')"
    config.epochs = 1 if smoke else 12
    config.optimizer.learning_rate = 0.1
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
