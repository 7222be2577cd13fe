"""Names for the values that travel through the library."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray
PyTree = Any
Params = PyTree
"""A pytree of floating-point arrays, as flax.linen's `init` returns under `"params"`."""


class TrainState(NamedTuple):
    """Everything that one training step changes.

    Attributes:
      params: trainable parameters.
      opt_state: state of the optax transformation.
      model_state: the other variable collections of the model, for example `batch_stats`; an empty
        dict for most models.
      objective_state: memory of an objective that has one (the vector of the singular-value
        penalty, like `params`); else an empty tuple, which has no leaves.
    """

    params: Params
    opt_state: PyTree
    model_state: PyTree
    objective_state: PyTree = ()
