"""Weight decay against SD on IMDB: a linear head on hashed features, and a bag of embeddings (E).

python experiments/penalties.py --config=configs/unrolling/imdb_penalties.py

Measured on 2 CPU cores, 5000 training and 2000 test reviews, 50 forgotten, 3 seeds, 2.4 minutes
(means and 95% intervals; VE relative to doing nothing in brackets):

                      whole training (2355 steps)                       fine-tuning (157 steps)
                      accuracy     sigma  D     single gradient  taylor(order=1)  taylor(order=1)
    linear, none      0.76 +- 0.03 0.38   25.1  1.87 (1.55)      0.097 (0.080)    1.2e-5 (0.006)
      SD 0.3          0.76 +- 0.01 0.46   16.9  2.4 (2.6)        0.27 (0.29)      4e-4 (0.21)
      SD 0.6          0.74 +- 0.01 0.52   10.7  4 (4)            0.72 (0.78)      8e-4 (0.4)
      decay 0.001     0.75 +- 0.06 0.48   11.9  0.66 (1.22)      0.028 (0.052)    1.0e-5 (0.004)
    text, none        0.78 +- 0.05 1.07   26.3  1.54 (1.53)      0.076 (0.075)    2.1e-5 (0.006)
      SD 0.3          0.76 +- 0.07 0.87   16.7  1.3 (1.6)        0.42 (0.54)      4e-4 (0.2)
      SD 0.6          0.71 +- 0.10 0.62   11.4  3 (2)            0.9 (0.82)       9e-4 (0.6)
      decay 0.001     0.75 +- 0.02 0.79   91.5  0.64 (1.3)       0.013 (0.026)    1.3e-5 (0.006)

Over the whole training weight decay that has a gradient (the reference's has none) takes the error
of the single gradient to 0.35 [0.35, 0.36] (linear) and 0.41 [0.40, 0.43] (text) of that without
penalty, geometric means at the strongest, which costs 0.01 +- 0.03 and 0.03 +- 0.03 of accuracy; it
is still 1.2 to 1.3 times doing nothing. SD has no clear effect: 1.9 [0.65, 5.7] (linear, at the
strongest, which costs 0.02 +- 0.03) and 1.3 [0.46, 3.9] (text, at equal accuracy); for text lower
at 0.1 and 0.3 (0.59 to 0.93 in each seed), mostly higher at 0.6. On fine-tuning neither is told
from noise: decay 1.9 [0.80, 4.4] and 0.69 [0.22, 2.1]. For two classes SD is |z_1 - z_2| / 2, with
a kink at the decision boundary that no derivative sees: D falls, Taylor's error rises 7.5 and 9.6
times (that the kink is the cause is not tested). A single gradient over the whole training stays
worse than doing nothing in the mean under each penalty. On fine-tuning its error scatters over
seeds (0.02, 0.79 and 1.34 of doing nothing for linear without penalty, with D between 0.04 and
0.13): w_0 differs by the noise of the last large steps.

Correlation of the single gradient's error over the 21 runs of a recipe, Pearson: proxy `paper`
-0.24 (linear) and -0.59 (text) over whole training, 0.82 and 0.80 on fine-tuning, where D alone has
0.80 and 0.84, `gradnorm` 0.89 and 0.92, `leading` 0.96 and 0.92.
"""

import ml_collections
from default_config import default_config

STRENGTHS = {"sd_gamma": (0.1, 0.3, 0.6), "l2": (0.0001, 0.0003, 0.001)}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("unrolling/imdb_penalties", variant)
    smoke = variant == "smoke"
    size = "num_train=128, num_test=50" if smoke else "num_train=5000, num_test=2000"
    config.shadow_dataset = ""
    config.epochs = 1 if smoke else 15
    config.batch_size = 32
    config.optimizer.learning_rate = 1.0
    config.fine_tuning_epochs = 1
    config.fine_tuning_rate = 0.02
    config.fine_tuning_batch_size = config.batch_size
    config.curvature_examples = 32 if smoke else 512
    config.curvature_chunk = 32 if smoke else 128
    config.proxies = True
    config.keep_runs = False
    config.methods = ("single_gradient", "taylor(order=1)")
    tokens = f"encoding='hashing', vocabulary_size={500 if smoke else 10000}, length=200"
    words = f"vocabulary_size={500 if smoke else 10000}, embedding={8 if smoke else 32}"
    recipes = (
        (
            ("dataset", f"text_features(size={64 if smoke else 2048}, {size})"),
            ("model", "linear()"),
        ),
        (
            ("dataset", f"imdb_reviews({tokens}, {size})"),
            ("model", f"text({words}, encoder='bag')"),
        ),
    )
    penalties = [
        ((f"objective.{field}", strength),)
        for field, strengths in STRENGTHS.items()
        for strength in (strengths[-1:] if smoke else strengths)
    ]
    config.variants = tuple(
        (*recipe, *penalty) for recipe in recipes for penalty in ((), *penalties)
    )
    config.axes = ()
    for field in ("method_seeds", "independents", "record_every"):
        del config[field]
    return config
