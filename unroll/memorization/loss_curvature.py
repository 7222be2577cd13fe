"""Loss curvature in the inputs: how much the slope of an example's loss changes close by.

    || grad_x [L(x + z) - L(x)] ||_2,    z = h sign(grad_x L) / || sign(grad_x L) ||_2

It is `|| H z ||` of the Hessian H in the inputs for a loss that is quadratic along z: a finite
difference in one direction (CURE, arXiv 1811.09716). Averaged over training it grows with
memorization (Garg, Ravikumar and Roy, arXiv 2307.05831). As in the code for arXiv 2410.16516 the
result is not divided by h.

x is what the model sees, after `TrainSpec.preprocess`. Where that divides by a standard deviation
s, a step of h there is one of h s in pixels on the scale from 0 to 1.

Design: evaluation mode at the recorded states after the first, whose mean stands for the mean over
training. Rejected: the batches of the training loop, as in the reference; every step would take
more than twice its gradients, and augmentation would be part of the curvature.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from unroll.checks import positive_number, whole_number
from unroll.data.dataset import Dataset
from unroll.errors import InputError
from unroll.memorization.subject import INPUT_GRADIENT, Measurement, Proxy
from unroll.training.run import Progress
from unroll.training.spec import TrainSpec, apply_model
from unroll.types import Params, PyTree, TrainState


def loss_curvature(h: float = 0.01, final: bool = False, batch_size: int = 256) -> Proxy:
    """Change of the input gradient over a step of length h; grows with memorization.

    Args:
      h: length of the step, in the units of the model's inputs.
      final: at the last state alone; else the mean over the recorded states after the first.
      batch_size: examples at a time; the result does not depend on it.
    """
    positive_number("h", h)
    whole_number("batch_size", batch_size)

    def measure(subject, progress):
        run = subject.run
        steps = [run.steps] if final else [step for step in run.snapshots if step]
        total = 0.0
        for index, step in enumerate(steps, start=1):
            state = run.state if step == run.steps else run.snapshots[step]
            total = total + input_curvature(run.spec, state, run.dataset, h, batch_size)
            if progress is not None:
                progress(index, len(steps))
        cost = 2 * INPUT_GRADIENT * len(steps) * len(run.dataset)
        return Measurement(total / len(steps), cost, {"states": len(steps)})

    return Proxy("loss_curvature", {"h": h, "final": final}, 1, frozenset(), measure)


def input_curvature(
    spec: TrainSpec,
    state: TrainState,
    dataset: Dataset,
    h: float = 0.01,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> np.ndarray:
    """The formula of the module docstring for every example, float64 `[N]`.

    Args:
      spec: how the model was trained.
      state: where the loss is taken; parameters and the model's other variables are read.
      dataset: N examples.
      h: length of the step.
      batch_size: examples at a time.
      progress: called with (examples done, examples in all).

    Raises:
      InputError: if the inputs are tokens, which have no gradient, or raw images come without
        `preprocess`.
    """
    if spec.preprocess is None and not np.issubdtype(dataset.inputs.dtype, np.floating):
        raise InputError(
            f"loss curvature needs inputs that can be moved, but {dataset.name} holds "
            f"{dataset.inputs.dtype}; leave the proxy out, or set TrainSpec(preprocess=...)"
        )
    size, count = min(batch_size, len(dataset)), len(dataset)
    params, model_state = jax.device_put((state.params, state.model_state))
    results = np.zeros(count)
    for begin in range(0, count, size):
        # The last batch reaches back, so that one program serves all.
        part = slice(min(begin, count - size), min(begin, count - size) + size)
        inputs, labels = jnp.asarray(dataset.inputs[part]), jnp.asarray(dataset.labels[part])
        results[part] = _curvature(spec, params, model_state, inputs, labels, h)
        if progress is not None:
            progress(part.stop, count)
    return results


@jax.jit(static_argnames=("spec",))
def _curvature(
    spec: TrainSpec,
    params: Params,
    model_state: PyTree,
    inputs: jax.Array,
    labels: jax.Array,
    h: float,
) -> jax.Array:
    if spec.preprocess is not None:
        inputs = spec.preprocess(inputs)

    def slope(inputs):
        # In evaluation mode examples do not meet, so the gradient of the sum holds that of each.
        def total(inputs):
            logits, _ = apply_model(spec, params, model_state, inputs, train=False)
            return spec.objective.example_losses(logits, labels).sum()

        return jax.grad(total)(inputs)

    gradient = slope(inputs)
    sign = jnp.sign(gradient)
    length = _norms(sign)
    # Where the gradient is 0 there is no direction: z = 0.
    scale = h / jnp.where(length > 0, length, 1.0)
    step = sign * scale.reshape(-1, *[1] * (inputs.ndim - 1))
    return _norms(slope(inputs + step) - gradient)


def _norms(array: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.square(array).sum(axis=tuple(range(1, array.ndim))))
