"""Hyper-parameters under an equal budget: the same number of candidates for every method.

A sweep is a study whose methods are candidates, on a forget set and on training seeds that no
reported result uses. A candidate is judged by its mean over the training seeds of one criterion,
among those that cost at most a given share of retraining and have a value for every seed.

Design: a grid is written as axes and its size is checked against the budget, so that no method is
searched harder than another by oversight; and an optimum at the end of an axis is said, since it
may lie beyond. Rejected: a search that adapts (random, Bayesian), whose budget would have to be
equal in what it learned and not only in the number of its trials.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from unroll import methods
from unroll.calls import format_call
from unroll.checks import whole_number
from unroll.data.forget import check_forget_ids
from unroll.errors import InputError
from unroll.evaluation.records import NULL, ORIGINAL, RETRAIN, Record

CRITERIA = ("tow", "tow_mia", "tow_independent", "tow_mia_independent")
"""Tug of war against the twin, with accuracies or with the membership attack on the forget set;
the same against independent retrains."""
REFERENCES = (ORIGINAL, RETRAIN, NULL)
LEAST_SHARE = 0.5
"""A development set that keeps less of what was asked for than this is another one."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One candidate on one training seed.

    Attributes:
      experiment: name of the experiment.
      dataset: name of the training set.
      model: call of the model.
      forget: the development forget set, in words.
      forget_size: number of examples in it.
      method: name of the method, or one of `REFERENCES`.
      hyperparameters: all of them.
      train_seed: seed of the original model.
      method_seed: seed of the method.
      tow: tug of war against the twin; `None` where the method failed.
      tow_mia: with the membership attack for the forget set.
      tow_independent: against independent retrains.
      tow_mia_independent: both.
      forget_accuracy: on the forget set.
      retain_accuracy: on the retained examples.
      test_accuracy: on the test set.
      cost: example-gradients divided by those of retraining.
      cost_seconds: seconds divided by those of retraining.
      note: why a value is missing or to be read with care.
    """

    experiment: str
    dataset: str
    model: str
    forget: str
    forget_size: int
    method: str
    hyperparameters: dict[str, Any]
    train_seed: int
    method_seed: int
    tow: float | None = None
    tow_mia: float | None = None
    tow_independent: float | None = None
    tow_mia_independent: float | None = None
    forget_accuracy: float | None = None
    retain_accuracy: float | None = None
    test_accuracy: float | None = None
    cost: float | None = None
    cost_seconds: float | None = None
    note: str | None = None

    @property
    def label(self) -> str:
        """Method with its hyper-parameters."""
        return format_call(self.method, self.hyperparameters)

    @property
    def place(self) -> tuple[str, int, int]:
        """What tells a trial from the others of its experiment."""
        return self.label, self.train_seed, self.method_seed


def candidates(grids: Iterable[tuple[str, Iterable]], budget: int) -> tuple[str, ...]:
    """The candidates of all methods as texts, `budget` of each.

    Args:
      grids: for each method its name and pairs of (hyper-parameter, values); a candidate is one
        value of each.
      budget: number of candidates of a method.

    Raises:
      InputError: if a grid has another size, two candidates are the same, a method comes twice,
        or a candidate is none.

    >>> candidates([("finetune", [("learning_rate", (0.1, 0.01)), ("epochs", (2,))])], 2)
    ('finetune(epochs=2, learning_rate=0.1)', 'finetune(epochs=2, learning_rate=0.01)')
    """
    whole_number("budget", budget)
    texts, names = [], set()
    for name, axes in grids:
        if name in names:
            raise InputError(f"the grid of {name} is there twice; join the two")
        names.add(name)
        axes = [(field, tuple(values)) for field, values in axes]
        points = itertools.product(*(values for _, values in axes))
        fields = [field for field, _ in axes]
        own = [format_call(name, dict(zip(fields, point, strict=True))) for point in points]
        distinct = {str(methods.method(text)) for text in own}
        if len(own) != budget or len(distinct) != budget:
            raise InputError(
                f"the grid of {name} has {len(own)} candidates, {len(distinct)} of them distinct, "
                f"where every method has a budget of {budget}"
            )
        texts += own
    return tuple(texts)


def development_ids(chosen: np.ndarray, test: np.ndarray, num_examples: int) -> np.ndarray:
    """A development forget set without any example of the test one, int64, ascending.

    Args:
      chosen: ids of the development set, drawn in the same way with another seed.
      test: ids of the forget set that results will be reported on.
      num_examples: size of the training set.

    Raises:
      InputError: if less than `LEAST_SHARE` of it is left.
    """
    left = np.setdiff1d(chosen, test)
    if len(left) < LEAST_SHARE * len(chosen):
        raise InputError(
            f"{len(chosen) - len(left)} of {len(chosen)} development examples belong to the test "
            "forget set; draw the two with different seeds"
        )
    return check_forget_ids(left, num_examples)


def trials(studied: Iterable[list[Record]]) -> Iterable[Trial]:
    """One trial for each model of a study, from what `run_study` yields."""
    wanted = {
        ("tow", None, "twin"): "tow",
        ("tow_mia", None, "twin"): "tow_mia",
        ("tow", None, "independent"): "tow_independent",
        ("tow_mia", None, "independent"): "tow_mia_independent",
        ("accuracy", "forget", None): "forget_accuracy",
        ("accuracy", "retain", None): "retain_accuracy",
        ("accuracy", "test", None): "test_accuracy",
    }
    shared = [
        field.name
        for field in dataclasses.fields(Trial)
        if field.name in {other.name for other in dataclasses.fields(Record)}
    ]
    for records in studied:
        found, note = {}, None
        for record in records:
            key = record.metric, record.split, record.oracle
            if key in wanted and record.at is None:
                found[wanted[key]] = record.value
                note = record.note or note
        if not found:  # a training curve
            continue
        one = {name: getattr(records[0], name) for name in shared}
        costs = {"cost": records[0].cost_ratio_gradients}
        costs["cost_seconds"] = records[0].cost_ratio_seconds
        yield Trial(**{**one, **found, **costs, "note": note})


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A candidate over the training seeds.

    Attributes:
      label: method with its hyper-parameters.
      hyperparameters: all of them.
      values: the criterion for each training seed, a mean over the method seeds.
      cost: mean cost relative to retraining, `None` where it failed.
      note: why it is not eligible; `None` if it is.
    """

    label: str
    hyperparameters: dict[str, Any]
    values: tuple[float, ...]
    cost: float | None
    note: str | None = None

    @property
    def mean(self) -> float:
        """The criterion's mean over the training seeds."""
        return float(np.mean(self.values))


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the sweep says of one method.

    Attributes:
      method: name of the method.
      ranked: eligible candidates, best first; of equal ones the cheaper, then the first tried.
      refused: the others, each with its note.
      edges: hyper-parameters of the best that are the smallest or largest tried, in words.
    """

    method: str
    ranked: tuple[Candidate, ...]
    refused: tuple[Candidate, ...]
    edges: tuple[str, ...]

    @property
    def best(self) -> Candidate | None:
        """The best eligible candidate."""
        return self.ranked[0] if self.ranked else None

    @property
    def runner_up(self) -> Candidate | None:
        """The second best."""
        return self.ranked[1] if len(self.ranked) > 1 else None


def choose(rows: Sequence[Trial], criterion: str, most_cost: float | None = None) -> list[Choice]:
    """The best candidate of every method, references left out.

    Args:
      rows: trials of one experiment.
      criterion: one of `CRITERIA`, larger is better.
      most_cost: example-gradients relative to retraining that a candidate may cost on average.

    Raises:
      InputError: on an unknown criterion.
    """
    check_criterion(criterion)
    seeds = {row.train_seed for row in rows}
    by_method: dict[str, list[Candidate]] = {}
    by_label = collections.defaultdict(list)
    for row in rows:
        if row.method not in REFERENCES:
            by_label[row.label].append(row)
    for members in by_label.values():
        candidate = _candidate(members, criterion, seeds, most_cost)
        by_method.setdefault(members[0].method, []).append(candidate)
    return [_choice(method, tried) for method, tried in by_method.items()]


def check_criterion(criterion: str) -> str:
    """Returns one of `CRITERIA`.

    Raises:
      InputError: if it is another.
    """
    if criterion not in CRITERIA:
        raise InputError(f"unknown criterion {criterion!r}; choose one of {list(CRITERIA)}")
    return criterion


def seed_values(rows: Sequence[Trial], criterion: str) -> tuple[float, ...]:
    """The criterion for each training seed that has it for all method seeds, by seed."""
    by_seed = collections.defaultdict(list)
    for row in rows:
        by_seed[row.train_seed].append(getattr(row, criterion))
    complete = (by_seed[seed] for seed in sorted(by_seed))
    return tuple(float(np.mean(values)) for values in complete if None not in values)


def _candidate(members, criterion, seeds, most_cost) -> Candidate:
    values = seed_values(members, criterion)
    costs = [row.cost for row in members if row.cost is not None]
    cost = float(np.mean(costs)) if costs else None
    note = None
    if len(values) < len(seeds):
        reasons = [row.note for row in members if row.note]
        note = f"failed on {len(seeds) - len(values)} of {len(seeds)} seeds"
        note += f": {reasons[0]}" if reasons else ""
    elif most_cost is not None and cost > most_cost:
        note = f"costs {cost:.2g} of retraining"
    first = members[0]
    return Candidate(first.label, first.hyperparameters, values, cost, note)


def _choice(method: str, tried: list[Candidate]) -> Choice:
    ranked = sorted(
        (candidate for candidate in tried if candidate.note is None),
        key=lambda candidate: (-candidate.mean, candidate.cost),
    )
    refused = tuple(candidate for candidate in tried if candidate.note is not None)
    edges = _edges(ranked[0], tried) if ranked else ()
    return Choice(method, tuple(ranked), refused, edges)


def _edges(best: Candidate, tried: Sequence[Candidate]) -> tuple[str, ...]:
    found = []
    for name, value in sorted(best.hyperparameters.items()):
        values = [candidate.hyperparameters[name] for candidate in tried]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if not numbers or len(set(values)) == 1:
            continue
        if value in (min(values), max(values)):
            end = "smallest" if value == min(values) else "largest"
            found.append(f"{name}={value!r} ({end} tried)")
    return tuple(found)
