"""What the configs of experiments/pipeline.py share."""

import ml_collections
from default_config import default_config


def pipeline_config(experiment: str, variant: str) -> ml_collections.ConfigDict:
    """Digits with 1% to forget; influences, kinds of noise and checks are the config's own."""
    config = default_config(f"deletion/{experiment}", variant)
    smoke = variant == "smoke"
    config.dataset = "digits(num_train=200, num_test=100)" if smoke else "digits()"
    config.epochs = 2 if smoke else 10
    config.batch_size = 32
    config.record_every = 7 if smoke else 45
    config.influences = ()
    config.noises = ("none",)
    config.checks = ()
    for field in ("methods", "independents", "method_seeds"):
        del config[field]
    return config
