"""Linear datamodelling score: do attributions predict what real deletions do?

An attribution `G [M, N]` of M metrics to N training examples predicts that taking S out changes
metric m by

    predicted[m, S] = - sum_{n in S} omega[n] G[m, n].

The score (LDS, arXiv 2303.14186, definition 2.4) retrains without each of many random S and takes
Spearman's correlation of predicted and actual change over the S, per metric, then the mean over the
metrics. Here the retrained models share key and schedule with the original (they are its twins), so
the actual changes hold no seed noise.

Design: sets of one size only. With mixed sizes the mean effect of an example, which is not what is
asked, would sort the large sets from the small ones and raise every score. Rejected: one interval
per metric, averaged; the metrics share the deletions, so the interval of the mean resamples those.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from scipy.stats import rankdata

from unroll.checkpoint import Store
from unroll.checks import seed_number, whole_number
from unroll.data.dataset import Dataset
from unroll.data.forget import check_forget_ids, random_ids
from unroll.errors import DivergenceError, InputError
from unroll.metrics.correlation import Correlation, spearman
from unroll.training.ensemble import train_ensemble
from unroll.training.run import Progress, Run, part_of_progress, train
from unroll.types import TrainState
from unroll.unrolling.metagradients import Attribution
from unroll.unrolling.outcomes import Metric, evaluate

METAGRADIENTS = "metagradients"
"""Name of the method whose prediction the figure shows first."""
POINTS = "point"
"""Metrics named `point[id]` are losses of single test examples; the LDS is the mean over them."""


def random_deletions(
    dataset: Dataset, count: int, fraction: float, seed: int = 0
) -> tuple[np.ndarray, ...]:
    """Draws `count` random sets of training ids, each a `fraction` of the data set.

    Set i depends on (seed, i) only, so more sets begin with the same ones.

    Raises:
      InputError: if the count is below 1 or the fraction leaves no set or no rest.
    """
    whole_number("count", count)
    key = jax.random.key(seed_number(seed))
    folded = (jax.random.fold_in(key, index) for index in range(count))
    seeds = [int(jax.random.key_data(each)[-1]) for each in folded]
    return tuple(random_ids(dataset, fraction=fraction, seed=each) for each in seeds)


def predicted_changes(
    run: Run, attribution: np.ndarray, deletions: Sequence[np.ndarray]
) -> np.ndarray:
    """First-order change of each metric under each deletion, `[S, M]` float64.

    Args:
      run: the run, for its weights.
      attribution: `[M, N]` derivative of each metric in each example weight.
      deletions: sets of ids.

    Raises:
      InputError: if the attribution does not have one column per training example.
    """
    attribution = np.asarray(attribution, np.float64)
    if attribution.ndim != 2 or attribution.shape[1] != len(run.weights):
        raise InputError(
            f"the attribution has shape {attribution.shape}; give [metrics, {len(run.weights)}]"
        )
    share = attribution * run.weights
    return -np.stack([share[:, ids].sum(axis=1) for ids in deletions])


@dataclasses.dataclass(frozen=True, eq=False)
class Deletions:
    """What real deletions did.

    Attributes:
      ids: the sets.
      changes: `[S, M]` value of each metric after retraining without the set, minus the
        original's, float64.
      seconds: time spent in the retraining, compilation not counted.
    """

    ids: tuple[np.ndarray, ...]
    changes: np.ndarray
    seconds: float


def delete_and_retrain(
    run: Run,
    metrics: Metric | Sequence[Metric],
    deletions: Sequence[np.ndarray],
    *,
    mode: Literal["auto", "sequential", "batched"] = "auto",
    store: Store | None = None,
    progress: Progress | None = None,
) -> Deletions:
    """Retrains without each set, with the run's key and schedule, and evaluates the metrics.

    The original is retrained along with the others: a batched group rounds differently from a
    single run, and that must not enter the differences.

    Args:
      run: the original run. If it began from a given state, so do the others.
      metrics: as in `metagradients`.
      deletions: sets of ids.
      mode: see `unroll.train_ensemble`; one by one for a run that began from a given state.
      store: where the models live; a killed call goes on from there.
      progress: called with (steps done, steps in all) over all models.

    Raises:
      InputError: if a set is empty, or names an example twice or one that there is not; or on
        `mode="batched"` for a run that began from a given state.
      DivergenceError: if a retraining diverges, or a metric of its result is not finite.
    """
    deletions = tuple(check_forget_ids(ids, len(run.dataset)) for ids in deletions)
    weights = np.tile(run.weights, (1 + len(deletions), 1))
    for row, ids in zip(weights[1:], deletions, strict=True):
        row[ids] = 0.0
    retrain = _retrained if run.initial is None else _retrained_from_initial
    states, seconds = retrain(run, weights, mode, store, progress)
    values = np.stack([evaluate(metrics, state) for state in states])
    if not np.isfinite(values).all():
        raise DivergenceError("a metric of a retrained model is not finite; check metric and run")
    return Deletions(deletions, values[1:] - values[0], seconds * len(deletions) / len(weights))


def _retrained(run, weights, mode, store, progress) -> tuple[list[TrainState], float]:
    """Final states of the run with each row of weights `[M, N]`, and seconds."""
    ensemble = train_ensemble(
        run.spec,
        run.dataset,
        run.schedule,
        seeds=(run.seed,) * len(weights),
        weights=weights,
        mode=mode,
        store=store,
        progress=progress,
    )
    return [ensemble.member(index) for index in range(len(ensemble))], ensemble.seconds


def _retrained_from_initial(run, weights, mode, store, progress) -> tuple[list[TrainState], float]:
    """As `_retrained`, for a run from a given state: an ensemble starts each model from a seed."""
    if mode == "batched":
        raise InputError(
            "a run that began from a given state is retrained one by one; "
            "choose mode='sequential' or 'auto'"
        )
    runs = [
        train(
            run.spec,
            run.dataset,
            run.schedule,
            seed=run.seed,
            weights=row,
            initial=run.snapshots[0],
            store=store,
            progress=part_of_progress(progress, index, len(weights)),
        )
        for index, row in enumerate(weights)
    ]
    return [each.state for each in runs], sum(each.seconds for each in runs)


@dataclasses.dataclass(frozen=True)
class Effect:
    """A row: what one deletion did to one metric, and what a method had predicted.

    Attributes:
      dataset: name of the data set.
      model: name of the model.
      optimizer: the optimiser as a call.
      seed: seed of the run.
      fraction: share of the training set in each deletion.
      deletion: number of the deletion.
      size: examples in it.
      metric: name of the metric.
      method: name of the attribution.
      predicted: change of the metric, predicted from the attribution.
      actual: change of the metric after retraining.
    """

    dataset: str
    model: str
    optimizer: str
    seed: int
    fraction: float
    deletion: int
    size: int
    metric: str
    method: str
    predicted: float
    actual: float


@dataclasses.dataclass(frozen=True)
class Price:
    """A row: what an attribution cost, in multiples of the training.

    Attributes:
      method: name of the attribution.
      metrics: number of metrics attributed at once.
      cost_ratio_gradients: example gradients spent, divided by the training's.
      cost_ratio_seconds: seconds without compilation, divided by the training's.
      seconds: seconds without compilation.
      note: what else the method has to say.
    """

    method: str
    metrics: int
    cost_ratio_gradients: float
    cost_ratio_seconds: float
    seconds: float
    note: str | None = None


def price(method: str, attribution: Attribution) -> Price:
    """The price of an attribution, as a row."""
    return Price(
        method,
        len(attribution.names),
        attribution.cost_ratio_gradients,
        attribution.cost_ratio_seconds,
        attribution.seconds,
        attribution.info.get("warning"),
    )


def effects(
    run: Run,
    attributions: Mapping[str, Attribution],
    deletions: Deletions,
    **place: Any,
) -> list[Effect]:
    """All rows of some deletions: every method, every metric.

    Args:
      run: the original run.
      attributions: by name of the method, all of the same metrics.
      deletions: what the deletions really did to these metrics.
      **place: the other fields of `Effect`.
    """
    rows = []
    for method, attribution in attributions.items():
        predicted = predicted_changes(run, attribution.gradients, deletions.ids)
        for number, ids in enumerate(deletions.ids):
            for index, name in enumerate(attribution.names):
                rows.append(
                    Effect(
                        **place,
                        deletion=number,
                        size=len(ids),
                        metric=name,
                        method=method,
                        predicted=float(predicted[number, index]),
                        actual=float(deletions.changes[number, index]),
                    )
                )
    return rows


def changes_of(rows: Sequence[Effect]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the metrics, predicted and actual changes `[S, M]` of the rows of one method.

    Raises:
      InputError: if the rows are of several methods or places, or some are missing.
    """
    if len({(row.dataset, row.model, row.optimizer, row.fraction, row.method) for row in rows}) > 1:
        raise InputError("one score is for one method and one size; group the rows first")
    metrics = list(dict.fromkeys(row.metric for row in rows))
    numbers = list(dict.fromkeys((row.seed, row.deletion) for row in rows))
    table = {((row.seed, row.deletion), row.metric): row for row in rows}
    if len(table) != len(rows) or len(rows) != len(metrics) * len(numbers):
        raise InputError("rows are missing or repeated; run the experiment again")
    cells = [[table[number, metric] for metric in metrics] for number in numbers]
    predicted, actual = (
        np.array([[getattr(cell, field) for cell in line] for line in cells])
        for field in ("predicted", "actual")
    )
    return metrics, predicted, actual


