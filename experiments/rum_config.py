"""What the experiments on RUM and on difficulty share, besides data, network and exact scores."""

import ml_collections


def with_variants(config: ml_collections.ConfigDict, variant: str) -> ml_collections.ConfigDict:
    """The fields of a comparison of RUM's variants with the exact scores of a config."""
    smoke = variant == "smoke"
    texts = _texts(smoke, config.batch_size)
    config = _with_groups(config, variant)
    config.methods = (texts["neggrad_plus"], texts["salun"])
    config.hand_chosen = ("original", texts["finetune"], texts["salun"])
    config.candidates = ("original", *texts.values())
    if smoke:
        config.candidates = ("original", texts["finetune"])
    config.search = "greedy"
    config.retain_policy = "nested"
    config.partition_scores = ("confidence",)
    config.shuffle_seed = 0
    config.development_seeds = (100,) if smoke else (100, 101)
    return config


def with_levels(config: ml_collections.ConfigDict, variant: str) -> ml_collections.ConfigDict:
    """The fields of a difficulty study with the exact scores of a config."""
    texts = _texts(variant == "smoke", config.batch_size)
    config = _with_groups(config, variant)
    config.methods = (texts["finetune"],) if variant == "smoke" else tuple(texts.values())
    return config


def _with_groups(config, variant):
    smoke = variant == "smoke"
    config.scores = "exact"
    config.mid_rule = "half"
    config.tie_seed = 0
    config.train_seeds = (0, 1) if smoke else (0, 1, 2)
    config.independents = 2
    config.record_every = 1000  # first and last state: nothing here replays a run
    return config


def _texts(smoke, batch_size):
    """Plain SGD at one rate with one budget for all; not tuned."""
    shared = f"learning_rate=0.05, epochs={1 if smoke else 2}, batch_size={batch_size}"
    return {
        "finetune": f"finetune({shared})",
        "neggrad_plus": f"neggrad_plus(alpha=0.97, {shared})",
        "salun": f"salun(fraction=0.5, {shared})",
    }
