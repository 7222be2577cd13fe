"""Costs in multiples of one training of the same run: Taylor order 1, and metagradients.

Theory, in example gradients: a step with its first derivative is 3 gradients, of which one forward
pass is shared; a metagradient replays (1), linearises a step (1) and pulls back (2).
"""

import time

import jax
import numpy as np
from cases import Case, make_case
from timing import agree, turn_about
from work import Outcome, Settings

import unroll
from unroll.training.run import fit
from unroll.unrolling.metagradients import metagradients
from unroll.unrolling.outcomes import mean_loss
from unroll.unrolling.taylor import taylor_coefficients, without


def taylor(settings: Settings, *, case: str, steps: int) -> Outcome:
    """Order 1 from the first step on, against the training itself; seconds per step."""
    case = make_case(settings, case)
    run = _run(case, settings.steps(steps))
    direction = without(run, _forget(case))
    first = run.snapshots[0]
    series = []

    def ours() -> float:
        begin = time.perf_counter()
        series[:] = taylor_coefficients(run, direction, 1)
        return (time.perf_counter() - begin) / run.steps

    again, theirs = _training(run, first)
    figures = turn_about(ours, theirs, settings)
    # The zeroth coefficient is the run, and so is the training that was timed.
    check = agree("final parameters", _some(series[0]), _some(again[-1]), 1e-5)
    return Outcome(*figures, check, f"{run.steps} steps")


def metagradient(settings: Settings, *, case: str, steps: int) -> Outcome:
    """One number, all examples, against the training itself; seconds per step."""
    case = make_case(settings, case)
    run = _run(case, settings.steps(steps))
    held_out = mean_loss(run.spec, run.dataset.take(np.arange(case.batch)))
    found = []

    def ours() -> float:
        begin = time.perf_counter()
        found[:] = [metagradients(run, held_out)]
        return (time.perf_counter() - begin) / run.steps

    again, theirs = _training(run, run.snapshots[0])
    figures = turn_about(ours, theirs, settings)
    check = agree("final parameters", _some(run.state), _some(again[-1]), 1e-5)
    passes = found[0].cost_ratio_gradients
    check += f"; {passes:.1f} trainings by count of gradients"
    return Outcome(*figures, check, f"{run.steps} steps")


def _run(case: Case, steps: int) -> unroll.Run:
    """The recorded run, with the snapshots that a metagradient wants."""
    keep = 2 * int(np.ceil(np.sqrt(steps)))
    schedule = case.schedule(steps)
    return unroll.train(case.spec, case.data, schedule, record=unroll.Record(every=keep))


def _forget(case: Case) -> np.ndarray:
    """1% of the examples, one at least."""
    return unroll.data.random_ids(case.data, size=max(1, len(case.data) // 100))


def _training(run: unroll.Run, first):
    """The training itself, as the library does it, and what it ended in, turn by turn."""
    ends = []

    def turn() -> float:
        begin = time.perf_counter()
        ends.append(fit(run.spec, run.dataset, first, run.schedule, run.weights, run.key))
        return (time.perf_counter() - begin) / run.steps

    return ends, turn


def _some(state) -> np.ndarray:
    """Norms of all parameters, to compare two states by."""
    return np.array([np.linalg.norm(leaf) for leaf in jax.tree.leaves(state.params)])
