"""Iterating the step: one compiled loop for any stretch of a run, and two other forms of it.

`advance` is a `lax.fori_loop` whose bounds are arguments. One executable therefore serves every
stretch `[start, stop)` of a run, whatever snapshots, progress reports or a kill cut it into, and
the bits cannot depend on the cut. With `lax.scan` each length compiles anew, and a scan of length 1
is inlined and fused differently.

`scan_steps` is the same loop as a `lax.scan`: slower to cut, but open to reverse mode.
`advance_stepwise` is a Python loop over the jitted step, for debugging.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unroll.data.dataset import Dataset
from unroll.errors import DivergenceError
from unroll.training.spec import TrainSpec
from unroll.training.step import Examples, train_step
from unroll.training.timing import Stopwatch
from unroll.types import TrainState

_CHUNK_SECONDS = 0.5


@functools.lru_cache(maxsize=4)
def device_examples(dataset: Dataset) -> Examples:
    """The dataset's inputs and labels on the default device, transferred once."""
    return Examples(jnp.asarray(dataset.inputs), jnp.asarray(dataset.labels))


@jax.jit(static_argnames=("spec",), donate_argnames=("state", "losses"))
def advance(
    spec: TrainSpec,
    state: TrainState,
    losses: jax.Array,
    examples: Examples,
    weights: jax.Array,
    key: jax.Array,
    schedule: jax.Array,
    start: int | jax.Array,
    stop: int | jax.Array,
) -> tuple[TrainState, jax.Array]:
    """Runs the steps `start <= t < stop`.

    Args:
      spec: what to train.
      state: state before step `start`; its buffers are donated.
      losses: `[T]`; entry t is set to the training loss before step t; donated.
      examples: the training set on the device.
      weights: `[N]` example weights.
      key: typed key of the run.
      schedule: int32 `[T, B]` example ids, -1 for empty slots.
      start: first step.
      stop: step after the last.
    """

    def body(step, carry):
        state, losses = carry
        state, loss = train_step(spec, state, examples, weights, key, step, schedule[step])
        return state, losses.at[step].set(loss)

    return jax.lax.fori_loop(start, stop, body, (state, losses))


def scan_steps(
    spec: TrainSpec,
    state: TrainState,
    examples: Examples,
    weights: jax.Array,
    key: jax.Array,
    schedule: jax.Array,
    start: int = 0,
) -> tuple[TrainState, jax.Array]:
    """The steps from `start` to the end as one `lax.scan`; pure and reverse-differentiable.

    Returns the final state and the training losses `[T - start]`. Arguments as in `advance`.
    """
    schedule = jnp.asarray(schedule)

    def body(state, step):
        return train_step(spec, state, examples, weights, key, step, schedule[step])

    return jax.lax.scan(body, state, jnp.arange(start, len(schedule)))


_jitted_step = jax.jit(train_step, static_argnames=("spec",))


def advance_stepwise(
    spec: TrainSpec,
    state: TrainState,
    losses: jax.Array,
    examples: Examples,
    weights: jax.Array,
    key: jax.Array,
    schedule: jax.Array,
    start: int,
    stop: int,
) -> tuple[TrainState, jax.Array]:
    """`advance` as a Python loop over the jitted step."""
    losses = np.array(losses)
    for step in range(start, stop):
        state, losses[step] = _jitted_step(
            spec, state, examples, weights, key, jnp.asarray(step), schedule[step]
        )
    return state, losses


def chunks(
    advance_to: Callable[[Any, int, int], Any],
    carry: Any,
    start: int,
    total: int,
    boundaries: tuple[int, ...] = (),
) -> Iterator[tuple[int, Any]]:
    """Yields `(position, carry)` about twice a second, and exactly at each boundary.

    Args:
      advance_to: `(carry, start, stop) -> carry`, for example around `advance`.
      carry: state before step `start`.
      start: first step.
      total: step after the last.
      boundaries: steps that must be stopped at.
    """
    stops = sorted({stop for stop in (*boundaries, total) if start < stop <= total})
    position, length = start, 4
    for boundary in stops:
        while position < boundary:
            stop = min(boundary, position + length)
            watch = Stopwatch()
            carry = jax.block_until_ready(advance_to(carry, position, stop))
            per_step = max(watch.seconds() / (stop - position), 1e-6)
            length = int(np.clip(_CHUNK_SECONDS / per_step, length // 4 + 1, length * 4))
            position = stop
            yield position, carry


def check_losses(losses: jax.Array | np.ndarray, start: int, stop: int, context: str = "") -> None:
    """Raises `DivergenceError` that names the first step whose training loss is not finite."""
    finite = np.isfinite(np.asarray(losses[start:stop]))
    if not finite.all():
        step = start + int(np.argmin(finite))
        raise DivergenceError(
            f"training diverged{context}: the loss of step {step} is not finite; "
            "lower the learning rate or clip the gradients"
        )
