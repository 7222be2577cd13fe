"""Training on from a model towards, or away from, what a teacher says of the same examples.

    w <- w - eta grad [ h_t L_batch(w) + s_t KD_batch(w) + penalty(w) ]
    KD = T^2 KL( softmax(teacher / T) || softmax(student / T) )

(Hinton et al., *Distilling the Knowledge in a Neural Network*, arXiv 1503.02531). The factors h and
s belong to a step; a negative s ascends. The teacher's logits are numbers, computed once in
evaluation mode; the student is in training mode, as it is when it is trained.

Design: every step has the same form, so that passes of different kinds run through one compiled
loop, and the learning rate is an argument of it. Rejected: a program for each kind of pass, which
compiles twice and synchronises at every change; and the teacher's forward pass in every step, a
third more work for numbers that never change.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unroll import tree
from unroll.data.schedule import EMPTY
from unroll.errors import DivergenceError, InputError
from unroll.objectives import is_stateful, losses_at
from unroll.training import loop
from unroll.training.run import Progress
from unroll.training.spec import TrainSpec, apply_model
from unroll.training.step import Batch, Examples, gather, start_state
from unroll.types import Params, PyTree, TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Pass:
    """A stretch of steps of one kind.

    Attributes:
      schedule: int32 `[T, B]` example ids, -1 for empty slots; a step's sums are divided by B.
      hard: factor h of the training loss.
      soft: factor s of the distance to the teacher; below 0 it is ascended.
      follow: whether the running averages of batch normalisation follow these batches.
    """

    schedule: np.ndarray
    hard: float
    soft: float
    follow: bool = True


class Steps(NamedTuple):
    """Passes in a row, as arrays with one entry per step."""

    schedule: jax.Array
    divisors: jax.Array
    hard: jax.Array
    soft: jax.Array
    follow: jax.Array


def divergence(teacher: jax.Array, student: jax.Array, temperature: float) -> jax.Array:
    """`T^2 KL(teacher || student)` at temperature T in nats, `[B]`, from `[B, C]` logits."""
    of_teacher = jax.nn.log_softmax(teacher / temperature)
    of_student = jax.nn.log_softmax(student / temperature)
    return temperature**2 * jnp.sum(jnp.exp(of_teacher) * (of_teacher - of_student), axis=-1)


def distillation_sgd(
    spec: TrainSpec,
    state: TrainState,
    examples: Examples,
    weights: np.ndarray,
    teacher: np.ndarray,
    passes: list[Pass],
    key: jax.Array,
    *,
    learning_rate: float,
    temperature: float,
    progress: Progress | None = None,
) -> tuple[TrainState, list[float]]:
    """Plain SGD from the parameters of `state` along the passes.

    Args:
      spec: model, objective and augmentation; its optimiser and denominator are not used.
      state: where to start.
      examples: what the schedules name, on the device.
      weights: `[N]` example weights.
      teacher: `[N, C]` logits.
      passes: what to do, in order; batches of another size than the largest cost as much as that.
      key: typed key of the noise.
      learning_rate: step size.
      temperature: T.
      progress: called with (steps done, steps in all).

    Returns:
      the state after the last step, on the host, and the mean KD of each pass, measured along it
      on the batches before their steps.

    Raises:
      InputError: if the objective has a memory.
      DivergenceError: if a loss or the final state is not finite.
    """
    if is_stateful(spec.objective):
        raise InputError(
            "distillation does not go with the singular-value penalty; set singular_gamma=0"
        )
    dtype = jnp.result_type(*jax.tree.leaves(state.params))
    spec = dataclasses.replace(spec, denominator="batch")
    start = tree.to_host(start_state(spec, key, state.params, state.model_state))
    arguments = (
        examples,
        jnp.asarray(weights, dtype),
        jnp.asarray(teacher, dtype),
        key,
        in_a_row(passes, dtype),
        jnp.asarray(learning_rate, dtype),
        jnp.asarray(temperature, dtype),
    )

    def advance_to(carry, begin, end):
        return _advance(spec, *carry, *arguments, begin, end)

    lengths = [len(each.schedule) for each in passes]
    total, previous = sum(lengths), 0
    carry = (start, jnp.zeros(total, dtype), jnp.zeros(total, dtype))
    for position, carry in loop.chunks(advance_to, carry, 0, total):  # noqa: B020
        loop.check_losses(carry[1], previous, position)
        previous = position
        if progress is not None:
            progress(position, total)
    state, _, sums = carry
    if not tree.is_finite((state.params, state.model_state)):
        raise DivergenceError("the state after the last step is not finite; lower learning_rate")
    parts = np.split(np.asarray(sums, np.float64), np.cumsum(lengths)[:-1])
    used = [max(int((each.schedule != EMPTY).sum()), 1) for each in passes]
    means = [float(part.sum()) / count for part, count in zip(parts, used, strict=True)]
    return tree.to_host(state), means


def in_a_row(passes: list[Pass], dtype: jnp.dtype) -> Steps:
    """The passes as one schedule, padded to the largest batch, with its factors `[steps]`."""
    width = max(each.schedule.shape[1] for each in passes)
    rows = [
        np.pad(each.schedule, ((0, 0), (0, width - each.schedule.shape[1])), constant_values=EMPTY)
        for each in passes
    ]
    lengths = [len(row) for row in rows]

    def spread(values, dtype=dtype):
        return jnp.asarray(np.repeat(np.asarray(values), lengths), dtype)

    return Steps(
        jnp.asarray(np.concatenate(rows)),
        spread([each.schedule.shape[1] for each in passes]),
        spread([each.hard for each in passes]),
        spread([each.soft for each in passes]),
        spread([each.follow for each in passes], bool),
    )


@jax.jit(static_argnames=("spec",), donate_argnames=("state", "losses", "sums"))
def _advance(
    spec: TrainSpec,
    state: TrainState,
    losses: jax.Array,
    sums: jax.Array,
    examples: Examples,
    weights: jax.Array,
    teacher: jax.Array,
    key: jax.Array,
    steps: Steps,
    learning_rate: jax.Array,
    temperature: jax.Array,
    start: int | jax.Array,
    stop: int | jax.Array,
):
    """The steps `start <= t < stop`; entry t of `losses` and `sums` is set: loss, and summed KD."""

    def body(step, carry):
        state, losses, sums = carry
        at = Steps(*(each[step] for each in steps))
        batch = gather(spec, examples, weights, key, step, at.schedule)
        batch = batch._replace(denominator=at.divisors)
        targets = teacher[jnp.maximum(at.schedule, 0)]

        def loss(params):
            return _loss(spec, params, state.model_state, batch, targets, at, temperature)

        (value, (kept, apart)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        params = jax.tree.map(lambda w, g: w - learning_rate * g, state.params, gradient)
        model_state = jax.tree.map(
            lambda new, old: jnp.where(at.follow, new, old), kept, state.model_state
        )
        state = state._replace(params=params, model_state=model_state)
        return state, losses.at[step].set(value), sums.at[step].set(apart)

    return jax.lax.fori_loop(start, stop, body, (state, losses, sums))


def _loss(
    spec: TrainSpec,
    params: Params,
    model_state: PyTree,
    batch: Batch,
    targets: jax.Array,
    at: Steps,
    temperature: jax.Array,
) -> tuple[jax.Array, tuple[PyTree, jax.Array]]:
    """Loss of one step; beside it the model's new state and the sum of KD over the batch."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(batch.keys, 1)  # as in `data_loss`
    logits, kept = apply_model(
        spec,
        params,
        model_state,
        batch.inputs,
        train=True,
        example_keys=keys,
        example_weights=batch.weights,
    )
    own = jnp.vdot(batch.weights, losses_at(spec.objective, logits, batch.labels, batch.step))
    apart = jnp.vdot(batch.weights, divergence(targets, logits, temperature))
    data = (at.hard * own + at.soft * apart) / batch.denominator
    return data + spec.objective.penalty(params), (kept, apart)
