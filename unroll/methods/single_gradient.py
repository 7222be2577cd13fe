"""Single-gradient unlearning at w_0 (Thudi et al., *Unrolling SGD*, arXiv 2109.13398, section 4).

The paper adds back what plain SGD took out along the forget batch, with the gradient frozen at the
initial weights:

    w'' = w_t + (eta m / b) sum_{x in x_f} grad L(w_0; x)

for a forget batch of size b seen once in each of m epochs. Here every forgotten example may sit
anywhere in the schedule, any number of times, among others:

    w'' = w_T + sum_t E_t (1/B) sum_{x in x_f and batch t} grad loss(w_0; x)

with E_t the total step size of a gradient that enters at step t: eta_t for plain SGD, and
`sum_{s>=t} eta_s mu^(s-t)` with momentum, since the trace keeps applying it (see
`SGDRule.total_step_sizes`). Curvature is ignored altogether; that is the method, and the reason
why it ends farther away than doing nothing once eta * t * sigma is large.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from unroll import tree
from unroll.errors import InputError
from unroll.problem import Method, Unlearned
from unroll.training.optimizer import sgd_rule
from unroll.training.run import Run
from unroll.training.spec import TrainSpec
from unroll.training.step import Batch, Examples, batch_loss, gather
from unroll.types import Params, TrainState


def single_gradient() -> Method:
    """Adds the forgotten examples' gradients at w_0, scaled by their total step sizes.

    Raises (when called):
      InputError: for an optimiser other than sgd, a `renormalise` denominator (the divisor of the
        twin differs, which no sum of gradients can express), or augmentation (the gradient of an
        augmented example is another one at every use).
    """

    def unlearn(key, access):
        del key
        run, ids = access.run, access.forget_ids
        _check(run.spec)
        coefficients = step_size_per_example(run)[ids] * run.weights[ids]
        gradient = weighted_gradient(run.spec, run, run.snapshots[0], ids, coefficients)
        params = jax.tree.map(lambda w, g: (w + g).astype(w.dtype), run.state.params, gradient)
        return Unlearned(params, run.state.model_state, example_gradients=len(ids))

    return Method("single_gradient", {}, frozenset({"run"}), unlearn)


def _check(spec: TrainSpec) -> None:
    if spec.denominator != "batch":
        raise InputError("single_gradient needs TrainSpec(denominator='batch')")
    if spec.augmentation is not None:
        raise InputError("single_gradient needs training without augmentation")


def step_size_per_example(run: Run) -> np.ndarray:
    """Sum over the uses of each example of its total step size over the batch size, `[N]`."""
    filled = run.schedule >= 0
    sizes = sgd_rule(run.spec.optimizer, run.steps).total_step_sizes()
    per_use = sizes / run.schedule.shape[1]
    total = np.zeros(len(run.dataset))
    np.add.at(total, run.schedule[filled], np.broadcast_to(per_use[:, None], filled.shape)[filled])
    return total


@jax.jit(static_argnames=("spec",))
def _weighted_gradient(
    spec: TrainSpec, state: TrainState, examples: Examples, weights: jax.Array, key: jax.Array
) -> Params:
    slots = jnp.arange(len(weights))
    batch: Batch = gather(spec, examples, weights, key, jnp.zeros((), jnp.int32), slots)
    batch = batch._replace(denominator=jnp.ones_like(batch.denominator))

    def example_part(params):
        return batch_loss(spec, params, state.model_state, batch)[0] - spec.objective.penalty(
            params
        )

    return jax.grad(example_part)(state.params)


def weighted_gradient(
    spec: TrainSpec,
    run: Run,
    state: TrainState,
    ids: np.ndarray,
    coefficients: np.ndarray,
    batch_size: int = 256,
) -> Params:
    """`sum_n coefficients[n] * grad loss(state; example ids[n])`, without the penalties."""
    data = run.dataset
    total = jax.tree.map(np.zeros_like, state.params)
    for begin in range(0, len(ids), batch_size):
        chosen = ids[begin : begin + batch_size]
        examples = Examples(jnp.asarray(data.inputs[chosen]), jnp.asarray(data.labels[chosen]))
        weights = jnp.asarray(coefficients[begin : begin + batch_size], jnp.float32)
        part = _weighted_gradient(spec, state, examples, weights, run.key)
        total = jax.tree.map(np.add, total, tree.to_host(part))
    return total
