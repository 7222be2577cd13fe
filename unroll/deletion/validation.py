"""Metrics with thresholds that accept or refuse an updated model.

Design: a check is the name of a metric and the ends of an interval; what it needs (a test set, the
retrained model) is asked for before any work. A value that is not a number fails. Rejected: a score
that weighs the metrics; a refusal has to say which line was crossed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from unroll.data.dataset import Dataset
from unroll.errors import InputError
from unroll.metrics.membership import loss_attack_auc
from unroll.metrics.outputs import accuracy
from unroll.metrics.verification import relative_verification_error, verification_error
from unroll.problem import Problem
from unroll.training.predict import predict
from unroll.types import Params, PyTree


class Candidate(NamedTuple):
    """A model to be judged.

    Attributes:
      problem: the request.
      params: parameters as they would be served.
      model_state: the other variables.
      test: examples that were never trained on, or `None`.
      twin: parameters of the model retrained without the forget set, or `None`.
    """

    problem: Problem
    params: Params
    model_state: PyTree
    test: Dataset | None = None
    twin: Params | None = None

    def original(self) -> Candidate:
        """The old model in its place."""
        state = self.problem.run.state
        return self._replace(params=state.params, model_state=state.model_state)

    def logits(self, dataset: Dataset):
        """`[N, C]` of the model."""
        return predict(self.problem.run.spec, self.params, self.model_state, dataset)


def _accuracy(candidate: Candidate, dataset: Dataset) -> float:
    return accuracy(candidate.logits(dataset), dataset.labels)


def _attack(candidate: Candidate) -> float:
    forget, test = candidate.problem.forget_data, candidate.test
    return loss_attack_auc(
        candidate.logits(forget), forget.labels, candidate.logits(test), test.labels
    )


def _relative_error(candidate: Candidate) -> float:
    original = candidate.problem.run.state.params
    return relative_verification_error(candidate.params, candidate.twin, original)


class _Metric(NamedTuple):
    value: Callable[[Candidate], float]
    needs: str | None = None


METRICS = {
    "test_accuracy": _Metric(lambda c: _accuracy(c, c.test), "test"),
    "test_accuracy_drop": _Metric(
        lambda c: _accuracy(c.original(), c.test) - _accuracy(c, c.test), "test"
    ),
    "retain_accuracy": _Metric(lambda c: _accuracy(c, c.problem.retain_data)),
    "forget_accuracy": _Metric(lambda c: _accuracy(c, c.problem.forget_data)),
    "loss_attack_auc": _Metric(_attack, "test"),
    "verification_error": _Metric(lambda c: verification_error(c.params, c.twin), "twin"),
    "relative_verification_error": _Metric(_relative_error, "twin"),
}
"""Names of the metrics. A drop is that of the old model's accuracy; the loss attack tells forgotten
from test examples; the verification errors are distances from the retrained model."""


@dataclasses.dataclass(frozen=True)
class Check:
    """A metric that must lie in an interval.

    Attributes:
      metric: one of `METRICS`.
      at_least: lower end; none by default.
      at_most: upper end; none by default.

    Raises:
      InputError: on an unknown metric, or without an end.
    """

    metric: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self):
        if self.metric not in METRICS:
            raise InputError(f"unknown metric {self.metric!r}; choose one of {sorted(METRICS)}")
        if self.at_least is None and self.at_most is None:
            raise InputError(f"the check of {self.metric} needs at_least= or at_most=")

    @property
    def needs(self) -> str | None:
        """`test` or `twin`, where the metric cannot do without."""
        return METRICS[self.metric].needs

    def __call__(self, candidate: Candidate) -> Checked:
        """Measures and compares."""
        value = float(METRICS[self.metric].value(candidate))
        above = self.at_least is None or value >= self.at_least
        below = self.at_most is None or value <= self.at_most
        passed = math.isfinite(value) and above and below
        return Checked(self.metric, value, self.at_least, self.at_most, passed)


@dataclasses.dataclass(frozen=True)
class Checked:
    """A line of a report: metric, value, thresholds, and whether it passed."""

    metric: str
    value: float
    at_least: float | None
    at_most: float | None
    passed: bool

    def __str__(self) -> str:
        ends = [
            f"{word} {end:.4g}"
            for word, end in (("at least", self.at_least), ("at most", self.at_most))
            if end is not None
        ]
        verdict = "passed" if self.passed else "FAILED"
        return f"{self.metric} {self.value:.4g} ({', '.join(ends)}): {verdict}"


def require(checks: Iterable[Check], test: Dataset | None, twin: Params | None) -> None:
    """Raises `InputError` if a check needs a test set or a retrained model that is not there."""
    for check in checks:
        if (check.needs == "test" and test is None) or (check.needs == "twin" and twin is None):
            raise InputError(f"the check of {check.metric} needs {check.needs}=")