@dataclasses.dataclass(frozen=True)
class Score:
    """How well an attribution ranks deletions.

    Attributes:
      metrics: rank correlation of predicted and actual change, per metric, with the interval of
        Fisher's z.
      value: their mean, the LDS; `None` if one of them is not defined.
      low: lower end of its interval, by resampling the deletions.
      high: upper end.
    """

    metrics: tuple[Correlation, ...]
    value: float | None
    low: float | None
    high: float | None


def datamodelling_score(
    predicted: np.ndarray,
    actual: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Score:
    """Rank correlation of predicted and actual changes, per metric and in the mean.

    The interval of the mean is the percentile interval over resampled deletions, given these
    metrics: it says nothing about other test points.

    Args:
      predicted: `[S, M]`, see `predicted_changes`.
      actual: `[S, M]`, see `delete_and_retrain`.
      confidence: coverage of the intervals.
      resamples: how often the deletions are resampled.
      seed: seed of the resampling.

    Raises:
      InputError: if the shapes differ, there are fewer than 3 deletions, or a value is not finite.
    """
    predicted, actual = np.asarray(predicted, np.float64), np.asarray(actual, np.float64)
    if predicted.ndim != 2 or predicted.shape != actual.shape or len(predicted) < 3:
        raise InputError(
            f"shapes {predicted.shape} and {actual.shape}; give two [deletions, metrics] arrays of "
            "at least 3 deletions"
        )
    correlations = tuple(
        spearman(one, other, confidence) for one, other in zip(predicted.T, actual.T, strict=True)
    )
    if any(correlation.value is None for correlation in correlations):
        return Score(correlations, None, None, None)
    value = float(np.mean([correlation.value for correlation in correlations]))
    generator = np.random.Generator(np.random.PCG64(seed_number(seed)))
    draws = generator.integers(len(predicted), size=(resamples, len(predicted)))
    means = _rank_correlations(predicted[draws], actual[draws]).mean(axis=-1)
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(means, [tail, 1 - tail])
    return Score(correlations, value, float(low), float(high))


def _rank_correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's correlation along the second axis: `[R, S, M]` and the same to `[R, M]`."""
    ranks = [rankdata(values, axis=1) for values in (first, second)]
    one, two = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    scale = np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1))
    with np.errstate(invalid="ignore"):  # a resample of one deletion has no ranks; it is left out
        return (one * two).sum(axis=1) / scale
