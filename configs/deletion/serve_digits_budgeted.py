"""Digits: 500 mixed requests to a single MLP, approximate by one gradient until 16 examples wait.

python experiments/serve_deletions.py --config=configs/deletion/serve_digits_budgeted.py

The status of what was approximated stays `approximated` until the exact deletion, which comes when
more than 16 examples are so, or the model has moved by more than 0.05. Neither bounds an error.

Measured on 2 CPU cores, 1 minute beside other work: 446 examples deleted by 224 requests, 162 exact
applications, 0.86 of the gradients of retraining at each, test accuracy 0.928 at first and 0.916
at last; the approximations lie at 1.3 to 5.3 times the distance of doing nothing from the exact
model, in all of 22 measurements.
"""

import ml_collections
from serving_config import serve_digits, serving_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = serving_config("serve_digits_budgeted", variant)
    smoke = variant == "smoke"
    config.service = "single"
    serve_digits(config, smoke, epochs=10, batch_size=32)
    # What the one gradient takes for granted is best met by plain SGD.
    config.optimizer.momentum = 0.0
    config.optimizer.schedule = "constant"
    config.epochs = 1 if smoke else 10
    threshold = 4 if smoke else 16
    config.policy = f"budgeted(method='single_gradient', threshold={threshold}, distance=0.05)"
    config.drift_every = 2 if smoke else 10
    return config
