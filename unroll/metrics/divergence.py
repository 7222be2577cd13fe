"""Divergence and distance of output distributions between two models."""

from __future__ import annotations

import numpy as np
from scipy.special import rel_entr, softmax


def js_divergence(logits: np.ndarray, oracle_logits: np.ndarray) -> float:
    """Mean Jensen-Shannon divergence over the examples, in nats; at most ln 2.

    JS(p, q) = KL(p || m)/2 + KL(q || m)/2 with m = (p + q)/2. Several public benchmarks reverse the
    arguments of KL, which makes it unbounded, or divide by the number of classes; the known value
    for p = (0.7, 0.2, 0.1), q = (0.2, 0.3, 0.5) is 0.151358. Ideal: the null row's.
    """
    p, q = (softmax(np.asarray(z, np.float64), axis=-1) for z in (logits, oracle_logits))
    middle = (p + q) / 2
    divergence = (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=-1) / 2
    return float(np.mean(divergence))


def activation_distance(logits: np.ndarray, oracle_logits: np.ndarray) -> float:
    """Mean Euclidean distance of the softmax outputs over the examples; at most the root of 2.

    Source: Golatkar et al. (arXiv 1911.04933) and the peers after them; some take the sum of the
    absolute differences instead, so the norm belongs into the name. Ideal: the null row's.
    """
    p, q = (softmax(np.asarray(z, np.float64), axis=-1) for z in (logits, oracle_logits))
    return float(np.mean(np.linalg.norm(p - q, axis=-1)))
