"""Proxies of the verification error as tables, figures and a page of Markdown.

Every correlation stands beside those of t, D, eta t sigma and the norm of g_f, and every
verification error beside the no-unlearning distance.

Design: one page for runs along t and for positions of the forgotten batch; where rows have several
positions, these are the horizontal axis. Rejected: one correlation over all points of all runs,
which mixes what a proxy says of t with what it says of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from unroll.evaluation.proxies import (
    ACCUMULATED,
    BASELINES,
    PROXIES,
    ROUNDING,
    ProxyRow,
    across_runs,
    judged,
    slope,
    slopes,
    within_runs,
)
from unroll.metrics.correlation import Correlation, pearson, spearman
from unroll.report.files import write_atomically
from unroll.report.formatting import format_interval
from unroll.report.style import COLOURS, INK, MUTED, new_figure, plain_axes
from unroll.report.summary import group_by, t_interval

HARM_BINS = (0.0, 2.0, 5.0, 8.0, 12.0, 20.0, math.inf)
"""Edges of eta t sigma between which the steps are counted at which unlearning did harm."""
QUANTITIES = (*PROXIES, *ACCUMULATED, *BASELINES)
_NAMES = {"displacement": "D", "eta_t_sigma": "eta t sigma", "gradient_norm": "norm of g_f"}
_MARKERS = ("o", "s", "^", "D", "v", "p")
_GUIDE = """\
Proxies `paper`, `eta1`, `gradnorm`, `leading` with the average sigma, and summed over the segments
between recorded steps (`accumulated`); baselines t, D = ||w_t - w_0||, eta t sigma and the norm of
the forgotten batch's gradient g_f at w_0. VE is the verification error of single-gradient
unlearning at w_0, `checkpointed` that with gradients at the last recorded step before each use.
Ratios are to the no-unlearning distance: above 1, unlearning is worse than doing nothing.
`retrains` is the distance of two retrained models of different seeds, on the same scale; where runs
start from pretrained weights, these differ in the order of their batches only. Two identical runs
have the same bits: the noise floor is 0."""
_WITHIN = """\
Mean of the correlations along each run, with the 95% interval of the mean over runs. All
quantities grow along a run, t itself included, so a high value comes for free (the norm of g_f is
constant). `slope` is the exponent p of quantity ~ VE^p along a run: a proportional proxy has 1."""
_ACROSS = """\
Over the n runs that differ in gamma, seed, forgotten batch or position, with 95% intervals
(Fisher's z, which takes the runs as independent; those that share pretrained weights are less so).
All positions of a seed share one original model, so that a quantity which does not know the
position has as many distinct values as there are seeds; with fewer than 4 there is no interval."""


def write_proxies(rows: Sequence[ProxyRow], workdir: Path, title: str) -> Path:
    """Writes `proxies.md`, `proxies.png`, `scatter.png` and `ratio.png`; returns the page's path.

    Args:
      rows: of one experiment; rows without numbers are counted on the page.
      workdir: an existing folder.
      title: of the page.
    """
    figures = (("proxies", course_figure), ("scatter", scatter_figure), ("ratio", ratio_figure))
    for name, draw in figures:
        figure = draw(rows)
        write_atomically(
            workdir / f"{name}.png",
            lambda file, figure=figure: figure.savefig(
                file, format="png", dpi=150, bbox_inches="tight"
            ),
        )
    path = workdir / "proxies.md"
    write_atomically(path, lambda file: file.write(_page(rows, title).encode()))
    return path


def _page(rows: Sequence[ProxyRow], title: str) -> str:
    lines = [f"# {title}", "", _GUIDE, ""]
    lines += [f"sigma on: {', '.join(sorted({row.curvature_batch for row in rows}))}.", ""]
    broken = {row.cell: row.note for row in rows if row.note}
    for cell, note in broken.items():
        lines += [f"Left out, {cell}: {note}", ""]
    for name in ("proxies", "scatter", "ratio"):
        lines += [f"![{name}]({name}.png)", ""]
    if judged(rows):
        lines += [*_harm_table(rows), ""]
    for place, members in _places(rows).items():
        lines += [f"## {place}", "", *_errors_table(members), ""]
        lines += [_WITHIN, "", *_within_table(members), ""]
        lines += [_ACROSS, "", *_across_table(members), ""]
    return "\n".join(lines)


def _places(rows: Sequence[ProxyRow]) -> dict[str, list[ProxyRow]]:
    return group_by(judged(rows), lambda row: f"{row.dataset}, {row.model}")


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return lines + ["| " + " | ".join(cells) + " |" for cells in body]


def _errors_table(rows: Sequence[ProxyRow]) -> list[str]:
    """Means over the runs at the last step, one line per gamma and position."""
    last = max(row.t for row in rows)
    columns: tuple[tuple[str, Callable[[ProxyRow], float]], ...] = (
        ("sigma", lambda row: row.sigma_average),
        ("eta t sigma", lambda row: row.eta_t_sigma),
        ("D", lambda row: row.displacement),
        ("no unlearning", lambda row: row.no_unlearning),
        ("VE", lambda row: row.verification_error),
        ("VE ratio", lambda row: row.ratio),
        ("checkpointed ratio", lambda row: row.checkpointed_ratio),
        ("retrains", lambda row: row.retrain_distance / row.no_unlearning),
        ("test accuracy", lambda row: row.test_accuracy),
    )
    body = []
    at_end = [row for row in rows if row.t == last]
    for (gamma, position), members in sorted(
        group_by(at_end, lambda row: (row.gamma, row.position)).items()
    ):
        values = [_mean([value(row) for row in members]) for _, value in columns]
        body.append([f"{gamma:g}", str(position), str(len(members)), *values])
    header = ["gamma", "position", "runs", *(name for name, _ in columns)]
    return [f"At t = {last}:", "", *_table(header, body)]


def _harm_table(rows: Sequence[ProxyRow]) -> list[str]:
    """Share of the recorded steps of all runs where the ratio is above 1, by eta t sigma."""
    known = [row for row in judged(rows) if row.ratio is not None]
    body = []
    for low, high in zip(HARM_BINS[:-1], HARM_BINS[1:], strict=True):
        ratios = [row.ratio for row in known if low <= row.eta_t_sigma < high]
        worse = sum(ratio > 1 for ratio in ratios)
        share = f"{worse / len(ratios):.0%}" if ratios else "-"
        span = f"{low:g} to {high:g}" if math.isfinite(high) else f"{low:g} and more"
        body.append([span, str(worse), str(len(ratios)), share])
    header = ["eta t sigma", "worse than doing nothing", "recorded steps", "share"]
    return ["Steps at which the VE ratio is above 1, over all runs:", "", *_table(header, body)]


def _within_table(rows: Sequence[ProxyRow]) -> list[str]:
    body = [
        [
            _name(quantity),
            _mean(within_runs(rows, quantity, pearson)),
            _mean(within_runs(rows, quantity, spearman)),
            _mean(slopes(rows, quantity)),
        ]
        for quantity in QUANTITIES
    ]
    return _table(["within a run", "Pearson", "Spearman", "slope"], body)


def _across_table(rows: Sequence[ProxyRow]) -> list[str]:
    """At a step in the middle and at the last; proxy over VE says how far from tight it is."""
    steps = sorted({row.t for row in rows})
    chosen = sorted({steps[len(steps) // 2], steps[-1]})
    counts = [sum(row.t == t for row in rows) for t in chosen]
    header = ["across runs"]
    for t in chosen:
        header += [f"Pearson, t = {t}", f"Spearman, t = {t}", f"slope, t = {t}"]
    header.append(f"median of quantity / VE, t = {steps[-1]}")
    body = []
    for quantity in QUANTITIES:
        cells = [_name(quantity)]
        for t in chosen:
            cells += [_correlation(across_runs(rows, quantity, t, pearson))]
            cells += [_correlation(across_runs(rows, quantity, t, spearman))]
            fitted = slope([row for row in rows if row.t == t], quantity)
            cells.append("-" if fitted is None else f"{fitted:.2f}")
        ends = [row for row in rows if row.t == steps[-1] and row.verification_error]
        over = [getattr(row, quantity) / row.verification_error for row in ends]
        theory = quantity not in BASELINES and over
        cells.append(f"{np.median(over):.2g}" if theory else "-")
        body.append(cells)
    numbers = ", ".join(f"n = {n} at t = {t}" for n, t in zip(counts, chosen, strict=True))
    return [f"Runs: {numbers}.", "", *_table(header, body)]


def _name(quantity: str) -> str:
    return _NAMES.get(quantity, quantity.replace("_", " "))


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return format_interval(t_interval(values)).replace("seed", "run")


def _correlation(found: Correlation) -> str:
    if found.value is None:
        return "-"
    if found.low is None:
        return f"{found.value:.2f} ({found.note.removeprefix('no interval: ')})"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def course_figure(rows: Sequence[ProxyRow]) -> Figure:
    """VE, no-unlearning distance and proxies against t, or against the position at the last t."""
    by_position = len({row.position for row in rows}) > 1
    lines = {
        "VE, single gradient": ("verification_error", INK, "-"),
        "VE, checkpointed": ("checkpointed_error", INK, ":"),
        "no unlearning": ("no_unlearning", MUTED, "-"),
        "two retrained models": ("retrain_distance", MUTED, ":"),
        **{name: (name, colour, "-") for name, colour in zip(PROXIES, COLOURS, strict=False)},
    }
    if by_position:
        lines["accumulated gradnorm"] = ("accumulated_gradnorm", COLOURS[2], ":")
    figure, panels = _panels(rows)
    for axes, members in panels:
        if by_position:
            last = max(row.t for row in members)
            members = [row for row in members if row.t == last]
        for label, (field, colour, dash) in lines.items():
            points = group_by(members, lambda row: row.position if by_position else row.t)
            xs = sorted(points)
            means = [_geometric_mean([getattr(row, field) for row in points[x]]) for x in xs]
            axes.plot(xs, means, color=colour, ls=dash, lw=1.4, label=label)
        axes.set_yscale("log")
        axes.set_xlabel("position of the forgotten batch" if by_position else "t")
    _legend(figure)
    return figure


def _geometric_mean(values: Sequence[float | None]) -> float:
    """Not a number, which is not drawn, where a value is 0 or missing."""
    if any(value is None or value <= ROUNDING for value in values):
        return math.nan
    return float(np.exp(np.mean(np.log(values))))


def _panels(rows: Sequence[ProxyRow]) -> tuple[Figure, list[tuple[Axes, list[ProxyRow]]]]:
    places = _places(rows)
    columns = max(1, min(2, len(places)))
    height = max(1, -(-len(places) // columns))
    figure = new_figure(4.6 * columns, 3.6 * height)
    panels = []
    for index, (place, members) in enumerate(places.items(), start=1):
        axes = figure.add_subplot(height, columns, index)
        plain_axes(axes)
        axes.set_title(place.replace(", ", "\n", 1), fontsize=8, color=INK)
        panels.append((axes, members))
    return figure, panels


def _legend(figure: Figure, columns: int = 4) -> None:
    """One legend below all panels, with each label once."""
    found = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.tight_layout()
    if found:
        figure.legend(
            found.values(),
            found.keys(),
            ncols=columns,
            loc="upper center",
            bbox_to_anchor=(0.5, 0),
            frameon=False,
            fontsize=8,
        )


def scatter_figure(rows: Sequence[ProxyRow]) -> Figure:
    """Each proxy, and D, against VE at all recorded steps; colours are places, lines equality."""
    quantities = ("paper", "eta1", "gradnorm", "displacement")
    places = _places(rows)
    figure = new_figure(8.4, 7)
    for index, quantity in enumerate(quantities, start=1):
        axes = figure.add_subplot(2, 2, index)
        plain_axes(axes)
        _logarithmic(axes)
        for number, (place, members) in enumerate(places.items()):
            shown = [
                row
                for row in members
                if row.verification_error and getattr(row, quantity) > ROUNDING
            ]
            axes.scatter(
                [row.verification_error for row in shown],
                [getattr(row, quantity) for row in shown],
                s=9,
                lw=0,
                alpha=0.6,
                color=COLOURS[number % len(COLOURS)],
                label=place,
            )
        if places:
            limits = axes.get_xlim()
            axes.plot(limits, limits, color=MUTED, lw=1, zorder=0)
            axes.set_xlim(limits)
        axes.set_xlabel("verification error")
        axes.set_ylabel(_name(quantity))
    _legend(figure, columns=2)
    return figure


def ratio_figure(rows: Sequence[ProxyRow]) -> Figure:
    """VE over the no-unlearning distance against eta t sigma; markers are gammas."""
    places = _places(rows)
    gammas = sorted({row.gamma for row in rows})
    markers = dict(zip(gammas, _MARKERS * len(gammas), strict=False))
    figure = new_figure(6.4, 4.6)
    axes = figure.add_subplot()
    plain_axes(axes)
    _logarithmic(axes)
    axes.axhline(1, color=MUTED, lw=1, zorder=0)
    for number, (place, members) in enumerate(places.items()):
        colour = COLOURS[number % len(COLOURS)]
        for gamma, marker in markers.items():
            shown = [row for row in members if row.gamma == gamma and row.ratio]
            axes.scatter(
                [row.eta_t_sigma for row in shown],
                [row.ratio for row in shown],
                s=12,
                lw=0,
                alpha=0.6,
                marker=marker,
                color=colour,
            )
        axes.plot([], [], "o", ms=4, color=colour, label=place)
    for gamma, marker in markers.items():
        axes.add_line(Line2D([], [], ls="", marker=marker, color=INK, label=f"gamma {gamma:g}"))
    axes.set_xlabel("eta t sigma")
    axes.set_ylabel("VE / no-unlearning distance")
    _legend(figure, columns=2)
    return figure


def _logarithmic(axes: Axes) -> None:
    """Logarithmic axes with labels at 1, 2 and 5 times the powers of ten: they stay apart."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
