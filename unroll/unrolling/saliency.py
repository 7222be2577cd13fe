"""Which parameters a set of examples weighs on: the entries of the largest loss gradient.

    m = 1[ |grad L_S(w)| >= gamma ],    gamma such that a given share of all entries is 1

Source: Fan et al., *SalUn* (arXiv 2310.12508), Eq. 4. Entries of all leaves are ranked together.

Design: exactly the asked number of entries; those that tie with the smallest of them are taken in
the order of the leaves. Rejected: the bare comparison with gamma, which takes in all ties, for
example every weight of a dead unit where gamma is 0. One public implementation ranks the other way
round and so keeps the smallest gradients, and moves the model while it adds them up.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from unroll.data.dataset import Dataset
from unroll.errors import DivergenceError
from unroll.objectives import losses_at
from unroll.training.spec import TrainSpec, apply_model
from unroll.tree import flatten
from unroll.types import Params, PyTree, TrainState


def saliency(spec: TrainSpec, state: TrainState, data: Dataset, batch_size: int = 256) -> Params:
    """|gradient of the mean loss of the examples|, float64 like the parameters, on the host.

    In evaluation mode, without augmentation and without penalties of the parameters.

    Args:
      spec: model, objective and preprocessing.
      state: where the gradient is taken; it is not moved.
      data: the examples.
      batch_size: examples evaluated at once; the last batch is filled up with weight 0.
    """
    total = jax.tree.map(lambda leaf: np.zeros(np.shape(leaf)), state.params)
    size = min(batch_size, len(data))
    for begin in range(0, len(data), size):
        rows = np.arange(begin, begin + size)
        weights = (rows < len(data)).astype(np.float32)
        rows = np.minimum(rows, len(data) - 1)
        gradient = _gradient_sum(
            spec, state.params, state.model_state, data.inputs[rows], data.labels[rows], weights
        )
        total = jax.tree.map(lambda before, leaf: before + np.asarray(leaf), total, gradient)
    return jax.tree.map(lambda leaf: np.abs(leaf) / len(data), total)


@jax.jit(static_argnames=("spec",))
def _gradient_sum(spec, params, model_state, inputs, labels, weights):
    if spec.preprocess is not None:
        inputs = spec.preprocess(inputs)

    def loss_sum(params):
        logits, _ = apply_model(spec, params, model_state, inputs, train=False)
        return jnp.vdot(weights, losses_at(spec.objective, logits, labels))

    return jax.grad(loss_sum)(params)


def largest(values: PyTree, fraction: float) -> tuple[PyTree, float]:
    """Marks the largest entries of a tree, all leaves ranked together.

    Args:
      values: a tree of finite numbers.
      fraction: share of the entries to mark, above 0 and at most 1; at least one is marked.

    Returns:
      booleans like the tree, exactly `max(1, round(fraction * entries))` of them True, and the
      smallest marked value. Of equal values those are marked that come first.

    Raises:
      DivergenceError: if a value is not finite.
    """
    flat = flatten(values)
    if not np.isfinite(flat).all():
        raise DivergenceError("the gradient of the forget set is not finite; it ranks nothing")
    count = max(1, round(fraction * len(flat)))
    threshold = np.partition(flat, len(flat) - count)[len(flat) - count]
    chosen = flat > threshold
    ties = np.flatnonzero(flat == threshold)
    chosen[ties[: count - int(chosen.sum())]] = True
    leaves, structure = jax.tree.flatten(values)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    parts = zip(np.split(chosen, ends), leaves, strict=True)
    marks = [part.reshape(np.shape(leaf)) for part, leaf in parts]
    return structure.unflatten(marks), float(threshold)


def moved_outside(mask: PyTree, before: Params, after: Params) -> float:
    """Share of the squared distance between two models that lies outside the mask; 0 for none."""
    change = flatten(after) - flatten(before)
    whole = float(change @ change)
    outside = change[~flatten(mask).astype(bool)]
    return float(outside @ outside) / whole if whole else 0.0
