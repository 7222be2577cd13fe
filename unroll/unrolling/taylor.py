"""Taylor expansion of a whole training run in the example weights, along the trajectory.

A run is a function F of its example weights. Along `omega(eps) = omega + eps * direction` every
state of the run has a Taylor series in eps,

    s_t(eps) = c_0[t] + c_1[t] eps + c_2[t] eps^2 + ...,

and one step maps the coefficients at t to those at t + 1:

    c_k[t+1] = (1/k!) d^k/d eps^k  step(sum_j c_j[t] eps^j, omega + eps * direction)  at eps = 0.

With `direction = -omega` on the forget set, the sum of the coefficients at eps = 1 is the model
retrained without it, up to the truncation. Order 1 is the exact linearisation of training; with
plain SGD it is the recursion `d <- (I - eta H_t) d + eta g_forget` of arXiv 2404.01712, summed over
the forget set. Unlike the expansion of *Unrolling SGD* (arXiv 2109.13398), which freezes gradients
at w_0, each Hessian is taken where training was.

Design: the nested forward derivative of ONE step inside the loop. Memory is K + 1 states whatever
the number of steps, and every optimiser, penalty and normalisation comes along since the step is
differentiated whole. Rejected: nested jvp of the whole run (two to four times slower, one more
compiled loop per order) and `jax.experimental.jet` (no rules for relu, max pooling and scan).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unroll import tree
from unroll.checks import whole_number
from unroll.data.schedule import first_use
from unroll.errors import DivergenceError, InputError
from unroll.training import loop
from unroll.training.run import Progress, Run
from unroll.training.spec import TrainSpec
from unroll.training.step import Examples, train_step
from unroll.types import TrainState
from unroll.unrolling.differentiability import refuse_half_precision_of


def derivatives(function, order: int):
    """Derivatives 0 to `order` of a function of one scalar, in one nested forward pass.

    Args:
      function: scalar to a pytree of floating-point arrays.
      order: highest derivative.

    Returns:
      A function of the scalar that returns the list `[f, f', ..., f^(order)]`.
    """
    if order == 0:
        return lambda x: [function(x)]
    lower = derivatives(function, order - 1)

    def higher(x):
        values, tangents = jax.jvp(lower, (x,), (jnp.ones_like(x),))
        return [*values, tangents[-1]]

    return higher


def _split(state: TrainState) -> tuple[list[jax.Array], list[jax.Array], object]:
    """Floating-point leaves, other leaves (step counters), and how to join them again."""
    leaves, structure = jax.tree.flatten(state)
    floating = [tree.is_floating(leaf) for leaf in leaves]

    def join(moving, fixed):
        moving, fixed = iter(moving), iter(fixed)
        return structure.unflatten([next(moving if f else fixed) for f in floating])

    moving = [leaf for leaf, f in zip(leaves, floating, strict=True) if f]
    fixed = [leaf for leaf, f in zip(leaves, floating, strict=True) if not f]
    return moving, fixed, join


def taylor_step(
    spec: TrainSpec,
    coefficients: list[TrainState],
    examples: Examples,
    weights: jax.Array,
    direction: jax.Array,
    key: jax.Array,
    step: jax.Array,
    slots: jax.Array,
) -> list[TrainState]:
    """Maps the Taylor coefficients `[c_0, ..., c_K]` before a step to those after it.

    Integer leaves (step counters) do not depend on the weights: c_0 carries them, and the higher
    coefficients hold copies that mean nothing.
    """
    order = len(coefficients) - 1
    parts = [_split(state) for state in coefficients]
    moving = [part[0] for part in parts]
    _, fixed, join = parts[0]

    def step_at(epsilon):
        powers = [1.0, *(epsilon**k for k in range(1, order + 1))]
        leaves = [
            sum((p * leaf for p, leaf in zip(powers[1:], series[1:], strict=True)), series[0])
            for series in zip(*moving, strict=True)
        ]
        after, _ = train_step(
            spec, join(leaves, fixed), examples, weights + epsilon * direction, key, step, slots
        )
        return _split(after)[0]

    series = derivatives(step_at, order)(jnp.zeros((), weights.dtype))
    after, _ = train_step(spec, join(moving[0], fixed), examples, weights, key, step, slots)
    fixed_after = _split(after)[1]
    return [
        join([leaf / math.factorial(k) for leaf in derivative], fixed_after)
        for k, derivative in enumerate(series)
    ]


@jax.jit(static_argnames=("spec",), donate_argnames=("coefficients",))
def advance_taylor(
    spec: TrainSpec,
    coefficients: list[TrainState],
    examples: Examples,
    weights: jax.Array,
    direction: jax.Array,
    key: jax.Array,
    schedule: jax.Array,
    start: int | jax.Array,
    stop: int | jax.Array,
) -> list[TrainState]:
    """The steps `start <= t < stop` of the coefficients; arguments as in `loop.advance`."""

    def body(step, coefficients):
        return taylor_step(
            spec, coefficients, examples, weights, direction, key, step, schedule[step]
        )

    return jax.lax.fori_loop(start, stop, body, coefficients)


def zeros_like_state(state: TrainState) -> TrainState:
    """A coefficient that is zero, with the integer leaves of the state."""
    return jax.tree.map(
        lambda leaf: np.zeros_like(leaf) if tree.is_floating(leaf) else leaf,
        state,
    )


def taylor_coefficients(
    run: Run,
    direction: np.ndarray,
    order: int,
    *,
    start: int = 0,
    progress: Progress | None = None,
) -> list[TrainState]:
    """Taylor coefficients of the final state along a direction in the example weights.

    Args:
      run: the recorded run; `start` must be one of its recorded steps.
      direction: `[N]` change of the example weights per unit of eps.
      order: highest order K, at least 1.
      start: a recorded step not after the first use of an example with non-zero direction. Up to
        there the run does not depend on eps, so the coefficients start as zeros.
      progress: called with (steps done, steps in all).

    Returns:
      `[c_0, ..., c_K]` on the host; c_0 is the run's own final state, bit for bit where jax keeps
      the primal of a jvp unchanged.

    Raises:
      InputError: on an order below 1, a direction that acts before `start`, or a run that computes
        in less than float32.
      DivergenceError: if a coefficient is not finite.
    """
    whole_number("order", order)
    refuse_half_precision_of(run, "a Taylor series")
    moved = np.flatnonzero(direction)
    if np.isin(run.schedule[:start], moved).any():
        raise InputError(
            f"step {start} is after the first use of the examples to move; "
            "start from an earlier snapshot"
        )
    state = run.snapshots[start]
    # Copies, since the loop is donated the typed keys of all of them.
    coefficients = [tree.to_host(c) for c in (state, *[zeros_like_state(state)] * order)]
    examples = loop.device_examples(run.dataset)
    weights = jnp.asarray(run.weights)
    change = jnp.asarray(direction, weights.dtype)
    schedule = jnp.asarray(run.schedule)

    def advance_to(carry, begin, end):
        return advance_taylor(
            run.spec, carry, examples, weights, change, run.key, schedule, begin, end
        )

    latest = coefficients
    for position, latest in loop.chunks(advance_to, coefficients, start, run.steps):  # noqa: B007
        _check_finite(run.spec, latest, position)
        if progress is not None:
            progress(position - start, run.steps - start)
    return [tree.to_host(coefficient) for coefficient in latest]


def _check_finite(spec: TrainSpec, coefficients: list[TrainState], position: int) -> None:
    for k, state in enumerate(coefficients):
        if not tree.is_finite(state):
            hint = (
                "adam's square root has no derivative where a gradient is exactly 0: train with "
                "eps_root=1e-8"
                if "adam" in str(spec.optimizer)
                else "the series diverges here: choose a lower order, a smaller forget set or a "
                "lower learning rate"
            )
            raise DivergenceError(
                f"Taylor coefficient {k} is not finite before step {position}; {hint}"
            )


def sum_series(coefficients: list[TrainState], epsilon: float = 1.0) -> TrainState:
    """The truncated series at eps: `sum_k c_k eps^k`, integer leaves from c_0."""

    def total(*leaves: np.ndarray) -> np.ndarray:
        if not tree.is_floating(leaves[0]):
            return leaves[0]
        series = sum(np.asarray(leaf, np.float64) * epsilon**k for k, leaf in enumerate(leaves))
        return series.astype(leaves[0].dtype)

    return jax.tree.map(total, *coefficients)


def last_term_norm(coefficients: list[TrainState]) -> float:
    """Norm of the last term's parameters: an a-posteriori guess of the truncation error."""
    return tree.norm(coefficients[-1].params)


