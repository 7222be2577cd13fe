"""What a row of the benchmark is: its description, its settings, its result.

Design: a work names the function that measures it, `module:function`, and is imported only in the
process that measures it, so that the table can be made where a peer library is missing. Rejected:
a registry filled by decorators, which needs every peer to be importable in order to list the rows.
"""

import dataclasses
import importlib
import statistics
from typing import Any


class NotHereError(Exception):
    """A row that does not apply on this machine; the message says why."""


class DifferentWorkError(Exception):
    """The two sides of a row do not compute the same thing."""


@dataclasses.dataclass(frozen=True)
class Goal:
    """The ratio to reach.

    Attributes:
      reach: the ratio that is asked for.
      aim: a better one, hoped for; `None` where there is none.
      at_most: for costs, ours over theirs; else it is a speed-up, theirs over ours, at least.
      anywhere: holds on any device; else only on the CPU.
    """

    reach: float
    aim: float | None = None
    at_most: bool = False
    anywhere: bool = False

    def __str__(self) -> str:
        words = f"at most {self.reach:g}" if self.at_most else f"at least {self.reach:g}"
        return words if self.aim is None else f"{words}, aim {self.aim:g}"

    def ratio(self, ours: float, theirs: float) -> float:
        return ours / theirs if self.at_most else theirs / ours

    def met(self, ratio: float) -> bool:
        return ratio <= self.reach if self.at_most else ratio >= self.reach


@dataclasses.dataclass(frozen=True)
class Work:
    """A row before it is measured.

    Attributes:
      name: on the command line.
      title: what is computed.
      against: what it is compared with.
      unit: of both sides' figures, "s ..." or "ms ...".
      measured_by: `module:function` of a function `(Settings) -> Outcome`.
      arguments: keyword arguments of that function.
      goal: ratio to reach, `None` for absolute figures.
      accelerator: whether it is for an accelerator only.
    """

    name: str
    title: str
    against: str
    unit: str
    measured_by: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    goal: Goal | None = None
    accelerator: bool = False

    @property
    def factor(self) -> float:
        """From seconds to the unit."""
        return 1e3 if self.unit.startswith("ms") else 1.0

    def measure(self, settings: "Settings") -> "Outcome":
        """Measures the row in this process.

        Raises:
          NotHereError: if the row does not apply here.
          DifferentWorkError: if the two sides do not compute the same thing.
        """
        if self.accelerator and settings.device == "cpu":
            raise NotHereError("no accelerator")
        module, function = self.measured_by.split(":")
        try:
            measure = getattr(importlib.import_module(module), function)
        except ModuleNotFoundError as error:
            if error.name not in ("torch", "pyhessian"):
                raise
            raise NotHereError(f'no {error.name}: pip install -e ".[peers]"') from None
        # Not at the top, since the script whose start is timed for PyTorch imports this module.
        from unroll.training.timing import Stopwatch

        watch = Stopwatch()
        outcome = measure(settings, **self.arguments)
        if outcome.compilation_seconds is None:
            seconds = watch.compilation_seconds()
            outcome = dataclasses.replace(outcome, compilation_seconds=seconds)
        return outcome


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to measure: turns of each side, the device, and whether this is only a smoke test."""

    repetitions: int = 7
    device: str = "cpu"
    smoke: bool = False

    def choose(self, full: Any, smoke: Any) -> Any:
        """The first, or the second in a smoke test."""
        return smoke if self.smoke else full

    def steps(self, count: int) -> int:
        """Steps in a turn: so many on the CPU, more where a step takes a fraction of that time."""
        return self.choose(count if self.device == "cpu" else 10 * count, 4)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was measured, in seconds.

    Attributes:
      ours: figures of this library, one for each turn.
      theirs: figures of the other side, turn about with ours.
      check: what shows that both computed the same thing.
      setting: how the other side was set up.
      compilation_seconds: of this library's programs, not counted in the figures; `None` for what
        jax reports of this process.
    """

    ours: list[float]
    theirs: list[float]
    check: str
    setting: str = ""
    compilation_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the results file.

    Attributes:
      work: name of the work.
      ours: this library's figures, in the unit of the work; `None` if not run.
      theirs: the other side's.
      ratio: ratio of the medians; a speed-up, or a cost where the goal is `at most`.
      ratio_range: least and greatest ratio of two neighbouring turns.
      met: whether the goal is reached; `None` where there is no goal, or it was not run.
      check: what shows that both sides computed the same thing.
      setting: how the other side was set up.
      compilation_seconds: of this library's programs, not counted.
      row_seconds: the whole row, imports, compilation and search for settings included.
      smoke: whether it was a smoke test, whose figures mean nothing.
      machine: what it ran on.
      note: why it was not run.
      failed: whether it was not run because something broke.
    """

    work: str
    ours: list[float] | None
    theirs: list[float] | None
    ratio: float | None
    ratio_range: list[float] | None
    met: bool | None
    check: str
    setting: str
    compilation_seconds: float | None
    row_seconds: float
    smoke: bool
    machine: dict[str, Any]
    note: str | None = None
    failed: bool = False


def make_row(
    work: Work, settings: Settings, machine: dict, outcome: Outcome, seconds: float
) -> Row:
    """The line of a row that was measured."""
    goal = work.goal or Goal(reach=0.0)
    ratio = goal.ratio(statistics.median(outcome.ours), statistics.median(outcome.theirs))
    turns = [goal.ratio(*turn) for turn in zip(outcome.ours, outcome.theirs, strict=True)]
    applies = work.goal is not None and not settings.smoke
    applies = applies and (goal.anywhere or settings.device == "cpu")
    return Row(
        work=work.name,
        ours=[work.factor * value for value in outcome.ours],
        theirs=[work.factor * value for value in outcome.theirs],
        ratio=ratio,
        ratio_range=[min(turns), max(turns)],
        met=goal.met(ratio) if applies else None,
        check=outcome.check,
        setting=outcome.setting,
        compilation_seconds=outcome.compilation_seconds,
        row_seconds=seconds,
        smoke=settings.smoke,
        machine=machine,
    )


def missing_row(
    work: Work, settings: Settings, machine: dict, note: str, failed: bool = False
) -> Row:
    """The line of a row that was not run, with the reason."""
    return Row(
        work=work.name,
        ours=None,
        theirs=None,
        ratio=None,
        ratio_range=None,
        met=None,
        check="",
        setting="",
        compilation_seconds=None,
        row_seconds=0.0,
        smoke=settings.smoke,
        machine=machine,
        note=note,
        failed=failed,
    )
