"""When to stop forgetting, and what is read to know it.

A rule declares the splits whose accuracy it reads; a method gets no others. It is a pure function
of the accuracies so far: `verdict(history)`, where `history[e]` are those after epoch e and
`history[0]` those of the original.

Rules of Hoang et al. (arXiv 2312.04095): `val_gap` for samples, `retain_drop` for classes,
`held_out_drop` for depoisoning. All of them look at labelled data besides the forget set.
`fixed_epochs` and `forget_level` do not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Protocol

from unroll.calls import parse_call
from unroll.checks import whole_number
from unroll.data.options import call_with_options
from unroll.errors import InputError

Verdict = Literal["go on", "stop", "previous"]
"""Train another epoch; keep this model; keep the model of the epoch before."""
History = Sequence[Mapping[str, float]]


class StoppingRule(Protocol):
    """What a method asks of a rule."""

    reads: ClassVar[tuple[str, ...]]

    def verdict(self, history: History) -> Verdict:
        """What to do after the last epoch in the history."""
        ...


@dataclasses.dataclass(frozen=True)
class FixedEpochs:
    """Reads nothing.

    Attributes:
      count: epochs after which to stop, of those that the learning rate is made for; all by
        default.
    """

    count: int | None = None
    reads: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        if self.count is not None:
            whole_number("count", self.count)

    def verdict(self, history: History) -> Verdict:
        return "stop" if len(history) - 1 == self.count else "go on"


@dataclasses.dataclass(frozen=True)
class ForgetLevel:
    """Stops when the accuracy on the forget set is at most a level that was known before.

    Attributes:
      level: in [0, 1]; for a class its share of wrong guesses, for samples the accuracy that the
        original had on its test set.
    """

    level: float = 0.05
    reads: ClassVar[tuple[str, ...]] = ("forget",)

    def __post_init__(self):
        _share("level", self.level)

    def verdict(self, history: History) -> Verdict:
        return "stop" if history[-1]["forget"] <= self.level else "go on"


@dataclasses.dataclass(frozen=True)
class ValGap:
    """Stops when held-out data does better than the forget set; keeps the nearer of two epochs.

    `gap = acc(held out) - acc(forget)`; at the first epoch with a positive gap, this model or the
    one before, whichever has the smaller absolute gap.
    """

    reads: ClassVar[tuple[str, ...]] = ("forget", "held_out")

    def verdict(self, history: History) -> Verdict:
        gaps = [accuracy["held_out"] - accuracy["forget"] for accuracy in history[-2:]]
        if gaps[-1] <= 0:
            return "go on"
        return "previous" if len(gaps) > 1 and abs(gaps[0]) < abs(gaps[1]) else "stop"


@dataclasses.dataclass(frozen=True)
class RetainDrop:
    """Stops when the accuracy on the retain set has dropped too far; keeps the last model.

    Attributes:
      points: percentage points that may be lost; the reference's 5.
    """

    points: float = 5.0
    reads: ClassVar[tuple[str, ...]] = ("retain",)

    def __post_init__(self):
        _share("points", self.points, 100)

    def verdict(self, history: History) -> Verdict:
        return _dropped(history, "retain", self.points)


@dataclasses.dataclass(frozen=True)
class HeldOutDrop:
    """As `RetainDrop`, on held-out data.

    Attributes:
      points: percentage points that may be lost.
    """

    points: float = 5.0
    reads: ClassVar[tuple[str, ...]] = ("held_out",)

    def __post_init__(self):
        _share("points", self.points, 100)

    def verdict(self, history: History) -> Verdict:
        return _dropped(history, "held_out", self.points)


def _dropped(history: History, split: str, points: float) -> Verdict:
    lost = history[0][split] - history[-1][split]
    return "stop" if 100 * lost > points else "go on"


def _share(name: str, value: object, whole: float = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= whole:
        raise InputError(f"{name} is out of range: {value!r} of [0, {whole}]")


RULES = {
    "fixed_epochs": FixedEpochs,
    "forget_level": ForgetLevel,
    "val_gap": ValGap,
    "retain_drop": RetainDrop,
    "held_out_drop": HeldOutDrop,
}
"""The rules, by the name that configs use."""


def stopping_rule(text: str) -> StoppingRule:
    """Makes a rule from its name, or from a call such as `forget_level(level=0.05)`.

    Raises:
      InputError: on an unknown rule or option.

    >>> stopping_rule("retain_drop(points=3)")
    RetainDrop(points=3)
    """
    name, options = parse_call(text)
    if name not in RULES:
        raise InputError(f"unknown stopping rule {name!r}; choose one of {sorted(RULES)}")
    return call_with_options(RULES[name], f"stopping rule {name!r}", **options)
