"""Outcomes of a run: differentiable functions of its final state, by data and in parameter space.

A *metric* is any pure function of a `TrainState` that returns a number or a vector. The ones made
here are losses in evaluation mode and a squared distance.

Design: a metric is a pytree that holds its data, and is an argument of the compiled program that
evaluates it. Rejected: closures over the data. Each would be a program of its own with the images
as constants, which XLA folds for seconds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from unroll import tree
from unroll.checks import whole_number
from unroll.data.dataset import Dataset
from unroll.data.ids import IdsLike
from unroll.errors import DivergenceError, InputError
from unroll.training.spec import TrainSpec, apply_model
from unroll.types import Params, TrainState

Metric = Callable[[TrainState], jax.Array]
"""A pure function of the final state, differentiable, of shape [] or [M].

Those made here also carry `names` (a tuple of M) and `example_gradients`, what one gradient costs.
"""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("inputs", "labels", "shares"),
    meta_fields=("spec", "names", "example_gradients"),
)
@dataclasses.dataclass(frozen=True, eq=False)
class LossMetric:
    """M weighted sums of example losses, `sum_n shares[m, n] loss_n`, in evaluation mode.

    The loss is the objective's, its penalties per example included.

    Attributes:
      inputs: `[k, b, ...]` stored inputs in k batches.
      labels: int32 `[k, b]`.
      shares: `[M, k, b]`; 0 where a batch is filled up.
      spec: how the model was trained.
      names: name of each sum.
      example_gradients: what one gradient of all of them costs.
    """

    inputs: jax.Array
    labels: jax.Array
    shares: jax.Array
    spec: TrainSpec
    names: tuple[str, ...]
    example_gradients: int

    def __call__(self, state: TrainState) -> jax.Array:
        @jax.checkpoint  # else the activations of all batches are kept for the way back
        def batch(inputs, labels):
            return example_losses(self.spec, state, inputs, labels)

        losses = jax.lax.map(lambda pair: batch(*pair), (self.inputs, self.labels))
        return jnp.einsum("mkb,kb->m", self.shares.astype(losses.dtype), losses)


def example_losses(
    spec: TrainSpec, state: TrainState, inputs: jax.Array, labels: jax.Array
) -> jax.Array:
    """The objective's loss of each example, `[n]`, without augmentation or dropout."""
    if spec.preprocess is not None:
        inputs = spec.preprocess(inputs)
    logits, _ = apply_model(spec, state.params, state.model_state, inputs, train=False)
    return spec.objective.example_losses(logits, labels)


def mean_loss(
    spec: TrainSpec, dataset: Dataset, name: str = "loss", batch_size: int = 500
) -> LossMetric:
    """The mean loss over a data set: the test set, a forget set (`dataset.take(ids)`), ..."""
    shares = np.full((1, len(dataset)), 1.0 / len(dataset), np.float32)
    return _loss_metric(spec, dataset, shares, (name,), batch_size)


def point_losses(
    spec: TrainSpec, dataset: Dataset, ids: IdsLike, name: str = "loss", batch_size: int = 500
) -> LossMetric:
    """The loss of each of M examples, named `name[id]`.

    Raises:
      InputError: if there is no id, or one is out of range.
    """
    points = dataset.take(ids)
    names = tuple(f"{name}[{int(index)}]" for index in np.asarray(ids))
    return _loss_metric(spec, points, np.eye(len(points), dtype=np.float32), names, batch_size)


def _loss_metric(spec, dataset, shares, names, batch_size) -> LossMetric:
    size = min(whole_number("batch_size", batch_size), len(dataset))
    batches = -(-len(dataset) // size)
    rows = np.minimum(np.arange(batches * size), len(dataset) - 1)
    filled = np.pad(shares, ((0, 0), (0, batches * size - len(dataset))))
    return LossMetric(
        jnp.asarray(dataset.inputs[rows].reshape(batches, size, *dataset.example_shape)),
        jnp.asarray(dataset.labels[rows].reshape(batches, size)),
        jnp.asarray(filled.reshape(-1, batches, size)),
        spec,
        names,
        len(dataset),
    )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("reference",),
    meta_fields=("names", "example_gradients"),
)
@dataclasses.dataclass(frozen=True, eq=False)
class HalfSquaredDistance:
    """`1/2 ||w - w_ref||^2` over all parameters: with a twin as reference, the verification error.

    Attributes:
      reference: parameters w_ref.
      names: its name, a tuple of one.
      example_gradients: 0, since no data is touched.
    """

    reference: Params
    names: tuple[str, ...] = ("half squared distance",)
    example_gradients: int = 0

    def __call__(self, state: TrainState) -> jax.Array:
        differences = jax.tree.map(jnp.subtract, state.params, self.reference)
        return 0.5 * sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(differences))


