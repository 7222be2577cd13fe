"""Logits of a trained model, in evaluation mode."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from unroll.data.dataset import Dataset
from unroll.training.spec import TrainSpec, apply_model
from unroll.types import Params, PyTree


@jax.jit(static_argnames=("spec",))
def _logits(spec: TrainSpec, params: Params, model_state: PyTree, inputs: jax.Array) -> jax.Array:
    if spec.preprocess is not None:
        inputs = spec.preprocess(inputs)
    return apply_model(spec, params, model_state, inputs, train=False)[0]


def predict(
    spec: TrainSpec,
    params: Params,
    model_state: PyTree,
    dataset: Dataset,
    batch_size: int = 500,
) -> np.ndarray:
    """Logits `[N, C]` float32 without augmentation or dropout; reads, never changes, the state.

    The last batch is padded by repeating an example, so one program serves all batches.
    """
    size = min(batch_size, len(dataset))
    results = []
    for begin in range(0, len(dataset), size):
        inputs = dataset.inputs[begin : begin + size]
        missing = size - len(inputs)
        if missing:
            inputs = np.concatenate([inputs, np.repeat(inputs[-1:], missing, axis=0)])
        logits = np.asarray(_logits(spec, params, model_state, jnp.asarray(inputs)), np.float32)
        results.append(logits[: size - missing])
    return np.concatenate(results)
