"""What makes unlearning hard: tug of war by the level of memorization and of entanglement.

Design: one line per method in a panel per axis, and the original beside them: what doing nothing
would give is what a method has to beat at each level.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from unroll.errors import InputError
from unroll.evaluation.difficulty import AXES, LEVELS, DifficultySet
from unroll.evaluation.records import NULL, ORIGINAL, RETRAIN, Record
from unroll.report.files import write_atomically
from unroll.report.formatting import display_labels, format_number, wrapped
from unroll.report.rum import cell, markdown_table, save_figure
from unroll.report.style import COLOURS, INK, MUTED, new_figure, plain_axes
from unroll.report.summary import Interval, Row, summarize

_MARKERS = ("o", "s", "^", "D", "v", "p")
_GUIDE = """\
Six forget sets of one size: the least, middle and most memorized examples, and groups of examples
at equal distances from the centroid of the features, of which the ones with the lowest, median and
highest entanglement score are forgotten. Cells are means over training seeds with half the width of
their 95% Student t intervals. ToW is against the twin unless said otherwise; 1 is the twin itself.
`original` does nothing, `retrain_vs_retrain` is an independent retrain."""


def write_difficulty(
    records: Sequence[Record], sets: Sequence[DifficultySet], workdir: Path, title: str
) -> Path:
    """Writes `difficulty.md` and `difficulty.png` into a directory; returns the page's path.

    Args:
      records: of one study for each set, whose forget sets are described by `description`.
      sets: the forget sets.
      workdir: an existing directory.
      title: of the page.

    Raises:
      InputError: if a set has no records.
    """
    rows = _rows(records, sets)
    save_figure(difficulty_figure(records, sets), workdir / "difficulty.png")
    page = _page(rows, sets, title)
    path = workdir / "difficulty.md"
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def difficulty_figure(records: Sequence[Record], sets: Sequence[DifficultySet]) -> Figure:
    """Tug of war against the twin by level, a panel for each axis and a line for each method.

    Intervals end at 0 and 1, between which the tug of war lies.
    """
    rows = _rows(records, sets)
    first = [row for row in rows[sets[0].description] if row.method not in (RETRAIN, NULL)]
    names = display_labels(first)
    shown = [axis for axis in AXES if any(each.axis == axis for each in sets)]
    figure = new_figure(3.4 * len(shown) + 2.6, 3.4)
    grid = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    methods = [row.label for row in first if row.method != ORIGINAL]
    for axes, axis in zip(grid, shown, strict=True):
        plain_axes(axes)
        for row in first:
            number = methods.index(row.label) if row.label in methods else None
            colour = MUTED if number is None else COLOURS[number % len(COLOURS)]
            marker = "X" if number is None else _MARKERS[number % len(_MARKERS)]
            places, intervals = _line(rows, sets, axis, row.label)
            # Side by side, so that intervals of the same level do not hide each other.
            shift = 0.0 if number is None else 0.05 * (number - (len(methods) - 1) / 2)
            axes.errorbar(
                [place + shift for place in places],
                [interval.mean for interval in intervals],
                yerr=_bars(intervals),
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=1.2,
                capsize=2,
                label=wrapped(names[row.label], 30),
            )
        axes.set_xticks(range(len(LEVELS)), LEVELS)
        axes.set_xlim(-0.35, len(LEVELS) - 0.65)
        axes.set_title(axis, fontsize=10, color=INK)
    grid[0].set_ylabel("ToW, twin")
    figure.legend(
        *grid[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False
    )
    figure.set_layout_engine("constrained")
    return figure


def _rows(records: Sequence[Record], sets: Sequence[DifficultySet]) -> dict[str, list[Row]]:
    by_set: dict[str, list[Row]] = {each.description: [] for each in sets}
    for row in summarize(records):
        if row.section.forget in by_set:
            by_set[row.section.forget].append(row)
    for name, rows in by_set.items():
        if not rows:
            raise InputError(f"no records of the forget set {name!r}; run its study first")
    return by_set


def _line(rows, sets, axis: str, label: str) -> tuple[list[int], list[Interval]]:
    places, intervals = [], []
    for each in sets:
        value = _tow(rows[each.description], label)
        if each.axis == axis and isinstance(value, Interval) and not value.missing:
            places.append(LEVELS.index(each.level))
            intervals.append(value)
    return places, intervals


def _bars(intervals: Sequence[Interval]) -> list[list[float]]:
    """Lengths of the bars below and above the means."""
    known = [each if each.low is not None else None for each in intervals]
    below = [each.mean - max(each.low, 0.0) if each else 0.0 for each in known]
    above = [min(each.high, 1.0) - each.mean if each else 0.0 for each in known]
    return [[max(length, 0.0) for length in side] for side in (below, above)]


def _tow(rows: Sequence[Row], label: str, metric: str = "tow", oracle: str = "twin"):
    row = next((row for row in rows if row.label == label), None)
    return None if row is None else row.get(metric, None, oracle)


def _page(rows: dict[str, list[Row]], sets: Sequence[DifficultySet], title: str) -> str:
    first = rows[sets[0].description]
    section = first[0].section
    lines = [f"# {title}", "", _GUIDE, ""]
    lines += [f"- Data: {section.dataset}", f"- Model: {section.model}", ""]
    lines += ["![difficulty](difficulty.png)", "", "## Forget sets", ""]
    header = ["forget set", "examples", "mean memorization", "its spread", "entanglement score"]
    header += [f"accuracy, {name}" for name in (ORIGINAL, RETRAIN)]
    body = []
    for each in sets:
        own = {row.method: row.get("accuracy", "forget") for row in rows[each.description]}
        numbers = (each.memorization, each.memorization_spread, each.entanglement)
        body.append(
            [each.description, str(len(each.ids)), *map(format_number, numbers)]
            + [cell(own[name]) if name in own else "n/a" for name in (ORIGINAL, RETRAIN)]
        )
    lines += [*markdown_table(header, body), ""]
    names = display_labels(first)
    for metric, oracle, heading in (
        ("tow", "twin", "ToW against the twin"),
        ("tow", "independent", "ToW against independent retrains"),
        ("tow_mia", "twin", "ToW-MIA against the twin"),
    ):
        table = []
        for row in first:
            values = [_tow(rows[each.description], row.label, metric, oracle) for each in sets]
            table.append([f"`{names[row.label]}`", *map(cell, values)])
        if any(text != "n/a" for line in table for text in line[1:]):
            header = ["method", *(each.description for each in sets)]
            lines += [f"## {heading}", "", *markdown_table(header, table), ""]
    return "\n".join(lines)
