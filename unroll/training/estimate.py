"""What a training will take, before it starts: bytes from XLA's plan, seconds from a few steps.

    bytes    = footprint(spec, dataset, schedule).program.total
    seconds  = step_seconds(spec, dataset, schedule) * number of steps

Both use the program that trains (`loop.advance` with the same shapes), so it is compiled once, and
the steps that are measured are thrown away: no result can depend on them.

Design: a measured step. Rejected: operations counted by XLA over the speed of the device; small
nets are bound by dispatch and memory, and come out ten times too fast.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unroll.checkpoint import Store
from unroll.data.dataset import Dataset
from unroll.training import loop
from unroll.training.memory import ProgramBytes, program_bytes, shapes, tree_bytes
from unroll.training.record import Record
from unroll.training.run import check_inputs, run_identity
from unroll.training.spec import TrainSpec, description_hash
from unroll.training.step import Examples, initial_state
from unroll.types import TrainState

_ENOUGH_SECONDS = 0.2
"""A stretch this long is measured well beside the cost of a call."""


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes of one training.

    Attributes:
      program: of the compiled loop, examples included.
      examples: of the training set on the device, which models trained together share.
      state: of one state, as a snapshot holds it.
      arguments: shapes of the arguments of `loop.advance` from the state on to the schedule.
    """

    program: ProgramBytes
    examples: int
    state: int
    arguments: tuple[Any, ...]

    @property
    def convolutions(self) -> bool:
        """Whether the model has any."""
        return any(len(leaf.shape) == 4 for leaf in jax.tree.leaves(self.arguments[0].params))


def argument_shapes(spec: TrainSpec, dataset: Dataset, schedule: np.ndarray) -> tuple[Any, ...]:
    """Shapes of what `loop.advance` takes: state, losses, examples, weights, key, schedule."""
    key = jax.random.key(0)
    first = jax.ShapeDtypeStruct((1, *dataset.example_shape), dataset.inputs.dtype)
    state: TrainState = jax.eval_shape(lambda inputs: initial_state(spec, key, inputs), first)
    return (
        state,
        jax.ShapeDtypeStruct((len(schedule),), jnp.float32),
        shapes(Examples(dataset.inputs, dataset.labels)),
        jax.ShapeDtypeStruct((len(dataset),), jnp.float32),
        shapes(key),
        jax.ShapeDtypeStruct(np.shape(schedule), jnp.int32),
    )


def footprint(spec: TrainSpec, dataset: Dataset, schedule: np.ndarray) -> Footprint:
    """Bytes of a training; compiles its program, executes and transfers nothing.

    Args:
      spec: how to train.
      dataset: the training set.
      schedule: int32 `[T, B]`.

    Raises:
      InputError: if schedule and training set do not fit together.
    """
    schedule, _ = check_inputs(spec, dataset, schedule, None)
    arguments = argument_shapes(spec, dataset, schedule)
    return Footprint(
        program_bytes(loop.advance, spec, *arguments, 0, 0),
        examples=tree_bytes(arguments[2]),
        state=tree_bytes(arguments[0]),
        arguments=arguments,
    )


def step_seconds(
    spec: TrainSpec,
    dataset: Dataset,
    schedule: np.ndarray,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one step, measured warm over about 0.2 s; the model is thrown away.

    Args:
      spec: how to train.
      dataset: the training set.
      schedule: int32 `[T, B]`.
      clock: seconds.

    Raises:
      InputError: if schedule and training set do not fit together.
    """
    schedule, weights = check_inputs(spec, dataset, schedule, None)
    key = jax.random.key(0)
    operands = loop.device_examples(dataset), jnp.asarray(weights), key, jnp.asarray(schedule)
    carry = initial_state(spec, key, dataset.inputs), jnp.zeros(len(schedule), jnp.float32)

    def advance_to(carry, begin, end):
        return jax.block_until_ready(loop.advance(spec, *carry, *operands, begin, end))

    return seconds_per_step(advance_to, carry, len(schedule), clock=clock)


def seconds_per_step(
    advance_to: Callable[[Any, int, int], Any],
    carry: Any,
    total: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of a step, from ever longer stretches until one lasts long enough or is the run.

    Args:
      advance_to: `(carry, start, stop) -> carry`, which returns when the steps are done. It is
        first called for no step at all, to be compiled.
      carry: what it starts from.
      total: steps of the run.
      clock: seconds.
    """
    carry = advance_to(carry, 0, 0)
    length = 1
    while True:
        begin = clock()
        carry = advance_to(carry, 0, length)
        seconds = clock() - begin
        if seconds >= _ENOUGH_SECONDS or length == total:
            return seconds / length
        length = min(2 * length, total)


def is_finished(
    store: Store | None,
    spec: TrainSpec,
    dataset: Dataset,
    schedule: np.ndarray,
    *,
    seed: int = 0,
    weights: np.ndarray | None = None,
    record: Record | None = None,
) -> bool:
    """Whether `train` with these arguments would find its result, snapshots included, in the store.

    What lies there is not read; a damaged entry shows only when it is.
    """
    if store is None:
        return False
    schedule, weights = check_inputs(spec, dataset, schedule, weights)
    wanted = (record or Record()).snapshot_steps(len(schedule))
    identity = run_identity(spec, dataset, seed, schedule, weights)
    return {*wanted} - {0} <= set(store.steps(description_hash(identity)))