class Removal(NamedTuple):
    """The series of a removal.

    Attributes:
      coefficients: as of `taylor_coefficients`.
      start: step of the snapshot that it was expanded from.
      example_gradients: what it cost. A step costs (K + 1)(K + 2)/2 gradients: a product of two
        series up to order K has that many terms (1 + 2 for order 1: a gradient and a
        Hessian-vector product).
    """

    coefficients: list[TrainState]
    start: int
    example_gradients: float


def removal_series(
    run: Run, forget: np.ndarray, order: int, progress: Progress | None = None
) -> Removal:
    """Expands a run without some examples from the last snapshot before their first use.

    Raises:
      InputError: for a run that computes in less than float32.
      DivergenceError: if a coefficient is not finite.
    """
    first = first_use(run.schedule, forget)
    start = run.snapshots.last_at_or_before(run.steps if first is None else first)
    direction = without(run, forget)
    coefficients = taylor_coefficients(run, direction, order, start=start, progress=progress)
    slots = int((run.schedule[start:] >= 0).sum())
    return Removal(coefficients, start, slots * (order + 1) * (order + 2) / 2)


def without(run: Run, forget: np.ndarray) -> np.ndarray:
    """Direction in the example weights that takes the forget set out at eps = 1, `[N]`."""
    direction = np.zeros_like(run.weights)
    direction[forget] = -run.weights[forget]
    return direction
