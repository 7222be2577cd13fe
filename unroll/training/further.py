"""Training on from a model: what many unlearning methods do in one form or another."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from unroll.data.dataset import Dataset
from unroll.data.schedule import make_schedule
from unroll.training.optimizer import optax_call
from unroll.training.projection import Bases, iterate_projected
from unroll.training.run import Progress, fit
from unroll.training.spec import TrainSpec
from unroll.training.step import start_state
from unroll.tree import to_host
from unroll.types import TrainState


def further_sgd(
    spec: TrainSpec,
    state: TrainState,
    data: Dataset,
    weight: float,
    key: jax.Array,
    *,
    learning_rate: float,
    epochs: int,
    batch_size: int,
    bases: Bases | None = None,
    progress: Progress | None = None,
) -> TrainState:
    """Plain SGD from the parameters of `state`, with a fresh optimiser and a schedule of its own.

    Args:
      spec: model, objective and augmentation; its optimiser and denominator are not used.
      state: where to start.
      data: what to train on.
      weight: weight of every example: 1 descends their loss, -1 ascends it.
      key: typed key; it seeds the schedule and the noise.
      learning_rate: step size.
      epochs: passes over the data.
      batch_size: examples per step, at most those that there are.
      bases: what the steps must stay out of; leaves without a basis do not move then.
      progress: called with (steps done, steps in all).

    Raises:
      DivergenceError: if a loss or the final state is not finite.
    """
    optimizer = optax_call("sgd", learning_rate=learning_rate)
    spec = dataclasses.replace(spec, optimizer=optimizer, denominator="batch")
    start = start_state(spec, key, state.params, state.model_state)
    schedule = make_schedule(key_seed(key), len(data), min(batch_size, len(data)), epochs)
    if bases is not None:
        steps = iterate_projected(spec, start, data, weight, key, schedule, bases, train=True)
        for position, start in steps:  # noqa: B007
            if progress is not None:
                progress(position, len(schedule))
        return to_host(start)
    weights = np.full(len(data), weight, np.float32)
    return fit(spec, data, start, schedule, weights, key, progress=progress)


def key_seed(key: jax.Array) -> int:
    """A seed for a schedule, from a typed key."""
    return int(jax.random.key_data(key)[-1])
