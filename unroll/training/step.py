"""One training step as a pure function of the example weights.

    g = (1/B) sum_b omega[I[t,b]] * grad loss(w_t; x_I[t,b], y_I[t,b])  +  grad penalty(w_t)

Everything else in the library (runs, replays, ensembles, Taylor series, metagradients) is this
function iterated, restarted, batched or differentiated.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from unroll.training.spec import TrainSpec, apply_model
from unroll.types import Params, PyTree, TrainState


class Examples(NamedTuple):
    """The training set on the device: `inputs [N, ...]` and int32 `labels [N]`."""

    inputs: jax.Array
    labels: jax.Array


class Batch(NamedTuple):
    """A gathered batch: model inputs, labels, weights `[B]`, keys `[B]`, divisor (scalar)."""

    inputs: jax.Array
    labels: jax.Array
    weights: jax.Array
    keys: jax.Array
    denominator: jax.Array


def initial_state(spec: TrainSpec, key: jax.Array, inputs: jax.Array) -> TrainState:
    """State before the first step.

    Args:
      spec: what to train.
      key: typed key of the run; the initialisation uses `fold_in(key, 0)`.
      inputs: at least one stored example, `[n, ...]`; only shapes and dtype matter.
    """
    return _initial_state(spec, key, inputs[:1])


@jax.jit(static_argnames=("spec",))
def _initial_state(spec: TrainSpec, key: jax.Array, inputs: jax.Array) -> TrainState:
    if spec.preprocess is not None:
        inputs = spec.preprocess(inputs)
    variables = dict(spec.model.init(jax.random.fold_in(key, 0), inputs))
    params = variables.pop("params")
    return TrainState(params, spec.optimizer.build().init(params), variables)


def gather(
    spec: TrainSpec,
    examples: Examples,
    weights: jax.Array,
    key: jax.Array,
    step: jax.Array,
    slots: jax.Array,
) -> Batch:
    """Collects the examples of one schedule row.

    Args:
      spec: what to train.
      examples: the training set.
      weights: `[N]` example weights omega.
      key: typed key of the run; step and example ids are folded into `fold_in(key, 1)`.
      step: index of the step.
      slots: int32 `[B]` example ids; -1 marks an empty slot: an example of weight 0.
    """
    filled = slots >= 0
    ids = jnp.where(filled, slots, 0)
    batch_weights = jnp.where(filled, weights[ids], 0.0)
    step_key = jax.random.fold_in(jax.random.fold_in(key, 1), step)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, ids)
    inputs = examples.inputs[ids]
    if spec.preprocess is not None:
        inputs = spec.preprocess(inputs)
    if spec.augmentation is not None:
        inputs = spec.augmentation(inputs, _fold_in_each(keys, 0))
    if spec.denominator == "batch":
        denominator = jnp.asarray(len(slots), weights.dtype)
    else:
        total = batch_weights.sum()
        denominator = jnp.where(total == 0, jnp.ones_like(total), total)
    return Batch(inputs, examples.labels[ids], batch_weights, keys, denominator)


def _fold_in_each(keys: jax.Array, data: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def batch_loss(
    spec: TrainSpec, params: Params, model_state: PyTree, batch: Batch
) -> tuple[jax.Array, PyTree]:
    """Weighted training loss of a batch (a scalar) and the new model state."""
    logits, model_state = apply_model(
        spec,
        params,
        model_state,
        batch.inputs,
        train=True,
        example_keys=_fold_in_each(batch.keys, 1),
        example_weights=batch.weights,
    )
    losses = spec.objective.example_losses(logits, batch.labels)
    loss = jnp.vdot(batch.weights, losses) / batch.denominator
    return loss + spec.objective.penalty(params), model_state


def train_step(
    spec: TrainSpec,
    state: TrainState,
    examples: Examples,
    weights: jax.Array,
    key: jax.Array,
    step: jax.Array,
    slots: jax.Array,
) -> tuple[TrainState, jax.Array]:
    """One step of the run: the next state and the training loss before it.

    Arguments as in `gather`. Pure, and differentiable in `state` and `weights` to any order that
    the model allows.
    """
    batch = gather(spec, examples, weights, key, step, slots)
    (loss, model_state), gradient = jax.value_and_grad(
        lambda params: batch_loss(spec, params, state.model_state, batch), has_aux=True
    )(state.params)
    updates, opt_state = spec.optimizer.build().update(gradient, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state, model_state), loss
