"""What the experiments on SISA share: the grid of shards and slices, and the request streams."""

import ml_collections
from default_config import default_config


def sisa_config(experiment: str, variant: str) -> ml_collections.ConfigDict:
    """A grid of S and R, three aggregations, and streams of requests."""
    config = default_config(f"deletion/{experiment}", variant)
    smoke = variant == "smoke"
    config.optimizer.momentum = 0.9
    config.optimizer.schedule = "cosine"
    config.shards = (1, 4) if smoke else (1, 2, 4, 8, 16)
    config.slices = (1, 4)
    config.class_balance = True
    config.aggregations = ("vote", "mean_probability", "mean_logits")
    config.mode = "auto"
    # Of simulated request streams; nothing is trained for them.
    config.requests = 16 if smoke else 96
    config.request_batches = (1, 8) if smoke else (1, 16)
    config.request_rate = 5.0
    config.request_assignments = ("random", "aware_requests", "aware_cost", "aware_size")
    config.draws = 3 if smoke else 40
    return config
