"""Figure 1: how close each method comes to the retrained model, and at what cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from unroll.evaluation.records import NULL, Record
from unroll.report.axes import LogAxisWithZero
from unroll.report.formatting import display_labels
from unroll.report.labels import Label, place_labels
from unroll.report.style import (
    FAINT,
    INK,
    MUTED,
    MethodStyle,
    method_styles,
    new_figure,
    plain_axes,
    section_rows,
)
from unroll.report.summary import Interval, Row, Value, group_by

_MOST_NAMES_IN_PLOT = 10
_LEGEND_LINE = 0.155  # inches


@dataclasses.dataclass(frozen=True)
class _Point:
    row: Row
    cost: float
    error: Interval
    label: str
    style: MethodStyle

    @property
    def is_reference(self) -> bool:
        return self.row.role != "method"


class _Plane(NamedTuple):
    """The axes and where values lie on them."""

    axes: Axes
    costs: LogAxisWithZero
    errors: LogAxisWithZero

    def position(self, point: _Point) -> tuple[float, float]:
        return self.costs.place(point.cost), self.errors.place(point.error.mean)

    def bar(self, point: _Point) -> list[float]:
        """Ends of the error bar; one at or below zero is cut at the lowest value of the axis."""
        if point.error.low is None or point.error.mean == 0:
            return []
        return [self.errors.clip(point.error.low), self.errors.clip(point.error.high)]


def scoreboard(records: Sequence[Record]) -> Figure | None:
    """Draws relative verification error against relative cost, both logarithmic.

    Exact zeros have a place of their own on a shaded band. The frontier joins what no other row
    beats in both directions. A method that failed for some seeds has no point: the others would
    speak for it.

    Args:
      records: records of one section.

    Returns:
      The figure, or `None` when no row has both an error and a cost.
    """
    rows = section_rows(records)
    points = _points(rows)
    if not any(not point.is_reference for point in points):
        return None
    numbered = sum(not point.is_reference for point in points) > _MOST_NAMES_IN_PLOT
    null = next((row.relative_error for row in rows if row.method == NULL), None)
    figure, axes = _canvas(points, numbered)
    plane = _plane(axes, points, null, numbered)
    captions = _draw_references(plane, null)
    _draw_frontier(plane, points)
    _draw_families(plane, points)
    for point in points:
        _draw_point(plane, point)
    names = _names(points, numbered)
    place_labels(
        axes,
        [
            Label(name, *plane.position(point), point.style.colour)
            for point, name in zip(points, names, strict=True)
        ],
        obstacles=_boxes(plane, captions, points),
    )
    if numbered:
        _write_legend(axes, points)
    _write_omissions(figure, rows, points)
    return figure


def pareto_frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the points that no other point beats in both coordinates, from left to right."""
    frontier: list[tuple[float, float]] = []
    for point in sorted(points):
        if not frontier or point[1] < frontier[-1][1]:
            frontier.append(point)
    return frontier


def _points(rows: Sequence[Row]) -> list[_Point]:
    """Rows with an error for every seed and a cost; the null row is a line and not a point."""
    labels, styles = display_labels(rows), method_styles(rows)
    return [
        _Point(
            row=row,
            cost=row.cost_ratio_gradients.mean,
            error=row.relative_error,
            label=labels[row.label],
            style=styles[row.method],
        )
        for row in rows
        if row.method != NULL
        and isinstance(row.relative_error, Interval)
        and not row.relative_error.missing
        and isinstance(row.cost_ratio_gradients, Interval)
    ]


def _canvas(points: Sequence[_Point], numbered: bool) -> tuple[Figure, Axes]:
    """Fixed margins, since labels are placed by their final position on the page."""
    height = max(4.8, _LEGEND_LINE * len(points) + 0.8) if numbered else 4.8
    figure = new_figure(9.5 if numbered else 7.2, height)
    return figure, figure.add_axes((0.1, 0.12, 0.56 if numbered else 0.87, 0.82))


def _plane(axes: Axes, points: Sequence[_Point], null: Value | None, numbered: bool) -> _Plane:
    """Sets both scales. Lower ends at or below zero must not stretch the axis."""
    ends = [point.error.high for point in points if point.error.high is not None]
    means = [point.error.mean for point in points]
    means += [null.mean] if isinstance(null, Interval) else []
    room = 0.03 if numbered else 0.2  # for the names right of the most expensive methods
    costs = LogAxisWithZero.around([1.0, *(point.cost for point in points)], room)
    errors = LogAxisWithZero.around([1.0, *means, *ends])
    costs.apply(axes, "x")
    errors.apply(axes, "y")
    plain_axes(axes)
    axes.set_xlabel("Cost relative to retraining (example gradients)")
    axes.set_ylabel("Verification error relative to doing nothing")
    return _Plane(axes, costs, errors)


