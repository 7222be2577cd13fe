"""What the experiments on projected-gradient unlearning share: data, model and training."""

import ml_collections
from default_config import default_config


def small_vgg_config(experiment: str, variant: str) -> ml_collections.ConfigDict:
    """A small VGG on a subset of CIFAR-10, trained well enough to have something to forget."""
    config = default_config(f"pgu/{experiment}", variant)
    config.independents = 2
    config.optimizer.momentum = 0.9
    config.optimizer.schedule = "cosine"
    if variant == "smoke":
        config.dataset = "cifar10(num_train=256, num_test=100)"
        config.model = "vgg_small(width=0.125)"
        config.record_every = 8
        return config
    config.dataset = "cifar10(num_train=8000, num_test=2000)"
    config.model = "vgg_small(width=0.5)"
    config.epochs = 12
    config.record_every = 1500  # first and last state: nothing here replays a run
    return config


def projected(projection: str, stop: str, rate: float = 0.2, last: float = 0.05) -> str:
    """`projected_gradient` with a projection and a stopping rule; at most 30 epochs."""
    return (
        f"projected_gradient(learning_rate={rate}, final_learning_rate={last}, epochs=30, "
        f"projection={projection!r}, stop={stop!r})"
    )
