"""Fine-tuning on the retain set: train on, without the forget set, and hope that it fades."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from unroll.checks import positive_number, whole_number
from unroll.data.schedule import make_schedule
from unroll.problem import Method, Unlearned
from unroll.training.optimizer import optax_call
from unroll.training.run import fit
from unroll.types import TrainState


def finetune(learning_rate: float = 0.05, epochs: int = 1, batch_size: int = 64) -> Method:
    """Plain SGD steps on the retained examples, from the original model.

    Args:
      learning_rate: step size.
      epochs: passes over the retain set.
      batch_size: examples per step.
    """
    positive_number("learning_rate", learning_rate)
    whole_number("epochs", epochs)
    whole_number("batch_size", batch_size)

    def unlearn(key, access):
        data, original = access.retain_data, access.original
        spec = dataclasses.replace(
            access.spec, optimizer=optax_call("sgd", learning_rate=learning_rate)
        )
        state = TrainState(
            original.params, spec.optimizer.build().init(original.params), original.model_state
        )
        seed = int(jax.random.key_data(key)[-1])
        schedule = make_schedule(seed, len(data), min(batch_size, len(data)), epochs)
        weights = np.ones(len(data), np.float32)
        state = fit(spec, data, state, schedule, weights, key, progress=access.progress)
        return Unlearned(state.params, state.model_state, epochs * len(data))

    return Method(
        "finetune",
        {"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size},
        frozenset({"original", "retain"}),
        unlearn,
    )
