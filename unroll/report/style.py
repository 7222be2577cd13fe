"""How the figures look: one colour and marker per method, the same in every figure of a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unroll.errors import InputError
from unroll.evaluation.records import NULL, ORIGINAL, RETRAIN, Record
from unroll.report.summary import Row, summarize

INK = "#1f2328"
MUTED = "#6e7781"
FAINT = "#d0d7de"
# Okabe and Ito's palette, which colour-blind readers can tell apart, without yellow and black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Seven markers and six colours: 42 methods before a pair repeats.
_MARKERS = ("o", "s", "^", "D", "v", "p", ">")


@dataclasses.dataclass(frozen=True)
class MethodStyle:
    """Colour and marker of a method."""

    colour: str
    marker: str


_REFERENCES = {
    ORIGINAL: MethodStyle(MUTED, "X"),
    RETRAIN: MethodStyle(INK, "*"),
    NULL: MethodStyle(MUTED, "d"),
}


def method_styles(rows: Iterable[Row]) -> dict[str, MethodStyle]:
    """Assigns a style to each method name; the variants of a method share it."""
    names = sorted({row.method for row in rows if row.method not in _REFERENCES})
    styles = {
        name: MethodStyle(COLOURS[i % len(COLOURS)], _MARKERS[i % len(_MARKERS)])
        for i, name in enumerate(names)
    }
    return {**styles, **_REFERENCES}


def section_rows(records: Sequence[Record]) -> list[Row]:
    """Summarises the records of one section; a figure that mixes sections would compare apples."""
    rows = summarize(records)
    if len({row.section for row in rows}) > 1:
        raise InputError("a figure shows one section; split the records with `group_sections`")
    return rows


def new_figure(width: float, height: float) -> Figure:
    """Makes an empty figure without touching the global state of matplotlib."""
    return Figure(figsize=(width, height), facecolor="white")


def plain_axes(axes: Axes) -> None:
    """Strips the frame of a plot down to what carries information."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
