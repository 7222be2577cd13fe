"""Four penalties at the size of Unrolling SGD: ResNet-18 and VGG-19 on all of CIFAR (D).

python experiments/penalties.py --config=configs/unrolling/penalties_full.py

Written for a GPU and a data folder with all of CIFAR. Not run here: neither numbers nor minutes are
known. From the paper: the strengths of the SD penalty in its reference form, 20 epochs in batches
of 128, then 5 epochs in batches of 32 at a rate of 0.01, 32 examples forgotten. GroupNorm and GELU
stand where it has batch normalisation and ReLU: a gradient must be a function of one example. The
other three penalties and three seeds are ours. `penalties.py` is the small version, with measured
numbers.
"""

import ml_collections
from default_config import default_config

STRENGTHS = {
    "hessian_gamma": (0.6, 2.0),
    "singular_gamma": (0.005, 0.02),
    "l2": (0.0005, 0.005, 0.02),
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("unrolling/penalties_full", variant)
    smoke = variant == "smoke"
    config.shadow_dataset = ""
    config.forget = "random(size=32, seed=0)"
    config.objective.sd_norm = "reference"
    config.epochs = 1 if smoke else 20
    config.batch_size = 32 if smoke else 128
    config.fine_tuning_epochs = 1 if smoke else 5
    config.fine_tuning_rate = 0.01
    config.fine_tuning_batch_size = 32
    config.curvature_examples = 32 if smoke else 1024
    config.curvature_chunk = 32 if smoke else 256
    config.proxies = True
    config.keep_runs = True
    config.methods = ("single_gradient", "taylor(order=1)")
    config.axes = ()
    for field in ("method_seeds", "independents", "record_every"):
        del config[field]
    if smoke:
        config.dataset = "digits(num_train=128, num_test=50)"
        config.model = "mlp(hidden=(16,))"
        config.variants = ((), (("objective.sd_gamma", 1.0),))
        return config
    others = tuple(
        ((f"objective.{field}", strength),)
        for field, strengths in STRENGTHS.items()
        for strength in strengths
    )
    config.variants = tuple(
        (("dataset", data), ("model", f"{net}(activation='gelu')"), *penalty)
        for net in ("resnet18", "vgg19")
        for data, gammas in (
            ("cifar10()", (0.1, 1.0, 5.0, 10.0, 15.0, 20.0, 25.0)),
            ("cifar100()", (50.0, 100.0, 150.0, 200.0, 250.0)),
        )
        for penalty in ((), *((("objective.sd_gamma", gamma),) for gamma in gammas), *others)
    )
    return config
