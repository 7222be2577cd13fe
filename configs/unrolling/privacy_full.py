"""Privacy risk score against verification error at the size of Unrolling SGD (F).

python experiments/penalties.py --config=configs/unrolling/privacy_full.py

Written for a GPU and a data folder with all of CIFAR. Not run here: neither numbers nor minutes are
known. From the paper's code: 60 epochs in batches of 128 at a rate of 0.01, the strengths of the SD
penalty in its reference form, 128 examples forgotten, halves of the training and test sets for the
shadow model. Momentum and weight decay, which the theory leaves out, are left out; GroupNorm and
GELU stand for batch normalisation and ReLU. `privacy.py` is the small version, with measured
numbers.
"""

import ml_collections
from default_config import default_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("unrolling/privacy_full", variant)
    smoke = variant == "smoke"
    if smoke:
        config.dataset = config.shadow_dataset = "digits(num_train=256, num_test=200)"
        config.model = "mlp(hidden=(16,))"
    else:
        config.dataset, config.shadow_dataset = (
            f"cifar10(train_split='train[{part}]', test_split='test[{part}]')"
            for part in ("50%:", ":50%")
        )
        config.model = "resnet18(activation='gelu')"
    config.forget = f"random(size={8 if smoke else 128}, seed=0)"
    config.objective.sd_norm = "reference"
    config.epochs = 1 if smoke else 60
    config.batch_size = 32 if smoke else 128
    config.optimizer.learning_rate = 0.01
    config.fine_tuning_epochs = 1
    config.fine_tuning_rate = 0.002
    config.fine_tuning_batch_size = config.batch_size
    config.curvature_examples = 32
    config.curvature_chunk = 32
    config.proxies = False
    config.keep_runs = True
    config.methods = ("single_gradient", "taylor(order=1)")
    gammas = (1.0,) if smoke else (1.0, 5.0, 10.0, 15.0, 20.0, 25.0)
    config.variants = ((), *((("objective.sd_gamma", gamma),) for gamma in gammas))
    config.axes = ()
    for field in ("method_seeds", "independents", "record_every"):
        del config[field]
    return config
