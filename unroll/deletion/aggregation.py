"""One prediction from several models: votes, mean probabilities, mean logits.

Design: scores whose largest is the prediction, in the place of logits, so that every metric of
accuracy reads them as it reads a single model's. Rejected: the winning class alone, from which no
confidence can be had.
"""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from unroll.errors import InputError

AGGREGATIONS = ("vote", "mean_probability", "mean_logits")


def aggregate(logits: np.ndarray, aggregation: str = "vote") -> np.ndarray:
    """Scores of the classes from the logits of the constituents.

    Args:
      logits: `[K, M, C]`.
      aggregation: `vote`: the number of constituents that choose a class; the mean probability of
        the class counts as half a vote, which decides between equal numbers and never against a
        larger one. `mean_probability`: of the constituents' softmax. `mean_logits`.

    Returns:
      float64 `[M, C]`; the largest score is the prediction. Those of `vote` and `mean_probability`
      are shares that add up to 1, those of `mean_logits` are logits.

    Raises:
      InputError: on another aggregation.
    """
    logits = np.asarray(logits, np.float64)
    if aggregation == "mean_logits":
        return logits.mean(axis=0)
    if aggregation not in AGGREGATIONS:
        raise InputError(f"unknown aggregation {aggregation!r}; choose one of {AGGREGATIONS}")
    probabilities = softmax(logits, axis=-1).mean(axis=0)
    if aggregation == "mean_probability":
        return probabilities
    votes = np.eye(logits.shape[-1])[logits.argmax(axis=-1)].sum(axis=0)
    return (votes + probabilities / 2) / (len(logits) + 0.5)
