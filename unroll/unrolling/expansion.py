"""The expansion of a run about one of its states (arXiv 2109.13398, section 4: the unrolling).

    w_t ~ w_0 - sum_{i<t} eta_i grad L_i(w_0) + sum_{i<t} f(i)
    f(i) = -eta_i H_i(w_0) (-sum_{j<i} eta_j grad L_j(w_0) + sum_{j<i} f(j)),    f(0) = 0

L_i is the loss of batch i with all its penalties, and H_i its Hessian. The bracket is the
displacement at step i of the linearised run, so the sums are a recursion for displacements d:

    first_order    d <- d - eta_i g_i
    second_order   d <- d - eta_i (g_i + H_i d_first)       no f(j) inside f(i)
    full           d <- d - eta_i (g_i + H_i d)             the formula above

On a quadratic loss `full` is the run. Elsewhere it lacks the third derivatives, which enter at the
same power of eta as f(j) inside f(i); so there it need not be better than `second_order`.
Truncations are about one point: `taylor.py` expands in the example weights, along the trajectory.

Design: one loop carries the displacements of all truncations, and one linearisation of the batch
gradient per step serves them. Displacements pass through the run's own optimiser, which is linear
for SGD: momentum, Nesterov's form, the trace and the counter of the state at w_0 come along.
Rejected: summing f(i) as written, which needs all earlier gradients at each step, and carrying
weights instead of displacements, which loses the small terms in the rounding of the large ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from unroll import tree
from unroll.data.forget import check_forget_ids
from unroll.errors import DivergenceError, InputError
from unroll.objectives import is_stateful
from unroll.training import loop
from unroll.training.run import Progress, Run
from unroll.training.spec import TrainSpec
from unroll.training.step import Examples, batch_loss, gather
from unroll.types import Params, PyTree, TrainState
from unroll.unrolling.forget_gradient import check_assumptions, sgd_of_run, weighted_gradient
from unroll.unrolling.step_response import response_per_example

TRUNCATIONS = ("first_order", "second_order", "full")


@dataclasses.dataclass(frozen=True, eq=False)
class ExpandedStep:
    """What the expansion says of one recorded state.

    Attributes:
      step: t.
      displacement: `||w_t - w_start||` of the run itself.
      params: predicted parameters by truncation, on the host.
      errors: `||prediction - w_t|| / ||w_t - w_start||` by truncation: 0 is exact, and 1 is as far
        off as w_start. Where the run did not move it is 0 if the prediction did not, else infinite.
    """

    step: int
    displacement: float
    params: dict[str, Params]
    errors: dict[str, float]


def expansion_step(
    spec: TrainSpec,
    moved: dict[str, tuple[Params, PyTree]],
    origin: TrainState,
    examples: Examples,
    weights: jax.Array,
    key: jax.Array,
    step: jax.Array,
    slots: jax.Array,
) -> dict[str, tuple[Params, PyTree]]:
    """Maps displacement and optimiser state of each truncation before a step to those after it.

    Args:
      spec: what was trained; its optimiser must be linear in the gradients.
      moved: by truncation; `first_order` must be among them.
      origin: the state about which the run is expanded.
      examples, weights, key, step, slots: as in `gather`.
    """
    batch = gather(spec, examples, weights, key, step, slots)
    optimizer = spec.optimizer.build()
    gradient, bend = jax.linearize(
        jax.grad(lambda params: batch_loss(spec, params, origin.model_state, batch)[0]),
        origin.params,
    )
    inside = {"second_order": "first_order", "full": "full"}
    after = {}
    for name, (displacement, opt_state) in moved.items():
        total = gradient
        if name in inside:
            total = jax.tree.map(jnp.add, gradient, bend(moved[inside[name]][0]))
        updates, opt_state = optimizer.update(total, opt_state, origin.params)
        after[name] = jax.tree.map(jnp.add, displacement, updates), opt_state
    return after


@jax.jit(static_argnames=("spec",), donate_argnames=("moved",))
def advance_expansion(
    spec: TrainSpec,
    moved: dict[str, tuple[Params, PyTree]],
    origin: TrainState,
    examples: Examples,
    weights: jax.Array,
    key: jax.Array,
    schedule: jax.Array,
    start: int | jax.Array,
    stop: int | jax.Array,
) -> dict[str, tuple[Params, PyTree]]:
    """The steps `start <= t < stop`; arguments as in `expansion_step` and `loop.advance`."""

    def body(step, moved):
        return expansion_step(spec, moved, origin, examples, weights, key, step, schedule[step])

    return jax.lax.fori_loop(start, stop, body, moved)


def at_rest(origin: TrainState, truncations: Iterable[str]) -> dict[str, tuple[Params, PyTree]]:
    """Displacement zero and the optimiser state of the origin for each truncation."""
    return {
        name: (jax.tree.map(np.zeros_like, origin.params), jax.tree.map(np.array, origin.opt_state))
        for name in ("first_order", *truncations)
    }


def recorded_steps(run: Run, start: int, steps: Iterable[int] | None = None) -> list[int]:
    """The asked steps, ascending; by default all recorded ones after `start`.

    Raises:
      InputError: if `start` or a step is not recorded, or does not come after `start`.
    """
    recorded = set(run.snapshots)  # `in run.snapshots` would read the state from the store
    wanted = sorted({step for step in recorded if step > start} if steps is None else set(steps))
    missing = [step for step in (start, *wanted) if step not in recorded]
    if missing:
        raise InputError(
            f"step {missing[0]} of the run is not recorded; train with "
            f"record=Record(steps=({missing[0]},)) or Record(every=...)"
        )
    if not wanted or wanted[0] <= start:
        raise InputError(f"no recorded step after the start {start}: choose later steps")
    return wanted


def expansion(
    run: Run,
    *,
    start: int = 0,
    steps: Iterable[int] | None = None,
    truncations: Iterable[str] = TRUNCATIONS,
    progress: Progress | None = None,
) -> Iterator[ExpandedStep]:
    """Predicts recorded states of a run from its state at `start`, its schedule and its data.

    Args:
      run: the recorded run, trained with sgd. Batches, weights, denominators, penalties, noise and
        learning rates are its own; running averages of a model stay at those of the start.
      start: recorded step of w_0, for example where fine-tuning began.
      steps: recorded steps to predict; by default all after `start`.
      truncations: which of `TRUNCATIONS`.
      progress: called with (steps done, steps in all).

    Returns:
      One `ExpandedStep` for each step, ascending, as the loop gets there. A step costs one gradient
      and a Hessian-vector product for each truncation but the first.

    Raises:
      InputError: for another optimiser than sgd, the singular-value penalty (its vector has a
        history), a step that is not recorded, or an unknown truncation.
      DivergenceError: (while iterating) if a displacement is not finite: where eta times curvature
        at w_0 exceeds 2 the linearised run leaves every bound.
    """
    truncations = tuple(truncations)
    unknown = [name for name in truncations if name not in TRUNCATIONS]
    if unknown or not truncations:
        raise InputError(f"truncations {unknown} are unknown; choose from {TRUNCATIONS}")
    sgd_of_run(run)
    if is_stateful(run.spec.objective):
        raise InputError(
            "the expansion needs a loss that depends on the parameters alone; "
            "train with singular_gamma=0.0"
        )
    steps = recorded_steps(run, start, steps)
    return _expand(run, start, steps, truncations, progress)


def _expand(run, start, steps, truncations, progress):
    origin = run.snapshots[start]
    examples = loop.device_examples(run.dataset)
    weights, schedule = jnp.asarray(run.weights), jnp.asarray(run.schedule)

    def advance_to(moved, begin, end):
        return advance_expansion(
            run.spec, moved, origin, examples, weights, run.key, schedule, begin, end
        )

    rest = at_rest(origin, truncations)
    for position, moved in loop.chunks(advance_to, rest, start, steps[-1], tuple(steps)):
        for name in truncations:
            if not tree.is_finite(moved[name][0]):
                raise DivergenceError(
                    f"the {name} expansion about step {start} is not finite before step "
                    f"{position}; leave it out of truncations, or expand over fewer steps"
                )
        if progress is not None:
            progress(position - start, steps[-1] - start)
        if position in steps:
            displacements = {name: tree.to_host(moved[name][0]) for name in truncations}
            yield _compare(position, origin.params, run.snapshots[position].params, displacements)


def _compare(
    step: int, origin: Params, truth: Params, displacements: dict[str, Params]
) -> ExpandedStep:
    # In float64: the difference of two nearby float32 trees would be mostly rounding.
    true = jax.tree.map(lambda w, o: np.asarray(w, np.float64) - o, truth, origin)
    size = tree.distance(truth, origin)
    errors, params = {}, {}
    for name, displacement in displacements.items():
        error = tree.distance(displacement, true)
        errors[name] = error / size if size else (np.inf if error else 0.0)
        params[name] = jax.tree.map(lambda o, d: (o + d).astype(o.dtype), origin, displacement)
    return ExpandedStep(step, size, params, errors)


def single_gradient_at(
    run: Run, forget: np.ndarray, *, start: int = 0, steps: Iterable[int] | None = None
) -> Iterator[tuple[int, Params]]:
    """Single-gradient unlearned weights at recorded steps of a run (arXiv 2109.13398, section 4).

        w''_t = w_t + sum_{start <= s < t} R_s (1/B) sum_{x in S and batch s} grad l(w_start; x)

    R_s is how far a gradient that entered at step s had moved the weights by step t
    (`step_response`). The forgotten examples' share of a singular-value penalty is not undone, only
    that of the loss.

    Args:
      run: the recorded run.
      forget: ids of the examples to forget.
      start: recorded step whose weights the gradients are taken at; uses before it are kept.
      steps: recorded steps t; by default all after `start`.

    Returns:
      `(t, w''_t)` for each step, ascending; a step costs one gradient per forgotten example.

    Raises:
      InputError: for a run that `check_assumptions` refuses, another optimiser than sgd, a step
        that is not recorded, or bad ids.
    """
    ids = check_forget_ids(forget, len(run.dataset), allow_empty=True)
    check_assumptions(run, "single-gradient unlearning")
    sgd_of_run(run)
    steps = recorded_steps(run, start, steps)
    return _single_gradients(run, ids, start, steps)


def _single_gradients(run, ids, start, steps):
    origin = run.snapshots[start].params
    for step in steps:
        params = run.snapshots[step].params
        if len(ids):
            # Of the run that ends there: momentum counts as far as it was applied before step t.
            until = dataclasses.replace(run, schedule=run.schedule[:step])
            weights = response_per_example(until, start)[ids] * run.weights[ids]
            gradient = weighted_gradient(run.spec, origin, run.dataset.take(ids), weights)
            params = jax.tree.map(lambda w, g: (w + g).astype(w.dtype), params, gradient)
        yield step, params
