"""How far does the Taylor series along the trajectory reach? One rung per order, one cell per run.

For a run and a forget set: the coefficients up to order K + 1 once, then for each order the true
relative verification error against the twin, its estimate from the next term (no retraining), and
the error of the resummed series. Order 0 is doing nothing, whose error is 1 by definition; the
retrain-versus-retrain distance stands beside it on the same scale.

Design: a cell that diverged, or whose original and twin are equal, is a row of missing values with
a note. Rejected: leaving such cells out, after which a page could not say how many there were.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from unroll import tree
from unroll.data.schedule import first_use
from unroll.errors import DivergenceError, InputError
from unroll.training.run import Progress, Run
from unroll.unrolling.taylor import sum_series, taylor_coefficients, without
from unroll.unrolling.truncation import (
    correction_norm,
    estimated_relative_error,
    resum,
    rounding_floor,
    term_norms,
)

RELIABLE_BELOW = 0.5
"""Estimates are judged in the cells whose true error is below this: where the series is of use."""
FACTOR = 2.0
"""An estimate is good if it is within this factor of the true error."""


KINKED = "relu has no second derivative: the next term says nothing about the error"
"""Why the estimate is refused where its assumption is violated."""


@dataclasses.dataclass(frozen=True)
class Rung:
    """One order of one cell.

    Attributes:
      dataset: name of the training set.
      model: call of the model, its activation included.
      optimizer: call of the optimiser.
      epochs: passes over the data.
      forget: call of the forget set.
      forget_size: number of forgotten examples.
      seed: training seed.
      order: truncation order; 0 is doing nothing.
      relative_error: true relative verification error; `None` if the series is not finite.
      estimate: its a-posteriori estimate, `None` for the highest order and for divergence.
      next_term: norm of the next term relative to the correction, the estimate's first part.
      floor: rounding floor relative to the correction, its second part.
      resummed: relative verification error of the resummed series, from order 2 on.
      no_unlearning: `||w_T - w'_T||`, what the errors are relative to; `None` if there is none.
      retrain_distance: distance of two independent retrains, in the same unit as the errors.
      note: why a number is missing.
    """

    dataset: str
    model: str
    optimizer: str
    epochs: int
    forget: str
    forget_size: int
    seed: int
    order: int
    relative_error: float | None = None
    estimate: float | None = None
    next_term: float | None = None
    floor: float | None = None
    resummed: float | None = None
    no_unlearning: float | None = None
    retrain_distance: float | None = None
    note: str | None = None

    @property
    def cell(self) -> tuple:
        """The coordinates of the cell: all but the order."""
        return self.dataset, self.model, self.optimizer, self.epochs, self.forget, self.seed

    @property
    def floor_dominated(self) -> bool:
        """Whether the estimate is mostly the rounding floor, which no next term can miss."""
        return self.next_term is not None and self.floor >= self.next_term


def without_numbers(order: int, note: str) -> list[dict]:
    """The measured fields of the rungs 0 to `order` of a cell that cannot be measured."""
    return [dict(order=k, note=note) for k in range(order + 1)]


def climb(
    run: Run, twin: Run, forget: np.ndarray, order: int, progress: Progress | None = None
) -> list[dict]:
    """The measured fields of the rungs 0 to `order` of one run.

    Args:
      run: the original run.
      twin: the same without the forget set.
      forget: ids of the forget set.
      order: highest order; the coefficients go one further, for the estimate.
      progress: called with (steps done, steps in all).

    Raises:
      InputError: if original and twin are equal.
    """
    scale = tree.distance(run.state.params, twin.state.params)
    if scale == 0:
        raise InputError("the original and the retrained model are equal: nothing was forgotten")
    coefficients, note = _finite_coefficients(run, forget, order + 1, progress)
    floor = rounding_floor(run.state.params, run.steps)
    kinked = getattr(run.spec.model, "activation", None) == "relu"
    rungs = []
    for k in range(order + 1):
        partial = coefficients[: k + 1]
        known = k < len(coefficients)
        has_next = k + 1 < len(coefficients)
        rungs.append(
            dict(
                no_unlearning=scale,
                order=k,
                relative_error=_relative(sum_series(partial), twin, scale) if known else None,
                resummed=_relative(resum(partial), twin, scale) if known and k >= 2 else None,
                note=KINKED if kinked and k else note,
                **_estimates(coefficients[: k + 2], floor, kinked and k > 0, has_next),
            )
        )
    return rungs


def _estimates(coefficients, floor: float, kinked: bool, has_next: bool) -> dict:
    """The a-posteriori estimate of the sum without the last coefficient, and its two parts."""
    if not has_next or kinked:
        return dict(estimate=None, next_term=None, floor=None)
    norms, correction = term_norms(coefficients), correction_norm(coefficients)
    return dict(
        estimate=estimated_relative_error(norms, correction, len(norms) - 1, floor),
        next_term=norms[-1] / correction,
        floor=floor / correction,
    )


def _relative(state, twin: Run, scale: float) -> float | None:
    distance = tree.distance(state.params, twin.state.params) / scale
    return distance if np.isfinite(distance) else None


def _finite_coefficients(run, forget, order, progress):
    """Coefficients up to the highest order that stays finite, and a note if that is not `order`."""
    first = first_use(run.schedule, forget)
    start = run.snapshots.last_at_or_before(run.steps if first is None else first)
    direction, note = without(run, forget), None
    for highest in range(order, 0, -1):
        try:
            found = taylor_coefficients(run, direction, highest, start=start, progress=progress)
            return found, note
        except DivergenceError as error:
            note = str(error)
    return [run.state], note


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How often estimates are within a factor of 2 of the true error.

    Attributes:
      judged: number of estimates.
      good: how many of them are within the factor.
      high: how many are above it: too pessimistic.
      low: how many are below it: too optimistic.
    """

    judged: int
    good: int
    high: int
    low: int


def judged(rungs: Iterable[Rung]) -> list[Rung]:
    """The rungs from order 1 on that have an estimate and a true error below 0.5."""
    return [
        rung
        for rung in rungs
        if rung.order > 0
        and rung.estimate is not None
        and rung.relative_error is not None
        and 0 < rung.relative_error < RELIABLE_BELOW
    ]


def calibration(rungs: Iterable[Rung]) -> Calibration:
    """Compares the estimates of the `judged` rungs with their true errors."""
    ratios = [rung.estimate / rung.relative_error for rung in judged(rungs)]
    high = sum(ratio > FACTOR for ratio in ratios)
    low = sum(ratio < 1 / FACTOR for ratio in ratios)
    return Calibration(len(ratios), len(ratios) - high - low, high, low)


def calibrations(rungs: Sequence[Rung]) -> dict[tuple[str, int], tuple[Calibration, Calibration]]:
    """By optimiser and order: of all judged rungs, and of those that no rounding floor dominates.

    Where the floor dominates, the estimate is right without a word from the series.
    """
    groups: dict[tuple[str, int], list[Rung]] = {}
    for rung in judged(rungs):
        groups.setdefault((rung.optimizer, rung.order), []).append(rung)
    return {
        place: (calibration(members), calibration(r for r in members if not r.floor_dominated))
        for place, members in groups.items()
    }