def _draw_references(plane: _Plane, null: Value | None) -> list[Annotation]:
    """Draws the lines that every method is read against; returns their captions."""
    axes = plane.axes
    small = {"textcoords": "offset points", "fontsize": 8, "color": MUTED}
    axes.axhline(1, color=MUTED, lw=1, ls="--", zorder=1)
    axes.axvline(1, color=MUTED, lw=1, ls="--", zorder=1)
    end, top = (plane.costs.highest, 1), (1, plane.errors.highest)
    captions = [
        axes.annotate("do nothing", end, xytext=(0, -3), ha="right", va="top", **small),
        axes.annotate("cost of retraining", top, xytext=(0, 3), ha="center", va="bottom", **small),
    ]
    if isinstance(null, Interval):
        height = plane.errors.place(null.mean)
        axes.axhline(height, color=MUTED, lw=1, ls=":", zorder=1)
        captions.append(
            axes.annotate(
                "independent retrain",
                (plane.costs.start, height),
                xytext=(4, 3),
                ha="left",
                va="bottom",
                **small,
            )
        )
    return captions


def _boxes(plane: _Plane, captions: Sequence[Annotation], points: Sequence[_Point]) -> list[Bbox]:
    """Boxes that labels must not cover: captions and error bars."""
    renderer = FigureCanvasAgg(plane.axes.figure).get_renderer()
    boxes = [caption.get_window_extent(renderer) for caption in captions]
    for point in points:
        x, _ = plane.position(point)
        ends = plane.axes.transData.transform([(x, end) for end in plane.bar(point)])
        boxes += [Bbox(ends).padded(2)] if len(ends) else []
    return boxes


def _draw_frontier(plane: _Plane, points: Sequence[_Point]) -> None:
    frontier = pareto_frontier([(point.cost, point.error.mean) for point in points])
    xs = [plane.costs.place(cost) for cost, _ in frontier]
    ys = [plane.errors.place(error) for _, error in frontier]
    plane.axes.step(
        [*xs, plane.costs.highest],
        [*ys, ys[-1]],
        where="post",
        color=FAINT,
        lw=5,
        alpha=0.8,
        zorder=2,
        gid="frontier",
    )


def _draw_families(plane: _Plane, points: Sequence[_Point]) -> None:
    """Joins variants along the one number that they differ in, such as the order of a series."""
    for method, members in group_by(points, lambda point: point.row.method).items():
        name = _only_difference([point.row.hyperparameters for point in members])
        if name is None:
            continue
        ordered = sorted(members, key=lambda point: point.row.hyperparameters[name])
        xs, ys = zip(*map(plane.position, ordered), strict=True)
        colour = members[0].style.colour
        plane.axes.plot(xs, ys, color=colour, lw=1.2, alpha=0.7, zorder=3, gid=f"family {method}")


def _only_difference(settings: Sequence[Mapping[str, Any]]) -> str | None:
    """Name of the one hyper-parameter that differs, if it is a number everywhere."""
    names = {name for setting in settings for name in setting}
    values = {name: [setting.get(name) for setting in settings] for name in names}
    differing = [name for name in names if any(v != values[name][0] for v in values[name])]
    if len(differing) != 1 or not all(isinstance(v, int | float) for v in values[differing[0]]):
        return None
    return differing[0]


def _draw_point(plane: _Plane, point: _Point) -> None:
    x, y = plane.position(point)
    ends = plane.bar(point)
    plane.axes.plot([x] * len(ends), ends, color=point.style.colour, lw=1.4, zorder=4)
    plane.axes.plot(
        [x],
        [y],
        ls="",
        marker=point.style.marker,
        color=point.style.colour,
        markersize=11 if point.style.marker == "*" else 7,
        markeredgecolor="white",
        markeredgewidth=0.7,
        zorder=5,
        clip_on=False,
        gid=f"point {point.row.label}",
    )


def _names(points: Sequence[_Point], numbered: bool) -> list[str]:
    names, number = [], 0
    for point in points:
        number += not point.is_reference
        name = str(number) if numbered and not point.is_reference else point.label
        names.append(f"{name} = 0 exactly" if point.error.mean == 0 and not numbered else name)
    return names


def _write_legend(axes: Axes, points: Sequence[_Point]) -> None:
    """Lists the numbered methods right of the plot, best first."""
    methods = [point for point in points if not point.is_reference]
    for number, point in enumerate(methods, start=1):
        down = -72 * _LEGEND_LINE * number
        place = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 8}
        colour, zero = point.style.colour, " = 0 exactly" if point.error.mean == 0 else ""
        axes.annotate(
            str(number), (1, 1), (26, down), ha="right", color=colour, weight="bold", **place
        )
        axes.annotate(point.label + zero, (1, 1), (32, down), color=INK, **place)


def _write_omissions(figure: Figure, rows: Sequence[Row], points: Sequence[_Point]) -> None:
    drawn = {point.row.label for point in points}
    omitted = [row.label for row in rows if row.label not in drawn and row.role == "method"]
    noted = [point.label for point in points if point.error.note]
    lines = (
        ("Not drawn, no cost or not an error for every seed", omitted),
        ("With a note in the report", noted),
    )
    text = "; ".join(f"{reason}: {', '.join(labels)}" for reason, labels in lines if labels)
    if text:
        figure.text(0.1, 0.005, text, fontsize=7, color=MUTED, va="bottom")
