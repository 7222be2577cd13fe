"""Unlearning errors beside the verification error that they stand for (arXiv 2109.13398).

A run goes through its batches in one fixed order, epoch after epoch, with the batch to forget at a
chosen position of each epoch; its twin takes the same steps without it. At each recorded step t:
the proxies of `unrolling.unlearning_error`, what they compete with (t, D, eta t sigma and the norm
of g_f), the verification error of the run that ends at t after single-gradient unlearning, and the
distance of doing nothing. Without the last a small verification error says nothing.

Design: one row type for fine-tuning, for training from random weights and for positions of the
forget batch; they differ in where the run starts and in the position only. Rejected: a row per
experiment, whose pages could not be compared.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from unroll import tree
from unroll.checks import whole_number
from unroll.data.schedule import make_schedule, uses
from unroll.errors import InputError
from unroll.methods.checkpointed_gradient import checkpointed_gradient
from unroll.metrics.correlation import Correlation, pearson, spearman
from unroll.metrics.verification import verification_error
from unroll.problem import Problem
from unroll.training.record import Snapshots
from unroll.training.run import Run
from unroll.types import Params
from unroll.unrolling.curvature import CurvatureBatch
from unroll.unrolling.expansion import single_gradient_at
from unroll.unrolling.unlearning_error import unlearning_errors

PROXIES = ("paper", "eta1", "gradnorm", "leading")
"""With the average sigma, see `unrolling.unlearning_error`."""
ACCUMULATED = ("accumulated_paper", "accumulated_eta1", "accumulated_gradnorm")
"""The same summed over the segments between recorded steps."""
BASELINES = ("t", "displacement", "eta_t_sigma", "gradient_norm")
"""What any proxy has to beat. The first three grow along a run, as the error does, without theory;
the last is what `gradnorm` knows of the forgotten batch."""

FEWEST_DISTINCT = 4
"""Of the values on each side of a correlation; with fewer, an interval counts copies as runs."""

ROUNDING = 1e-12
"""A proxy or an error below this is 0: differences of float32 weights are never as small."""


@dataclasses.dataclass(frozen=True)
class ProxyRow:
    """One recorded step of one run.

    Attributes:
      dataset: name of the training set.
      model: call of the model.
      gamma: weight of the SD penalty.
      seed: seed of initialisation, pretraining and batch order.
      forget_batch: number of the forgotten batch in the order that the seed makes.
      position: where in each epoch it stands.
      t: steps since w_0.
      uses: of the forget batch in these steps.
      curvature_batch: the examples that sigma is measured on.
      learning_rate: eta.
      sigma: largest |eigenvalue| of the Hessian when it was last measured.
      sigma_average: plain mean of those measured so far, w_0's among them.
      sigma_residual: of the last one, in its own unit.
      displacement: D, `||w_t - w_0||`.
      gradient_norm: `||g_f||` at w_0, one use.
      eta_t_sigma: without a unit, with the average sigma.
      paper, eta1, gradnorm, leading: the proxies, with the average sigma.
      accumulated_paper, accumulated_eta1, accumulated_gradnorm: summed over segments.
      verification_error: after single-gradient unlearning at w_0.
      checkpointed_error: after single-gradient unlearning with each use's gradient at the last
        recorded step before it.
      no_unlearning: `||w_t - w'_t||`; 0 before the first use.
      retrain_distance: of two retrained models, at the end of the run.
      test_accuracy: of the original at the end of the run.
      note: why numbers are missing: the run or a measurement diverged.
    """

    dataset: str
    model: str
    gamma: float
    seed: int
    forget_batch: int
    position: int
    t: int
    uses: int
    curvature_batch: str
    learning_rate: float | None = None
    sigma: float | None = None
    sigma_average: float | None = None
    sigma_residual: float | None = None
    displacement: float | None = None
    gradient_norm: float | None = None
    eta_t_sigma: float | None = None
    paper: float | None = None
    eta1: float | None = None
    gradnorm: float | None = None
    leading: float | None = None
    accumulated_paper: float | None = None
    accumulated_eta1: float | None = None
    accumulated_gradnorm: float | None = None
    verification_error: float | None = None
    checkpointed_error: float | None = None
    no_unlearning: float | None = None
    retrain_distance: float | None = None
    test_accuracy: float | None = None
    note: str | None = None

    @property
    def cell(self) -> tuple:
        """The coordinates of the run."""
        return (
            self.dataset,
            self.model,
            self.gamma,
            self.seed,
            self.forget_batch,
            self.position,
        )

    @property
    def ratio(self) -> float | None:
        """Verification error over the no-unlearning distance: above 1, unlearning did harm."""
        return self._relative(self.verification_error)

    @property
    def checkpointed_ratio(self) -> float | None:
        """The same for the checkpointed gradient."""
        return self._relative(self.checkpointed_error)

    def _relative(self, error: float | None) -> float | None:
        return error / self.no_unlearning if error is not None and self.no_unlearning else None


def fixed_order_schedule(
    seed: int, num_examples: int, batch_size: int, steps: int, forget_batch: int, position: int
) -> tuple[np.ndarray, np.ndarray]:
    """A schedule whose epochs are all alike, with one batch moved to a position of the epoch.

    Examples that do not fill a batch are left out.

    Args:
      seed: of the order.
      num_examples: size of the training set.
      batch_size: slots per step.
      steps: length; the last epoch may be cut off.
      forget_batch: number of the batch to move, in the order that the seed makes.
      position: where it goes; the others keep their order.

    Returns:
      int32 `[steps, batch_size]`, and the ids of the moved batch, ascending.

    Raises:
      InputError: if there is no such batch or position, or the run ends before the batch is used.
    """
    epoch = make_schedule(seed, num_examples, batch_size, 1, partial="drop")
    for name, value in (("forget_batch", forget_batch), ("position", position)):
        whole_number(name, value, least=0)
        if value >= len(epoch):
            raise InputError(f"{name}={value}: an epoch has the batches 0 to {len(epoch) - 1}")
    whole_number("steps", steps)
    if steps <= position:
        raise InputError(f"a run of {steps} steps never uses its batch {position}; train longer")
    order = np.delete(np.arange(len(epoch)), forget_batch)
    epoch = epoch[np.insert(order, position, forget_batch)]
    return np.resize(epoch, (steps, batch_size)), np.sort(epoch[position]).astype(np.int64)


def until(run: Run, step: int) -> Run:
    """The run that ends at a recorded step, with the snapshots up to there."""
    kept = {s: functools.partial(run.snapshots.__getitem__, s) for s in run.snapshots if s <= step}
    return dataclasses.replace(
        run,
        schedule=run.schedule[:step],
        losses=run.losses[:step],
        state=run.snapshots[step],
        snapshots=Snapshots(kept),
    )


def measure(
    run: Run, twin: Run, forget: np.ndarray, batch: CurvatureBatch, sigma_every: int = 1
) -> list[dict]:
    """The measured fields of a row for each recorded step after 0.

    Args:
      run: the original, recorded, trained with plain SGD.
      twin: the same without the forget set, recorded at the same steps.
      forget: ids of the forget set.
      batch: where curvature is measured.
      sigma_every: at every so many of the recorded steps.

    Raises:
      InputError: if run and twin differ in more than their weights, or as `unlearning_errors`.
      DivergenceError: if the curvature or a gradient is not finite.
    """
    if (
        not np.array_equal(run.schedule, twin.schedule)
        or (run.seed, run.initial) != (twin.seed, twin.initial)
        or list(run.snapshots) != list(twin.snapshots)
    ):
        raise InputError("the twin must have the run's schedule, seed, first state and record")
    steps = [step for step in run.snapshots if step]
    errors = unlearning_errors(
        run, forget, batch, steps=steps, segments=steps, sigma_every=sigma_every
    )
    used = np.cumsum(uses(run.schedule, forget))
    singles = single_gradient_at(run, forget)
    rows = []
    for found, (step, single) in zip(errors.rows, singles, strict=True):
        truth = twin.snapshots[step].params
        nothing = verification_error(run.snapshots[step].params, truth)
        checkpointed = _checkpointed(run, step, forget, single)
        rows.append(
            dict(
                t=found.t,
                uses=int(used[step - 1]),
                learning_rate=found.learning_rate,
                sigma=found.sigma,
                sigma_average=found.sigma_average,
                sigma_residual=found.residual,
                displacement=found.displacement,
                gradient_norm=found.gradient_norm,
                eta_t_sigma=found.eta_t_sigma,
                **found.proxies,
                **{f"accumulated_{name}": value for name, value in found.accumulated.items()},
                verification_error=verification_error(single, truth),
                checkpointed_error=verification_error(checkpointed, truth),
                no_unlearning=nothing,
            )
        )
    return rows


def _checkpointed(run: Run, step: int, forget: np.ndarray, single: Params) -> Params:
    """The checkpointed gradient at a recorded step; in the first segment it is the single one."""
    shorter = until(run, step)
    if len(shorter.snapshots) <= 2:
        return single
    method = checkpointed_gradient()
    return method(jax.random.key(0), Problem(shorter, forget)).params


def retrain_distance(twin: Run, other: Run) -> float:
    """`||w'_T - v'_T||` of two retrained models: the scale for "far"."""
    return tree.distance(twin.state.params, other.state.params)


def judged(rows: Iterable[ProxyRow]) -> list[ProxyRow]:
    """The rows that have numbers and where there is something to unlearn."""
    return [row for row in rows if row.no_unlearning]


def within_runs(
    rows: Iterable[ProxyRow],
    quantity: str,
    correlate: Callable[[np.ndarray, np.ndarray], Correlation] = pearson,
) -> list[float]:
    """Correlation of a quantity with the verification error along each run, where it is defined.

    Args:
      rows: of any runs.
      quantity: a field of `ProxyRow`.
      correlate: `pearson` or `spearman`. Its intervals are not used: steps are not independent.
    """
    runs: dict[tuple, list[ProxyRow]] = {}
    for row in judged(rows):
        runs.setdefault(row.cell, []).append(row)
    values = [correlate(*_pairs(run, quantity)).value for run in runs.values()]
    return [value for value in values if value is not None]


def across_runs(
    rows: Iterable[ProxyRow],
    quantity: str,
    t: int,
    correlate: Callable[[np.ndarray, np.ndarray], Correlation] = spearman,
) -> Correlation:
    """Correlation of a quantity with the verification error over runs at one t.

    Args:
      rows: of runs that differ in gamma, seed, forgotten batch or position.
      quantity: a field of `ProxyRow`.
      t: the step.
      correlate: `pearson` or `spearman`; its interval takes the runs as independent.

    Returns:
      The correlation, without its interval where a side has fewer than 4 distinct values: runs
      that share an original model (all positions of a seed do) are no repetitions of it.
    """
    pairs = _pairs([row for row in judged(rows) if row.t == t], quantity)
    found = correlate(*pairs)
    distinct = min(_distinct(values) for values in pairs)
    if found.low is None or distinct >= FEWEST_DISTINCT:
        return found
    return dataclasses.replace(
        found, low=None, high=None, note=f"no interval: only {distinct} distinct values"
    )


def _distinct(values: np.ndarray) -> int:
    """How many values differ by more than the rounding of float32, in which they were measured."""
    ordered = np.sort(values)
    return 1 + int((np.diff(ordered) > 1e-6 * np.abs(ordered).max()).sum()) if len(values) else 0


def slope(rows: Sequence[ProxyRow], quantity: str) -> float | None:
    """Exponent p of the fit `quantity ~ verification_error^p` in logarithms; 1 is proportional.

    Rows where one of the two is 0 up to rounding are left out; `None` with fewer than 3 left, or
    where one of the two is constant.
    """
    pairs = zip(*_pairs(judged(rows), quantity), strict=True)
    logs = np.array([(math.log(x), math.log(y)) for x, y in pairs if min(x, y) > ROUNDING])
    if len(logs) < 3 or np.ptp(logs, axis=0).min() < 1e-9:
        return None
    return float(np.polyfit(logs[:, 1], logs[:, 0], 1)[0])


def slopes(rows: Iterable[ProxyRow], quantity: str) -> list[float]:
    """`slope` along each run, where it is defined."""
    runs: dict[tuple, list[ProxyRow]] = {}
    for row in rows:
        runs.setdefault(row.cell, []).append(row)
    values = [slope(run, quantity) for run in runs.values()]
    return [value for value in values if value is not None]


def _pairs(rows: Sequence[ProxyRow], quantity: str) -> tuple[np.ndarray, np.ndarray]:
    first = [getattr(row, quantity) for row in rows]
    return np.array(first, np.float64), np.array([row.verification_error for row in rows])
