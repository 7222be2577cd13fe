"""Points of the benchmark of scale, and how they are shown: a table and a figure of rows."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine as machines
from rich.table import Table

from unroll.report.files import write_atomically
from unroll.report.style import COLOURS, MUTED, new_figure, plain_axes

_HEADER = ("Work", "Series", "Sizes", "Seconds", "Each, ms", "Exponent")
_READING = """\
A cell under *seconds* is the median of the turns, with their range, for each of the sizes. *Each*
is the time divided by the size at the largest. *Exponent* is the slope of log time over log size
between the two largest sizes: 1 is linear, less is a fixed part that is still being paid off, more
is a cost that grows with the others."""
_VIRTUAL = """\
On the CPU the devices are virtual and share {cores} cores: more of them than cores is a test that
sharding works, and what it costs, not of speed."""


@dataclasses.dataclass(frozen=True)
class Point:
    """A line of the results file.

    Attributes:
      work: what grows: models, steps, cohorts, requests or devices.
      series: what is computed.
      size: how many of them.
      seconds: one figure for each turn.
      compilation_seconds: of the turn before, not counted.
      smoke: whether it was a smoke test, whose figures mean nothing.
      machine: what it ran on.
    """

    work: str
    series: str
    size: int
    seconds: list[float]
    compilation_seconds: float
    smoke: bool
    machine: dict[str, Any]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def spread(values: Sequence[float]) -> str:
    """Median with the range.

    >>> spread([3.0, 1.0, 2.0])
    '2 [1, 3]'
    """
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


def latest(points: Sequence[Point], machine: dict, smoke: bool) -> list[Point]:
    """The last of each point among those of one machine; virtual devices are the same machine."""

    def form(described: dict) -> dict:
        return {**described, "devices": None}

    fitting = [
        point
        for point in points
        if point.smoke == smoke and machines.same(form(point.machine), form(machine))
    ]
    found = {(point.work, point.series, point.size): point for point in fitting}
    return sorted(found.values(), key=lambda point: (point.work, point.series, point.size))


def by_series(points: Sequence[Point]) -> dict[tuple[str, str], list[Point]]:
    """Points by work and series, ascending in size."""
    groups = itertools.groupby(points, key=lambda point: (point.work, point.series))
    return {key: list(members) for key, members in groups}


def exponent(points: Sequence[Point]) -> float | None:
    """Slope of log time over log size between the two largest sizes; 1 is linear."""
    if len(points) < 2:
        return None
    smaller, larger = points[-2:]
    return math.log(larger.median / smaller.median) / math.log(larger.size / smaller.size)


def _cells(work: str, series: str, points: Sequence[Point]) -> tuple[str, ...]:
    slope = exponent(points)
    return (
        work,
        series,
        ", ".join(str(point.size) for point in points),
        ", ".join(spread(point.seconds) for point in points),
        # Devices divide the work, they do not multiply it.
        "" if work == "devices" else f"{1e3 * points[-1].median / points[-1].size:.3g}",
        "" if slope is None else f"{slope:.2f}",
    )


def console_table(points: Sequence[Point], machine: dict) -> Table:
    """For the terminal."""
    table = Table(title=machines.in_words(machine), show_lines=True)
    for column in _HEADER:
        table.add_column(column)
    for key, members in by_series(points).items():
        table.add_row(*_cells(*key, members))
    return table


def markdown(points: Sequence[Point], machine: dict) -> str:
    """The table as markdown, with how to read it."""
    lines = ["# Scale", "", machines.in_words(machine), "", _READING, ""]
    if machine["device"] == "cpu":
        lines += [_VIRTUAL.format(cores=machine["cores"]), ""]
    lines += ["![scale](scale.png)", "", "| " + " | ".join(_HEADER) + " |"]
    lines += ["|---|---|---|---|---:|---:|"]
    for key, members in by_series(points).items():
        lines.append("| " + " | ".join(_cells(*key, members)) + " |")
    return "\n".join(lines) + "\n"


def figure(points: Sequence[Point]):
    """Seconds against size: a panel for each work, a line for each series, bars for the ranges."""
    works = sorted({point.work for point in points})
    columns = min(3, len(works))
    rows = -(-len(works) // columns)
    drawn = new_figure(4.4 * columns, 3.8 * rows)
    series = by_series(points)
    for index, work in enumerate(works, start=1):
        axes = drawn.add_subplot(rows, columns, index)
        plain_axes(axes)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        members = [(name, group) for (owner, name), group in series.items() if owner == work]
        for number, (name, group) in enumerate(members):
            sizes, medians = [p.size for p in group], [p.median for p in group]
            below = [p.median - min(p.seconds) for p in group]
            above = [max(p.seconds) - p.median for p in group]
            colour = COLOURS[number % len(COLOURS)]
            axes.errorbar(
                sizes, medians, (below, above), color=colour, lw=1.4, marker="o", ms=3.5, label=name
            )
            # Linear growth from the largest size down; over devices, a perfect division.
            slope = -1 if work == "devices" else 1
            ends = (sizes[0], sizes[-1])
            at = sizes[0] if work == "devices" else sizes[-1]
            anchor = medians[0] if work == "devices" else medians[-1]
            line = [anchor * (end / at) ** slope for end in ends]
            axes.plot(ends, line, color=MUTED, lw=0.7, ls=":", zorder=0)
        axes.set_xlabel(work)
        axes.set_xticks(_apart(sorted({p.size for _, group in members for p in group})))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if (index - 1) % columns == 0:
            axes.set_ylabel("seconds, without compilation")
        # Above the panel: lines of many series leave no room inside.
        axes.legend(
            frameon=False, fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0)
        )
    drawn.tight_layout()
    return drawn


def _apart(sizes: Sequence[int], factor: float = 1.6) -> list[int]:
    """The sizes whose labels do not run into that of the one before."""
    kept: list[int] = []
    for size in sizes:
        if not kept or size >= factor * kept[-1]:
            kept.append(size)
    return kept


def write(folder: Path, points: Sequence[Point], machine: dict) -> None:
    """Writes `scale.md` and `scale.png`."""
    text = markdown(points, machine)
    write_atomically(folder / "scale.md", lambda file: file.write(text.encode()))
    drawn = figure(points)
    write_atomically(
        folder / "scale.png",
        lambda file: drawn.savefig(file, format="png", dpi=150, bbox_inches="tight"),
    )
