"""Text labels next to points, placed greedily so that they do not cover each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

_RADII = (9, 15, 22, 32, 44)  # points from the centre of the marker
_ANGLES = (0, 45, 315, 90, 270, 135, 225, 180)  # degrees; a label on the right reads best
_LEADER_FROM = 20  # points; a label further away gets a line to its point
_FONT_SIZE = 8.5
_HALO = patheffects.withStroke(linewidth=2.5, foreground="white")


class Label(NamedTuple):
    """A text, the point that it names in data coordinates, and its colour."""

    text: str
    x: float
    y: float
    colour: str


class Place(NamedTuple):
    """Offset of a text from its point, in points, and its alignment there."""

    right: float
    up: float
    ha: str
    va: str


def _place(radius: float, angle: float) -> Place:
    across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    ha = "left" if across > 0.1 else "right" if across < -0.1 else "center"
    va = "center" if abs(across) > 0.1 else "bottom" if up > 0 else "top"
    return Place(radius * across, radius * up, ha, va)


_PLACES = [_place(radius, angle) for radius in _RADII for angle in _ANGLES]


def place_labels(axes: Axes, labels: Sequence[Label], obstacles: Sequence[Bbox] = ()) -> None:
    """Writes each label at the free place nearest to its point.

    The limits of the axes must be final.

    Args:
      axes: where the points are.
      labels: labels, the most important first.
      obstacles: boxes in display coordinates to keep clear of, besides the points.
    """
    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    scale = axes.figure.dpi / 72
    frame = axes.get_window_extent(renderer)
    taken = [*obstacles, *(_marker_box(axes, label, 5 * scale) for label in labels)]
    for label in labels:
        point = axes.transData.transform((label.x, label.y))
        size = _text_size(axes, label, renderer)
        boxes = [_text_box(point, size, place, scale) for place in _PLACES]
        costs = [
            _overlap(box, taken) + 4 * _outside(box, frame) + order
            for order, box in enumerate(boxes)
        ]
        best = costs.index(min(costs))
        taken.append(boxes[best])
        _annotate(axes, label, _PLACES[best])


def _text_size(axes: Axes, label: Label, renderer) -> tuple[float, float]:
    probe = axes.text(0, 0, label.text, fontsize=_FONT_SIZE)
    extent = probe.get_window_extent(renderer)
    probe.remove()
    return extent.width, extent.height


def _text_box(point, size: tuple[float, float], place: Place, scale: float) -> Bbox:
    (x, y), (width, height) = point, size
    left = x + scale * place.right - {"left": 0, "center": width / 2, "right": width}[place.ha]
    bottom = y + scale * place.up - {"bottom": 0, "center": height / 2, "top": height}[place.va]
    return Bbox.from_bounds(left, bottom, width, height)


def _annotate(axes: Axes, label: Label, place: Place) -> None:
    leader = {
        "arrowstyle": "-",
        "color": label.colour,
        "linewidth": 0.6,
        "shrinkB": 4,
        "shrinkA": 0,
    }
    far = math.hypot(place.right, place.up) > _LEADER_FROM
    axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(place.right, place.up),
        textcoords="offset points",
        ha=place.ha,
        va=place.va,
        color=label.colour,
        fontsize=_FONT_SIZE,
        arrowprops=leader if far else None,
        path_effects=[_HALO],
        zorder=6,
    )


def _marker_box(axes: Axes, label: Label, half: float) -> Bbox:
    x, y = axes.transData.transform((label.x, label.y))
    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def _overlap(box: Bbox, others: Sequence[Bbox]) -> float:
    shared = (Bbox.intersection(box, other) for other in others)
    return sum(part.width * part.height for part in shared if part is not None)


def _outside(box: Bbox, frame: Bbox) -> float:
    inside = Bbox.intersection(box, frame)
    return box.width * box.height - (inside.width * inside.height if inside is not None else 0)