# Evaluation and gradients of several metrics at once.


def as_sequence(metrics: Metric | Sequence[Metric]) -> tuple[Metric, ...]:
    """One metric or several, as a tuple.

    Raises:
      InputError: if there is none, or one is no function.
    """
    metrics = (metrics,) if callable(metrics) else tuple(metrics)
    if not metrics or not all(callable(metric) for metric in metrics):
        raise InputError("give at least one metric, a function of the final state")
    return metrics


def metric_names(metrics: Sequence[Metric], count: int) -> tuple[str, ...]:
    """Names of all `count` numbers: those that the metrics carry, else `metric 0`, ..."""
    names = [name for metric in metrics for name in getattr(metric, "names", ())]
    if len(names) != count:
        return tuple(f"metric {index}" for index in range(count))
    return tuple(names)


def evaluate(metrics: Metric | Sequence[Metric], state: TrainState) -> np.ndarray:
    """Values `[M]` (float64) of all metrics at a state."""
    values = [_value(_as_argument(metric), state) for metric in as_sequence(metrics)]
    return np.concatenate([np.atleast_1d(np.asarray(value, np.float64)) for value in values])


def values_and_gradients(
    metrics: Metric | Sequence[Metric], state: TrainState
) -> tuple[np.ndarray, TrainState]:
    """Values `[M]` (float64) of all metrics and their gradients in the state.

    The gradients have the structure of the state, a leading axis M, and `None` for leaves that are
    not floating-point.

    Raises:
      InputError: if a metric is neither a number nor a vector.
      DivergenceError: if a value or a gradient is not finite.
    """
    parts = [_value_and_gradient(_as_argument(metric), state) for metric in as_sequence(metrics)]
    values = np.concatenate([np.asarray(values, np.float64) for values, _ in parts])
    gradients = jax.tree.map(lambda *rows: jnp.concatenate(rows), *(rows for _, rows in parts))
    if not (np.isfinite(values).all() and tree.is_finite(gradients)):
        raise DivergenceError(
            "a metric of the final state, or its gradient, is not finite; check metric and run"
        )
    return values, gradients


def _as_argument(metric: Metric) -> Metric:
    leaves = jax.tree.leaves(metric)
    is_function = len(leaves) == 1 and leaves[0] is metric
    return jax.tree_util.Partial(metric) if is_function else metric


@jax.jit
def _value(metric: Metric, state: TrainState) -> jax.Array:
    return metric(state)


@jax.jit
def _value_and_gradient(metric: Metric, state: TrainState) -> tuple[jax.Array, TrainState]:
    def numbers(moving):
        values = jnp.atleast_1d(metric(join(moving, state)))
        if values.ndim != 1:
            raise InputError(f"a metric is a number or a vector; this one is {values.shape}")
        return values

    values, pullback = jax.vjp(numbers, moving_leaves(state))
    return values, jax.vmap(pullback)(jnp.eye(len(values), dtype=values.dtype))[0]


def moving_leaves(state: TrainState) -> TrainState:
    """The floating-point leaves; `None` for step counters and keys, which have no derivative."""
    return jax.tree.map(lambda leaf: leaf if tree.is_floating(leaf) else None, state)


def join(moving: TrainState, state: TrainState) -> TrainState:
    """The state with its floating-point leaves replaced."""
    return jax.tree.map(
        lambda new, old: old if new is None else new,
        moving,
        state,
        is_leaf=lambda leaf: leaf is None,
    )
