"""The gradient of the examples to forget, frozen at one point of a run with plain SGD.

    sum_n c_n grad loss(w; example n)

With c_n the sum of the step responses of its uses (`step_response`) this is what single-gradient
unlearning adds back (arXiv 2109.13398, section 4).

Design: one number per example, so that any stretch of a run costs one gradient per forgotten
example. Rejected: a loop over the steps, which evaluates the same frozen gradient at every use.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unroll import tree
from unroll.data.dataset import Dataset
from unroll.errors import InputError
from unroll.objectives import losses_at
from unroll.training.optimizer import SGDRule, sgd_rule
from unroll.training.run import Run
from unroll.training.spec import TrainSpec, apply_model
from unroll.types import Params


def check_assumptions(run: Run, name: str) -> None:
    """Refuses runs whose gradients are not functions of the weights and of one example alone.

    Args:
      run: the recorded run.
      name: what needs this, for the message.

    Raises:
      InputError: with dropout or augmentation (an example's gradient is another one at every use),
        running statistics (it depends on its batch), a penalty that decays along the run, or a
        `renormalise` denominator (the divisor of the twin differs, which no sum of gradients can
        express).
    """
    spec = run.spec
    dropout = [field for field in ("dropout", "input_dropout") if getattr(spec.model, field, 0)]
    if dropout:
        raise InputError(f"{name} needs training without dropout; set {dropout[0]}=0.0")
    if run.state.model_state:
        raise InputError(f"{name} needs a model without batch normalisation; use group")
    if spec.denominator != "batch":
        raise InputError(f"{name} needs TrainSpec(denominator='batch')")
    if spec.augmentation is not None:
        raise InputError(f"{name} needs training without augmentation")
    check_constant_objective(spec, name)


def check_constant_objective(spec: TrainSpec, name: str) -> None:
    """Raises `InputError` if a penalty per example decays along the run; `name` is who asks."""
    decays = getattr(spec.objective, "sd_decay", 1.0) != 1.0
    if decays and spec.objective.sd_gamma:
        raise InputError(f"{name} needs an objective that stays the same; set sd_decay=1.0")


def sgd_of_run(run: Run, stop: int | None = None) -> SGDRule:
    """Learning rates `[stop]` of the steps before `stop` (by default all) and the momentum.

    A run that began from a given state goes on in the learning-rate schedule where that state's
    counter stands.

    Raises:
      InputError: for an optimiser other than sgd.
    """
    stop = run.steps if stop is None else stop
    sgd_rule(run.spec.optimizer, 0)  # refuses others, whose states may hold several counters
    begun = int(optax.tree_utils.tree_get(run.snapshots[0].opt_state, "count", default=0))
    rule = sgd_rule(run.spec.optimizer, begun + stop)
    return dataclasses.replace(rule, learning_rates=rule.learning_rates[begun:])


@jax.jit(static_argnames=("spec",))
def _weighted_gradient(
    spec: TrainSpec, params: Params, inputs: jax.Array, labels: jax.Array, weights: jax.Array
) -> Params:
    if spec.preprocess is not None:
        inputs = spec.preprocess(inputs)

    def weighted_loss(params):
        logits, _ = apply_model(spec, params, {}, inputs, train=True)
        return jnp.vdot(weights, losses_at(spec.objective, logits, labels))

    return jax.grad(weighted_loss)(params)


def weighted_gradient(
    spec: TrainSpec, params: Params, data: Dataset, weights: np.ndarray, batch_size: int = 256
) -> Params:
    """`sum_n weights[n] * grad loss(params; example n)`, without what no example owns: l2
    and other penalties of the parameters, and the singular-value penalty.

    Args:
      spec: what was trained.
      params: where the gradients are taken.
      data: n examples.
      weights: `[n]`, any sign.
      batch_size: examples evaluated at once.

    Returns:
      A tree of host arrays like `params`.
    """
    total = jax.tree.map(np.zeros_like, params)
    precision = jnp.result_type(*jax.tree.leaves(params))
    for begin in range(0, len(data), batch_size):
        part = slice(begin, begin + batch_size)
        gradient = _weighted_gradient(
            spec, params, data.inputs[part], data.labels[part], weights[part].astype(precision)
        )
        total = jax.tree.map(np.add, total, tree.to_host(gradient))
    return total
