"""TracIn: attribution by gradient products at the snapshots, none of the run's curvature.

    G[m, n] = - sum_k c_k[n] grad metric_m(w_k) . grad loss_n(w_k)

TracInCP of arXiv 2002.08484, with c_k[n] for its step sizes. c_k[n] adds up how far the gradient of
example n, wherever it is used between snapshot k and the next, moves the final weights without
curvature: learning rate / B, and more with momentum. It is the metagradient with every later step
replaced by the identity, and the baseline that a metagradient has to beat.

Design: derivatives of all example losses along each metric's gradient, one pass forward for each.
Rejected: a gradient per example, to be multiplied with each metric's: it must be held or redone.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from unroll.errors import InputError
from unroll.training.run import Run
from unroll.training.spec import TrainSpec
from unroll.training.timing import Stopwatch
from unroll.types import Params, PyTree, TrainState
from unroll.unrolling.forget_gradient import check_constant_objective, sgd_of_run
from unroll.unrolling.metagradients import Attribution
from unroll.unrolling.outcomes import (
    Metric,
    as_sequence,
    evaluate,
    example_losses,
    metric_names,
    values_and_gradients,
)


def tracin(run: Run, metrics: Metric | Sequence[Metric], batch_size: int = 500) -> Attribution:
    """Estimates derivatives in the example weights; formula and source in the module docstring.

    Losses are taken in evaluation mode, without augmentation. A directional derivative of an
    example's loss counts as one gradient.

    Args:
      run: the recorded run.
      metrics: as in `metagradients`.
      batch_size: examples per product.

    Raises:
      InputError: for an optimiser other than plain sgd, whose steps are no multiple of gradients,
        a penalty that decays along the run, or the denominator `renormalise`.
    """
    scales, metrics = _use_scales(run), as_sequence(metrics)
    watch = Stopwatch()
    recorded = [step for step in run.snapshots if step < run.steps]
    total, cost = 0.0, 0
    for begin, end in zip(recorded, [*recorded[1:], run.steps], strict=True):
        state = run.snapshots[begin]
        _, gradients = values_and_gradients(metrics, state)
        used = np.unique(run.schedule[begin:end])
        used = used[used >= 0]
        coefficients = np.zeros(len(run.weights))
        slots = run.schedule[begin:end]
        np.add.at(coefficients, slots[slots >= 0], scales[begin:end][slots >= 0])
        products = _gradient_products(run, state, gradients.params, used, batch_size)
        change = np.zeros((len(products), len(run.weights)))
        change[:, used] = -coefficients[used] * products
        total = total + change
        cost += products.size + sum(getattr(metric, "example_gradients", 0) for metric in metrics)
    return Attribution(
        metric_names(metrics, len(total)),
        evaluate(metrics, run.state),
        total,
        example_gradients=cost,
        seconds=watch.seconds(),
        training_example_gradients=run.example_gradients,
        training_seconds=run.seconds,
    )


def _use_scales(run: Run) -> np.ndarray:
    """`[T, B]` how far a gradient in a slot moves the final weights, curvature apart."""
    rates = sgd_of_run(run).total_step_sizes()
    check_constant_objective(run.spec, "tracin")
    if run.spec.denominator != "batch":
        raise InputError(
            "tracin needs denominator='batch': under 'renormalise' the weight of one example "
            "changes the shares of all others"
        )
    filled = run.schedule >= 0
    return np.where(filled, (rates / run.schedule.shape[1])[:, None], 0.0)


def _gradient_products(
    run: Run, state: TrainState, directions: Params, ids: np.ndarray, batch_size: int
) -> np.ndarray:
    """Product of each direction with each example's loss gradient, `[M, len(ids)]`."""
    size = min(batch_size, len(ids))
    padded = np.concatenate([ids, np.repeat(ids[-1:], -len(ids) % size)])
    parts = [
        _directional_losses(
            run.spec,
            state.params,
            state.model_state,
            directions,
            run.dataset.inputs[batch],
            run.dataset.labels[batch],
        )
        for batch in padded.reshape(-1, size)
    ]
    return np.concatenate(parts, axis=1)[:, : len(ids)].astype(np.float64)


@jax.jit(static_argnames=("spec",))
def _directional_losses(
    spec: TrainSpec,
    params: Params,
    model_state: PyTree,
    directions: Params,
    inputs: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    """Derivative of each example's loss along each direction, `[M, n]`: one pass forward each."""

    def losses(params):
        state = TrainState(params, (), model_state)
        return example_losses(spec, state, jnp.asarray(inputs), labels)

    return jax.lax.map(lambda along: jax.jvp(losses, (params,), (along,))[1], directions)
