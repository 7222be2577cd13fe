"""Divergence of output distributions between two models."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax, logsumexp


def js_divergence(logits: np.ndarray, oracle_logits: np.ndarray) -> float:
    """Mean Jensen-Shannon divergence over the examples, in nats; at most ln 2.

    JS(p, q) = KL(p || m)/2 + KL(q || m)/2 with m = (p + q)/2. Several public benchmarks reverse the
    arguments of KL, which makes it unbounded, or divide by the number of classes; the known value
    for p = (0.7, 0.2, 0.1), q = (0.2, 0.3, 0.5) is 0.151358. Ideal: the null row's.
    """
    log_p = log_softmax(np.asarray(logits, np.float64), axis=-1)
    log_q = log_softmax(np.asarray(oracle_logits, np.float64), axis=-1)
    log_m = logsumexp([log_p, log_q], axis=0) - np.log(2.0)

    def kl(log_a):
        return np.sum(np.exp(log_a) * (log_a - log_m), axis=-1)

    return float(np.mean(0.5 * kl(log_p) + 0.5 * kl(log_q)))
