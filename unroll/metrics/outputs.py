"""Metrics of one model's logits: accuracy, loss, the true-class probability, the entropy."""

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


def output_entropy(logits: np.ndarray) -> np.ndarray:
    """Entropy of each example's softmax in nats, `[N]`, between 0 and log C."""
    log_probabilities = log_softmax(np.asarray(logits, np.float64), axis=-1)
    # A probability that underflowed to 0 has a log of up to -1e4, and adds exactly 0.
    return -np.sum(np.exp(log_probabilities) * log_probabilities, axis=-1)
