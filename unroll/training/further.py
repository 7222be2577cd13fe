"""Training on from a model: what many unlearning methods do in one form or another."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from unroll.data.dataset import Dataset
from unroll.data.schedule import make_schedule
from unroll.training.optimizer import optax_call
from unroll.training.run import Progress, fit
from unroll.training.spec import TrainSpec
from unroll.training.step import start_state
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
      progress: called with (steps done, steps in all).

    Raises:
      DivergenceError: if a loss or the final state is not finite.
    """
    optimizer = optax_call("sgd", learning_rate=learning_rate)
    spec = dataclasses.replace(spec, optimizer=optimizer, denominator="batch")
    start = start_state(spec, key, state.params, state.model_state)
    seed = int(jax.random.key_data(key)[-1])
    schedule = make_schedule(seed, len(data), min(batch_size, len(data)), epochs)
    weights = np.full(len(data), weight, np.float32)
    return fit(spec, data, start, schedule, weights, key, progress=progress)
