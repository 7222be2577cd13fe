"""How sure each model is on the forget set, example by example: of the true class, and at all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from unroll.evaluation.records import NULL, ORIGINAL, RETRAIN, Record
from unroll.report.formatting import display_labels, wrapped
from unroll.report.style import INK, MUTED, method_styles, new_figure, plain_axes, section_rows
from unroll.report.summary import group_by, seed_means

_MOST_IN_ONE_PANEL = 4
_MOST_COLUMNS = 5
# Beyond this a value is drawn at the edge; the axes are logarithmic.
_EDGE = 1e-5
_TICKS = (1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)

Curve = tuple[np.ndarray, np.ndarray]
"""A value and the share of examples at or below it."""


@dataclasses.dataclass(frozen=True)
class _Quantity:
    """What a figure shows: a metric, the name of its axis, and how that is drawn and limited."""

    metric: str
    title: str
    draw_axis: Callable[[Axes, Iterable[Curve], int], None]
    highest: float


def output_distributions(records: Sequence[Record]) -> Figure | None:
    """Draws the distribution of the true-class probability over the forget set.

    Each method is compared with retrain (bold) and original (dashed). Curves are means over
    seeds of the quantile functions. The axis is linear in the logit of the probability.

    Args:
      records: records of one section.

    Returns:
      The figure, or `None` when the records have no such quantiles.
    """
    title = "Probability of the true class (logit scale)"
    return _draw(records, _Quantity("true_class_probability", title, _logit_axis, 1 - _EDGE))


def output_entropies(records: Sequence[Record]) -> Figure | None:
    """Draws the distribution of the entropy of the outputs over the forget set.

    As `output_distributions`; the axis is logarithmic, as in the histograms of Hoang et al. (arXiv
    2312.04095). Entropies are of all classes for all models; in the reference code those of a
    removed class are left out of some.
    """
    title = "Entropy of the output (nats, logarithmic scale)"
    return _draw(records, _Quantity("output_entropy", title, _log_axis, math.inf))


def _draw(records: Sequence[Record], quantity: _Quantity) -> Figure | None:
    rows = section_rows(records)
    curves = quantile_curves(records, quantity.metric, quantity.highest)
    methods = [row for row in rows if row.label in curves and row.role == "method"]
    if not curves:
        return None
    labels, styles = display_labels(rows), method_styles(rows)
    together = len(methods) <= _MOST_IN_ONE_PANEL
    groups = [methods] if together else [[row] for row in methods]
    figure, panels = _panels(len(groups))
    for axes, members in zip(panels, groups, strict=True):
        _draw_references(axes, curves)
        for row in members:
            colour = styles[row.method].colour
            axes.plot(*curves[row.label], color=colour, lw=1.6, zorder=4, label=labels[row.label])
        if not together:
            axes.set_title(wrapped(labels[members[0].label], 36), fontsize=6, color=INK)
        quantity.draw_axis(axes, curves.values(), 7 if together else 3)
        plain_axes(axes)
    figure.supxlabel(quantity.title, fontsize=9.5, color=INK)
    figure.supylabel("Share of the forget set", fontsize=9.5, color=INK)
    # The first handles are the references: they are drawn first, in every panel.
    handles, names = panels[0].get_legend_handles_labels()
    shown = len(names) if together else len(names) - 1
    figure.legend(
        handles[:shown],
        names[:shown],
        loc="outside upper center",
        ncols=4,
        fontsize=8.5,
        frameon=False,
    )
    return figure


def quantile_curves(
    records: Sequence[Record],
    metric: str = "true_class_probability",
    highest: float = 1 - _EDGE,
) -> dict[str, Curve]:
    """Averages the quantile functions over seeds.

    Args:
      records: records of one section.
      metric: whose quantiles.
      highest: values are limited to this, and to 1e-5 from below.

    Returns:
      Curves by label, in increasing order of the share of examples. A method that failed for
      some seeds has none: the others would speak for it.
    """
    quantiles = [
        record
        for record in records
        if record.metric == metric and record.split == "forget" and record.at is not None
    ]
    curves = {}
    for label, members in group_by(quantiles, lambda record: record.label).items():
        if any(record.value is None for record in members):
            continue
        by_share = group_by(members, lambda record: record.at)
        shares = sorted(by_share)
        means = [np.mean(list(seed_means(by_share[s], _value).values())) for s in shares]
        curves[label] = (np.clip(means, _EDGE, highest), np.array(shares))
    return curves


def _value(record: Record) -> float | None:
    return record.value


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    lines = math.ceil(count / _MOST_COLUMNS)
    columns = math.ceil(count / lines)
    figure = new_figure(6.4, 4.0) if count == 1 else new_figure(1.95 * columns, 1.95 * lines + 1)
    figure.set_layout_engine("constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for unused in grid.flat[count:]:
        unused.set_visible(False)
    # With a short last line the panels above the gap carry the ticks.
    for above in grid[-2, columns - (lines * columns - count) :] if lines > 1 else ():
        above.tick_params(labelbottom=True)
    return figure, list(grid.flat[:count])


def _draw_references(axes: Axes, curves: Mapping[str, Curve]) -> None:
    for method, name, style in (
        (RETRAIN, "retrain", {"color": INK, "lw": 3.2, "zorder": 2}),
        (NULL, "independent retrain", {"color": MUTED, "lw": 1.4, "ls": ":", "zorder": 1}),
        (ORIGINAL, "original", {"color": MUTED, "lw": 1.4, "ls": "--", "zorder": 3}),
    ):
        if method in curves:
            axes.plot(*curves[method], label=name, **style)


def _logit_axis(axes: Axes, curves: Iterable[Curve], most_ticks: int) -> None:
    values = np.concatenate([probabilities for probabilities, _ in curves])
    low, high = min(values.min(), 0.4), max(values.max(), 0.99)
    axes.set_xscale("logit")
    axes.set_xlim(low, high)
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_locator(FixedLocator(_logit_ticks(low, high, most_ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))


def _log_axis(axes: Axes, curves: Iterable[Curve], most_ticks: int) -> None:
    values = np.concatenate([entropies for entropies, _ in curves])
    axes.set_xscale("log")
    axes.set_xlim(values.min() / 1.2, values.max() * 1.2)
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_locator(LogLocator(numticks=most_ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))


def _logit_ticks(low: float, high: float, most: int) -> list[float]:
    """Every tick, every second, ... around 0.5, until there are few enough."""
    for step in range(1, len(_TICKS) + 1):
        spaced = _TICKS[_TICKS.index(0.5) % step :: step]
        inside = [tick for tick in spaced if low <= tick <= high]
        if len(inside) <= most:
            return inside
    return [0.5]
