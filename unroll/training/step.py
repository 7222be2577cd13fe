"""One training step as a pure function of the example weights.

    g = (1/B) sum_b omega[I[t,b]] * grad loss(w_t; x_I[t,b], y_I[t,b])  +  grad penalty(w_t)

Everything else in the library (runs, replays, ensembles, Taylor series, metagradients) is this
function iterated, restarted, batched or differentiated.

Design: what one step hands to the next is all in `TrainState`, also the vector of the
singular-value penalty, so that a run with it is restarted, replayed and differentiated like any
other. Rejected: finding that vector anew in every step, which takes tens of Hessian-vector products
instead of one.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from unroll.errors import InputError
from unroll.objectives import is_stateful, losses_at
from unroll.training.spec import TrainSpec, apply_model
from unroll.types import Params, PyTree, TrainState


class Examples(NamedTuple):
    """The training set on the device: `inputs [N, ...]` and int32 `labels [N]`."""

    inputs: jax.Array
    labels: jax.Array


class Batch(NamedTuple):
    """A gathered batch: model inputs, labels, weights `[B]`, keys `[B]`, divisor (scalar), step.

    The step is the index that a decaying objective reads; a batch made without one counts as the
    first.
    """

    inputs: jax.Array
    labels: jax.Array
    weights: jax.Array
    keys: jax.Array
    denominator: jax.Array
    step: int | jax.Array = 0


def initial_state(spec: TrainSpec, key: jax.Array, inputs: jax.Array) -> TrainState:
    """State before the first step.

    Args:
      spec: what to train.
      key: typed key of the run; the initialisation uses `fold_in(key, 0)`, `start_state` the
        rest.
      inputs: at least one stored example, `[n, ...]`; only shapes and dtype matter.
    """
    return _initial_state(spec, key, inputs[:1])


@jax.jit(static_argnames=("spec",))
def _initial_state(spec: TrainSpec, key: jax.Array, inputs: jax.Array) -> TrainState:
    if spec.preprocess is not None:
        inputs = spec.preprocess(inputs)
    variables = dict(spec.model.init(jax.random.fold_in(key, 0), inputs))
    params = variables.pop("params")
    return start_state(spec, key, params, variables)


def start_state(
    spec: TrainSpec, key: jax.Array, params: Params, model_state: PyTree | None = None
) -> TrainState:
    """State before the first step from given parameters, for example a pretrained model's.

    Args:
      spec: what to train; a fresh state of its optimiser and of its objective is made.
      key: typed key of the run; the objective's memory, where it has one, uses `fold_in(key, 2)`.
      params: the parameters.
      model_state: the model's other variable collections, none by default.
    """
    objective_state = ()
    if is_stateful(spec.objective):
        objective_state = spec.objective.initial_state(jax.random.fold_in(key, 2), params)
    return TrainState(
        params,
        spec.optimizer.build().init(params),
        {} if model_state is None else model_state,
        objective_state,
    )


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
    return Batch(inputs, examples.labels[ids], batch_weights, keys, denominator, step)


def _fold_in_each(keys: jax.Array, data: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def batch_loss(
    spec: TrainSpec, params: Params, model_state: PyTree, batch: Batch
) -> tuple[jax.Array, PyTree]:
    """Weighted training loss of a batch (a scalar) and the new model state.

    All of the objective but the singular-value penalty, which needs a vector beside the parameters.
    """
    loss, model_state = data_loss(spec, params, model_state, batch)
    return loss + spec.objective.penalty(params), model_state


def data_loss(
    spec: TrainSpec, params: Params, model_state: PyTree, batch: Batch
) -> tuple[jax.Array, PyTree]:
    """The part of `batch_loss` that the examples own, and the new model state."""
    loss, (model_state, _) = _data_loss(spec, params, model_state, batch)
    return loss, model_state


def _data_loss(
    spec: TrainSpec, params: Params, model_state: PyTree, batch: Batch
) -> tuple[jax.Array, tuple[PyTree, jax.Array]]:
    """As `data_loss`, with the logits `[B, C]` beside the new model state."""
    logits, model_state = apply_model(
        spec,
        params,
        model_state,
        batch.inputs,
        train=True,
        example_keys=_fold_in_each(batch.keys, 1),
        example_weights=batch.weights,
    )
    losses = losses_at(spec.objective, logits, batch.labels, batch.step)
    return jnp.vdot(batch.weights, losses) / batch.denominator, (model_state, logits)


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

    Raises:
      InputError: (when traced) if the objective has a memory and the state was made without it.
    """
    state, loss, _ = train_step_and_logits(spec, state, examples, weights, key, step, slots)
    return state, loss


def train_step_and_logits(
    spec: TrainSpec,
    state: TrainState,
    examples: Examples,
    weights: jax.Array,
    key: jax.Array,
    step: jax.Array,
    slots: jax.Array,
) -> tuple[TrainState, jax.Array, jax.Array]:
    """As `train_step`, with the logits `[B, C]` of the forward pass that the gradient is of.

    A caller that drops the logits gets the program of one that never asked for them.
    """
    batch = gather(spec, examples, weights, key, step, slots)
    differentiate = _stateful_gradient if is_stateful(spec.objective) else _gradient
    loss, gradient, (model_state, logits), objective_state = differentiate(spec, state, batch)
    updates, opt_state = spec.optimizer.build().update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, opt_state, model_state, objective_state), loss, logits


def _gradient(
    spec: TrainSpec, state: TrainState, batch: Batch
) -> tuple[jax.Array, Params, tuple[PyTree, jax.Array], PyTree]:
    """Loss, gradient, the model's new state with the logits, and the objective's as it was."""

    def loss_of(params):
        loss, forward = _data_loss(spec, params, state.model_state, batch)
        return loss + spec.objective.penalty(params), forward

    (loss, forward), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    return loss, gradient, forward, state.objective_state


def _stateful_gradient(
    spec: TrainSpec, state: TrainState, batch: Batch
) -> tuple[jax.Array, Params, tuple[PyTree, jax.Array], PyTree]:
    """As `_gradient`, with the data term differentiated by the objective itself."""
    if not jax.tree.leaves(state.objective_state):
        raise InputError(
            "the objective has a memory that this state lacks (the vector of the singular-value "
            "penalty); make the state with unroll.training.step.start_state(spec, key, params)"
        )
    value, gradient, forward, objective_state = spec.objective.value_and_gradient(
        lambda params: _data_loss(spec, params, state.model_state, batch),
        state.params,
        state.objective_state,
    )
    penalty, slope = jax.value_and_grad(spec.objective.penalty)(state.params)
    gradient = jax.tree.map(jnp.add, gradient, slope)
    return value + penalty, gradient, forward, objective_state
