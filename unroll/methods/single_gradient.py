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
from unroll.data.dataset import Dataset
from unroll.errors import InputError
from unroll.problem import Method, Unlearned
from unroll.training.optimizer import sgd_rule
from unroll.training.run import Run
from unroll.training.spec import TrainSpec, apply_model
from unroll.types import Params


def single_gradient() -> Method:
    """Adds the forgotten examples' gradients at w_0, scaled by their total step sizes.

    Raises (when called):
      InputError: for an optimiser other than sgd, a `renormalise` denominator (the divisor of the
        twin differs, which no sum of gradients can express), augmentation or dropout (the gradient
        of an example is another one at every use), or a model with running statistics (an
        example's gradient depends on its batch).
    """

    def unlearn(key, access):
        del key
        run, ids = access.run, access.forget_ids
        check_assumptions(run)
        if not len(ids):
            return Unlearned(run.state.params, run.state.model_state, example_gradients=0)
        weights = step_size_per_example(run)[ids] * run.weights[ids]
        start = run.snapshots[0].params
        gradient = weighted_gradient(run.spec, start, run.dataset.take(ids), weights)
        params = jax.tree.map(lambda w, g: (w + g).astype(w.dtype), run.state.params, gradient)
        return Unlearned(params, run.state.model_state, example_gradients=len(ids))

    return Method("single_gradient", {}, frozenset({"run"}), unlearn)


def check_assumptions(run: Run) -> None:
    """Raises `InputError` if a gradient at w_0 cannot stand for those of the run."""
    spec = run.spec
    dropout = [name for name in ("dropout", "input_dropout") if getattr(spec.model, name, 0)]
    if dropout:
        raise InputError(f"single_gradient needs training without dropout; set {dropout[0]}=0.0")
    if run.state.model_state:
        raise InputError("single_gradient needs a model without batch normalisation; use group")
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
    spec: TrainSpec, params: Params, inputs: jax.Array, labels: jax.Array, weights: jax.Array
) -> Params:
    if spec.preprocess is not None:
        inputs = spec.preprocess(inputs)

    def weighted_loss(params):
        logits, _ = apply_model(spec, params, {}, inputs, train=True)
        return jnp.vdot(weights, spec.objective.example_losses(logits, labels))

    return jax.grad(weighted_loss)(params)


def weighted_gradient(
    spec: TrainSpec, params: Params, data: Dataset, weights: np.ndarray, batch_size: int = 256
) -> Params:
    """`sum_n weights[n] * grad loss(params; example n)`, without the penalties of the objective."""
    total = jax.tree.map(np.zeros_like, params)
    for begin in range(0, len(data), batch_size):
        part = slice(begin, begin + batch_size)
        gradient = _weighted_gradient(
            spec, params, data.inputs[part], data.labels[part], weights[part].astype(np.float32)
        )
        total = jax.tree.map(np.add, total, tree.to_host(gradient))
    return total
