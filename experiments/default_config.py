"""The fields of an experiment and their defaults; each config changes what is its own.

Data sets, corruptions, forget sets, models and methods are written as calls, for example
`random(fraction=0.01, seed=0)`; see `unroll.calls`.
"""

import ml_collections


def default_config(experiment: str, variant: str) -> ml_collections.ConfigDict:
    """A small plain-SGD experiment; with `variant="smoke"` one that ends in seconds.

    Raises:
      ValueError: on any other variant than `` and `smoke`.
    """
    if variant not in ("", "smoke"):
        raise ValueError(
            f"unknown variant {variant!r}; use configs/{experiment}.py or {experiment}.py:smoke"
        )
    smoke = variant == "smoke"
    config = ml_collections.ConfigDict()
    config.experiment = experiment
    config.dataset = ""
    config.corruption = "none"
    config.forget = "random(fraction=0.01, seed=0)"
    config.model = ""
    config.objective = ml_collections.ConfigDict(
        dict(
            loss="cross_entropy",
            sd_gamma=0.0,
            sd_norm="population",
            sd_decay=1.0,
            sd_decay_every=0,
            l2=0.0,
            hessian_gamma=0.0,
            singular_gamma=0.0,
            singular_iterations=1,
        )
    )
    config.optimizer = ml_collections.ConfigDict(
        dict(name="sgd", learning_rate=0.05, momentum=0.0, schedule="constant", warmup_steps=0)
    )
    # Unset, they are not passed on; taylor through adam needs eps_root > 0.
    config.optimizer.eps_root = ml_collections.config_dict.placeholder(float)
    config.optimizer.weight_decay = ml_collections.config_dict.placeholder(float)
    config.denominator = "batch"
    config.augment = False
    config.epochs = 1 if smoke else 6
    config.batch_size = 32 if smoke else 64
    config.partial = "pad"
    config.record_every = 4 if smoke else 157
    config.methods = (
        ("replay", "taylor(order=1)")
        if smoke
        else (
            "replay",
            "single_gradient",
            "gradient_ascent(learning_rate=0.01, epochs=1, batch_size=32)",
            "finetune(learning_rate=0.05, epochs=1)",
            "taylor(order=1)",
            "taylor(order=2)",
        )
    )
    config.train_seeds = (0, 1) if smoke else (0, 1, 2)
    config.method_seeds = (0,)
    config.independents = 2 if smoke else 3
    return config
