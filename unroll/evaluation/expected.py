"""Expected seconds and bytes of an experiment, before it starts.

    seconds = sum over works of  count * steps * multiple * measured seconds of one step
    bytes   = the most that one of them holds at its peak; they run one after the other

What does not fit in memory is refused before any step is taken.

Design: one measured step for each kind of recipe; recipes that differ in their numbers only (rate,
strength of a penalty) and in their length are of one kind. Rejected: measuring each cell of a grid;
a grid over strengths would compile everything before it says how long it takes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from unroll.evaluation.work import Work
from unroll.training.estimate import Footprint, footprint, step_seconds
from unroll.training.memory import Bytes, Limits, format_bytes, memory_limits
from unroll.training.run import Progress


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What is expected of an experiment; printed, it is one line.

    Attributes:
      seconds: of computing, without compilation and evaluation.
      needed: bytes at the peak.
      limits: what there was when it was made.
      counts: pieces and their least and greatest number of steps, by what they are.
      at_most: whether the truth may be much less.
    """

    seconds: float
    needed: Bytes
    limits: Limits
    counts: dict[str, tuple[int, int, int]]
    at_most: bool

    def __str__(self) -> str:
        if not self.counts:
            return "expected: nothing to train, everything is stored"
        first = "at most" if self.at_most else "about"
        return (
            f"expected: {first} {format_seconds(self.seconds)} for {self._work()}, compilation and "
            f"evaluation not counted; arrays take {self._memory()}"
        )

    def _work(self) -> str:
        parts = []
        for what, (count, least, most) in self.counts.items():
            text = f"{count} {what}" + ("s" if count > 1 and not what.endswith("s") else "")
            if what == "training":
                text += f" of {least}" + (f" to {most}" if most > least else "") + " steps"
            parts.append(text)
        return " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)

    def _memory(self) -> str:
        return " and ".join(
            f"{format_bytes(needed)} of {name}, of which nobody says how much there is"
            if limit is None
            else f"{format_bytes(needed)} of {format_bytes(limit)} of {name}"
            for name, needed, limit in self.limits.pairs(self.needed)
        )


def format_seconds(seconds: float) -> str:
    """Seconds in a unit that suits them.

    >>> format_seconds(0.2), format_seconds(40), format_seconds(250), format_seconds(9000)
    ('1 s', '40 s', '4 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def estimate(
    works: Iterable[Work],
    *,
    limits: Limits | None = None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
) -> Estimate:
    """Expected seconds and bytes of works that are done one after the other.

    Args:
      works: read once; of each kind of recipe one training set is held at a time.
      limits: what there is, by default the first device's and the host's at this moment.
      clock: seconds.
      progress: called with (recipes looked at, in all).

    Raises:
      InputError: if a work does not fit in memory. Only programs were compiled by then.
    """
    kinds: dict[str, _Kind] = {}
    counts: dict[str, tuple[int, int, int]] = {}
    at_most = False
    for work in works:
        if work.count:
            kinds.setdefault(_kind(work), _Kind(work)).add(work)
            count, least, most = counts.get(work.what, (0, math.inf, 0))
            steps = len(work.schedule)
            counts[work.what] = count + work.count, min(least, steps), max(most, steps)
            at_most = at_most or (work.at_most and work.multiple > 0)
    total = 2 * len(kinds)
    limits = memory_limits() if limits is None else limits
    for number, kind in enumerate(kinds.values(), start=1):
        kind.look()
        if progress is not None:
            progress(number, total)
    needed = _peak(kinds.values(), limits)
    seconds = 0.0
    for number, kind in enumerate(kinds.values(), start=len(kinds) + 1):
        work = kind.longest
        seconds += kind.steps * step_seconds(work.spec, work.dataset, work.schedule, clock=clock)
        if progress is not None:
            progress(number, total)
    return Estimate(seconds, needed, limits, counts, at_most)


class _Kind:
    """Works whose steps cost the same: their longest recipe, and steps of training in all."""

    def __init__(self, work: Work):
        self.longest, self.steps = work, 0.0
        self.parts: dict[str, Work] = {}
        self.footprint: Footprint | None = None

    def add(self, work: Work) -> None:
        self.steps += work.count * len(work.schedule) * work.multiple
        label = work.label or work.what
        if len(work.schedule) > len(self.longest.schedule):
            self.longest = work
        if label not in self.parts or len(work.schedule) > len(self.parts[label].schedule):
            self.parts[label] = work

    def look(self) -> None:
        work = self.longest
        self.footprint = footprint(work.spec, work.dataset, work.schedule)


def _kind(work: Work) -> str:
    """Equal for recipes whose steps cost the same: numbers matter only in whether they are 0."""
    data = work.dataset
    return json.dumps(
        [
            _without_numbers(work.spec.describe()),
            [str(data.inputs.dtype), *data.inputs.shape],
            int(np.shape(work.schedule)[1]),
        ],
        sort_keys=True,
    )


def _without_numbers(description: Any) -> Any:
    if isinstance(description, dict):
        return {key: _without_numbers(value) for key, value in description.items()}
    if isinstance(description, list):
        return [_without_numbers(value) for value in description]
    return description != 0 if isinstance(description, float) else description


def _peak(kinds: Iterable[_Kind], limits: Limits) -> Bytes:
    """The most bytes, on device and host, of a work; of each label the largest recipe counts."""
    largest: dict[str, _Kind] = {}
    for kind in kinds:
        for label in kind.parts:
            known = largest.get(label)
            if known is None or known.footprint.program.total < kind.footprint.program.total:
                largest[label] = kind
    device = host = 0
    # The cheapest question first: a training that does not fit need not be differentiated.
    for label, kind in sorted(largest.items(), key=lambda item: item[1].parts[item[0]].multiple):
        work = kind.parts[label]
        found = work.memory(kind.longest.spec, kind.footprint)
        limits.check(found, f"{work.what} ({label})" if work.label else work.what, work.hint)
        device, host = max(device, found.device), max(host, found.host)
    return Bytes(device, host)
