"""Signed accuracy gaps to the twin, with the null row as the yardstick."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unroll.evaluation.records import NULL, RETRAIN, Record
from unroll.report.formatting import display_labels, wrapped
from unroll.report.style import (
    FAINT,
    INK,
    MUTED,
    method_styles,
    new_figure,
    plain_axes,
    section_rows,
)
from unroll.report.summary import Interval, Row
from unroll.report.tables import SPLITS

_ORACLE = "twin"


def accuracy_gaps(records: Sequence[Record]) -> Figure | None:
    """Draws accuracy minus the twin's accuracy on forget, retain and test set.

    A method that failed for some seeds has no point: the others would speak for it.

    Args:
      records: records of one section.

    Returns:
      The figure, or `None` when no row has an accuracy gap to the twin.
    """
    rows = section_rows(records)
    drawn = [row for row in rows if row.method not in (NULL, RETRAIN) and _has_gap(row)]
    if not drawn:
        return None
    null = next((row for row in rows if row.method == NULL), None)
    labels = display_labels(rows)
    names = [wrapped(labels[row.label]) for row in drawn]
    lines = max(name.count("\n") + 1 for name in names)
    height = 1.3 + len(drawn) * (0.13 + 0.14 * lines)
    figure = new_figure(8.6, height)
    panels = figure.subplots(1, len(SPLITS), sharey=True)
    for axes, split in zip(panels, SPLITS, strict=True):
        _draw_null(axes, null, split)
        _draw_gaps(axes, drawn, split)
        axes.set_title(f"{split} set", fontsize=10, color=INK)
        plain_axes(axes)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=5)
    panels[0].set_yticks(range(len(drawn)), names)
    panels[0].set_ylim(len(drawn) - 0.4, -0.6)
    band = "; grey: independent retrain" if null is not None and _has_gap(null) else ""
    figure.supxlabel(f"Accuracy minus the twin's accuracy{band}", fontsize=9.5, color=INK)
    figure.set_layout_engine("constrained")
    return figure


def _has_gap(row: Row) -> bool:
    return any(isinstance(_gap(row, split), Interval) for split in SPLITS)


def _gap(row: Row, split: str):
    return row.get("accuracy_gap", split, _ORACLE)


def _draw_null(axes: Axes, null: Row | None, split: str) -> None:
    axes.axvline(0, color=MUTED, lw=0.8, zorder=1)
    gap = None if null is None else _gap(null, split)
    if not isinstance(gap, Interval):
        return
    if gap.low is None:
        axes.axvline(gap.mean, color=FAINT, lw=2, zorder=0, gid="null")
    else:
        axes.axvspan(gap.low, gap.high, color=FAINT, alpha=0.7, lw=0, zorder=0, gid="null")


def _draw_gaps(axes: Axes, rows: Sequence[Row], split: str) -> None:
    styles = method_styles(rows)
    for position, row in enumerate(rows):
        gap, style = _gap(row, split), styles[row.method]
        if not isinstance(gap, Interval) or gap.missing:
            axes.text(0, position, "n/a", fontsize=8, color=MUTED, ha="center", va="center")
            continue
        if gap.low is not None:
            axes.plot([gap.low, gap.high], [position] * 2, color=style.colour, lw=1.6, zorder=3)
        axes.plot(
            [gap.mean],
            [position],
            ls="",
            marker=style.marker,
            color=style.colour,
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.6,
            zorder=4,
            gid=f"point {row.label}",
        )
