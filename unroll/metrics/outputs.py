"""Metrics of one model's logits: accuracy, loss, and the true-class probability."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of examples whose largest logit is the label's. Target: the retrained model's."""
    return float(np.mean(logits.argmax(axis=-1) == labels))


def example_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy of each example in nats, `[N]` float64."""
    log_probabilities = log_softmax(np.asarray(logits, np.float64), axis=-1)
    return -log_probabilities[np.arange(len(labels)), labels]


def loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy in nats. Target: the retrained model's."""
    return float(np.mean(example_losses(logits, labels)))


def true_class_probability(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Softmax probability of each example's label, `[N]`."""
    return np.exp(-example_losses(logits, labels))
