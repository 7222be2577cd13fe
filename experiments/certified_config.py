"""What certified removals on digits and on features of a network share."""

import ml_collections


def certified_config(experiment: str, variant: str) -> ml_collections.ConfigDict:
    """Classes, bounds, settings and removals; the data set is each config's own."""
    if variant not in ("", "smoke"):
        raise ValueError(f"unknown variant {variant!r}; use `` or `smoke`")
    smoke = variant == "smoke"
    config = ml_collections.ConfigDict()
    config.experiment = f"deletion/{experiment}"
    config.classes = (3, 8)
    config.random_features = 0
    # A network, trained on the first `public` examples, whose features are used.
    config.extractor = None
    config.public = 0
    config.bounds = ("paper", "integral")
    config.settings = ((1e-2, 1.0),) if smoke else ((1e-3, 1.0), (1e-2, 1.0), (1e-2, 0.3))
    config.epsilon = 1.0
    config.delta = 1e-4
    config.calibration = "analytic"
    config.removals = 6 if smoke else 200
    config.every = 2 if smoke else 10
    config.seeds = (0,) if smoke else (0, 1, 2)
    return config
