"""Records to rows: one row per method, one interval per metric.

Training seeds are the unit of replication. Method seeds of one training seed share an original
model, so they are averaged first and never counted as independent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy import stats

from unroll.errors import InputError
from unroll.evaluation.records import NULL, ORIGINAL, RETRAIN, Record

ROLES = {ORIGINAL: "do nothing", RETRAIN: "oracle", NULL: "null"}
_NOT_RECORDED = "not recorded for this method"

Item = TypeVar("Item")
Key = tuple[str, str | None, str | None]
"""Metric, split and oracle."""


class Section(NamedTuple):
    """What must agree for two rows to be comparable."""

    experiment: str
    dataset: str
    model: str
    forget: str


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over training seeds with its confidence interval.

    Attributes:
      mean: mean over training seeds.
      low: lower end, `None` with one seed.
      high: upper end, `None` with one seed.
      count: number of training seeds.
      note: what the records say about reading the value with care.
      missing: number of models without a value, which the mean says nothing about.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    note: str | None = None
    missing: int = 0

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval, `None` with one seed."""
        return None if self.low is None else (self.high - self.low) / 2


@dataclasses.dataclass(frozen=True)
class Missing:
    """A value that no seed has, and why."""

    note: str


Value = Interval | Missing


@dataclasses.dataclass(frozen=True)
class Row:
    """All that the records of one section say about one method.

    Attributes:
      section: experiment, dataset, model and forget set.
      label: method with its hyper-parameters.
      method: method name.
      hyperparameters: keyword arguments of the method.
      role: `do nothing`, `oracle`, `null` or `method`.
      values: interval, or the reason for its absence, by (metric, split, oracle).
      cost_ratio_gradients: example-gradient evaluations relative to retraining.
      cost_ratio_seconds: seconds relative to retraining.
      seconds: seconds without compilation.
    """

    section: Section
    label: str
    method: str
    hyperparameters: dict[str, Any]
    role: str
    values: dict[Key, Value]
    cost_ratio_gradients: Value
    cost_ratio_seconds: Value
    seconds: Value

    def get(self, metric: str, split: str | None = None, oracle: str | None = None) -> Value:
        """Returns the value of a metric; `Missing` where no record has it."""
        return self.values.get((metric, split, oracle), Missing(_NOT_RECORDED))

    @property
    def relative_error(self) -> Value:
        """Relative verification error: the rank of the row and the height of its point."""
        return self.get("relative_verification_error", None, "twin")


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student t interval of a mean.

    Args:
      values: one value per independent repetition.
      confidence: coverage of the interval.

    Returns:
      The mean with its interval; a single value has no interval.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        raise InputError("an interval needs at least one value")
    mean = float(values.mean())
    if values.size == 1:
        return Interval(mean, None, None, 1)
    quantile = stats.t.ppf((1 + confidence) / 2, values.size - 1)
    half_width = float(quantile * values.std(ddof=1) / math.sqrt(values.size))
    return Interval(mean, mean - half_width, mean + half_width, values.size)


def ratio_interval(ratios: Sequence[float]) -> Interval:
    """Geometric mean of ratios with Student's interval of their logarithms.

    An arithmetic mean of 1/10 and 10 is 5: it says that something grew which did not.

    Args:
      ratios: positive numbers, one per independent repetition.

    Raises:
      InputError: if a ratio is not positive.
    """
    ratios = np.asarray(ratios, dtype=np.float64)
    if not (ratios > 0).all():
        raise InputError("a geometric mean needs ratios above 0")
    logs = t_interval(np.log(ratios))
    ends = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
    return Interval(math.exp(logs.mean), *ends, logs.count)


def group_by(items: Iterable[Item], key: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    """Groups items by a key, in order of first appearance."""
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def group_sections(records: Iterable[Record]) -> dict[Section, list[Record]]:
    """Splits records into sections, in order of first appearance."""
    return group_by(records, lambda r: Section(r.experiment, r.dataset, r.model, r.forget))


def summarize(records: Iterable[Record]) -> list[Row]:
    """Summarises records, section by section.

    Records with a position (`at`) belong to curves and are left to the figures.

    Args:
      records: rows of one or more experiments.

    Returns:
      Rows of each section in the order original, retrain, retrain_vs_retrain, then methods by
      relative verification error, those without one for every seed last.

    Raises:
      InputError: a section compares with an oracle but has no `retrain` row.
    """
    rows = []
    for section, members in group_sections(records).items():
        _require_oracle(section, members)
        by_label = group_by(members, lambda record: record.label)
        rows += sorted((_row(section, group) for group in by_label.values()), key=_rank)
    return rows


def seed_means(
    records: Iterable[Record], number: Callable[[Record], float | None]
) -> dict[int, float]:
    """Averages a number over method seeds; returns the means by training seed."""
    known = group_by((r for r in records if number(r) is not None), lambda r: r.train_seed)
    return {
        seed: float(np.mean([number(record) for record in group]))
        for seed, group in sorted(known.items())
    }


def _require_oracle(section: Section, records: Sequence[Record]) -> None:
    """A delta is never printed without an oracle."""
    if any(record.method == RETRAIN for record in records):
        return
    for record in records:
        if _compares(record):
            raise InputError(
                f"section {' / '.join(section)}: `{record.metric}` is a comparison but there is "
                f"no `{RETRAIN}` row; evaluate the retrained model too"
            )


def _compares(record: Record) -> bool:
    return (
        record.oracle is not None
        or record.metric.endswith("_gap")
        or record.metric.startswith("relative_")
    )


def _row(section: Section, records: Sequence[Record]) -> Row:
    scalars = [record for record in records if record.at is None]
    by_key = group_by(scalars, lambda record: (record.metric, record.split, record.oracle))
    first = records[0]
    return Row(
        section=section,
        label=first.label,
        method=first.method,
        hyperparameters=first.hyperparameters,
        role=ROLES.get(first.method, "method"),
        values={key: _value(group) for key, group in by_key.items()},
        cost_ratio_gradients=_cost(records, lambda record: record.cost_ratio_gradients),
        cost_ratio_seconds=_cost(records, lambda record: record.cost_ratio_seconds),
        seconds=_cost(records, lambda record: record.seconds),
    )


def _value(records: Sequence[Record]) -> Value:
    """Interval over training seeds, with the notes of the records and the seeds that lack it."""
    notes = list(dict.fromkeys(record.note for record in records if record.note))
    missing = sum(record.value is None for record in records)
    if missing == len(records):
        return Missing("; ".join(notes) or "no value and no reason recorded")
    if missing:
        notes.insert(0, f"{missing} of {len(records)} models have no value")
    interval = t_interval(list(seed_means(records, lambda record: record.value).values()))
    return dataclasses.replace(interval, note="; ".join(notes) or None, missing=missing)


def _cost(records: Sequence[Record], number: Callable[[Record], float | None]) -> Value:
    """Every record of a model repeats its cost, so a model counts once."""
    models = group_by(
        (record for record in records if number(record) is not None),
        lambda record: (record.train_seed, record.method_seed),
    )
    means = seed_means((group[0] for group in models.values()), number)
    return t_interval(list(means.values())) if means else Missing("cost not recorded")


def _rank(row: Row) -> tuple:
    reference = list(ROLES).index(row.method) if row.method in ROLES else len(ROLES)
    error = row.relative_error
    whole = isinstance(error, Interval) and not error.missing
    return reference, error.mean if whole else math.inf, row.label
