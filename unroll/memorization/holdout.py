"""Holdout retraining: how far a prediction moves when the model is trained on other examples.

    1/2 [KL(p || q) + KL(q || p)]  =  1/2 sum_c (p_c - q_c) (log p_c - log q_c)

with p the model's prediction of a training example and q that of a copy fine-tuned on held-out
examples (arXiv 2410.16516, section 3). What generalises is kept up by other examples; what was
memorized has nothing to hold it and moves. It asks nothing of the training run.

Design: logarithms of the softmax, in which every term of the sum is at least 0 and finite. The
reference code clamps probabilities at 1e-10, which caps the largest values. Rejected: held-out
examples from the test set that metrics are taken on, as in the reference code; the caller gives
others.
"""

from __future__ import annotations

import jax
import numpy as np
from scipy.special import log_softmax

from unroll.checks import positive_number, whole_number
from unroll.memorization.subject import FORWARD, Measurement, Proxy
from unroll.training.further import further_sgd
from unroll.training.predict import predict

_KEY = 3  # of the run: 0 to 2 are taken by initialisation, noise and the objective


def holdout_retraining(learning_rate: float = 0.05, epochs: int = 5, batch_size: int = 64) -> Proxy:
    """Symmetric divergence in nats between the model and its fine-tuned copy; grows.

    Fine-tuning is plain SGD with a constant step size, with the augmentation of the run if it had
    one. Predictions are in evaluation mode.

    Args:
      learning_rate: step size.
      epochs: passes over the held-out examples.
      batch_size: examples per step, at most those that there are.
    """
    positive_number("learning_rate", learning_rate)
    whole_number("epochs", epochs)
    whole_number("batch_size", batch_size)
    options = {"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size}

    def measure(subject, progress):
        run, held_out = subject.run, subject.held_out
        key = jax.random.fold_in(run.key, _KEY)
        moved = further_sgd(run.spec, run.state, held_out, 1.0, key, progress=progress, **options)
        before, after = (
            predict(run.spec, state.params, state.model_state, run.dataset)
            for state in (run.state, moved)
        )
        gradients = epochs * len(held_out) + 2 * FORWARD * len(run.dataset)
        return Measurement(
            symmetric_divergence(before, after), gradients, {"held_out": len(held_out)}
        )

    return Proxy("holdout_retraining", options, 1, frozenset({"held_out"}), measure)


def symmetric_divergence(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`[KL(p || q) + KL(q || p)] / 2` in nats, float64 `[N]`, of two arrays of logits `[N, C]`."""
    log_p, log_q = (log_softmax(logits.astype(np.float64), axis=1) for logits in (first, second))
    return 0.5 * ((np.exp(log_p) - np.exp(log_q)) * (log_p - log_q)).sum(axis=1)
