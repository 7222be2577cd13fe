"""Predicted against actual effects of deletions: a figure and a page of Markdown.

Design: every number on the page is computed from the rows, so a page can be made again without the
models. Rejected: axes in units of the loss. Test points differ by orders of magnitude in how much
deletions move them, and one panel would show the largest only; the changes of each metric are
divided by their spread, predicted and actual each by its own; the slope in the table tells sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unroll.errors import InputError
from unroll.evaluation.datamodelling import (
    METAGRADIENTS,
    POINTS,
    Effect,
    Price,
    Score,
    changes_of,
    datamodelling_score,
)
from unroll.metrics.correlation import Correlation
from unroll.report.files import write_atomically
from unroll.report.formatting import format_number
from unroll.report.style import COLOURS, FAINT, INK, MUTED, new_figure, plain_axes
from unroll.report.summary import group_by
from unroll.unrolling.smoothness import Smoothness

_LIMIT = 4.0  # standard deviations shown; what lies outside is drawn at the edge


def write_datamodelling(
    effects: Sequence[Effect],
    prices: Sequence[Price],
    smooth: Smoothness,
    workdir: Path,
    title: str,
) -> Path:
    """Writes `datamodelling.md` and a figure per deletion size; returns the path of the page.

    Args:
      effects: rows of one run.
      prices: what the attributions cost.
      smooth: what the smoothness check said.
      workdir: where to write.
      title: title of the page.

    Raises:
      InputError: if there are no rows, or some are missing.
    """
    if not effects:
        raise InputError("there are no effects to report; run the experiment first")
    lines = [f"# {title}", "", *_introduction(effects[0], smooth), ""]
    for fraction, members in group_by(effects, lambda row: row.fraction).items():
        name = f"datamodelling_{fraction:g}.png"
        figure = datamodelling_figure(members)
        write_atomically(
            workdir / name,
            lambda file, figure=figure: figure.savefig(
                file, format="png", dpi=150, bbox_inches="tight"
            ),
        )
        lines += _section(fraction, members) + ["", f"![predicted and actual change]({name})", ""]
    lines += _price_table(prices)
    page = workdir / "datamodelling.md"
    text = "\n".join(lines) + "\n"
    write_atomically(page, lambda file: file.write(text.encode("utf-8")))
    return page


def point_score(effects: Sequence[Effect]) -> Score:
    """The linear datamodelling score of one method over the single test points.

    Raises:
      InputError: if the rows are not those of one method and one size, or hold no test point.
    """
    names, predicted, actual = changes_of(effects)
    points = [name.startswith(f"{POINTS}[") for name in names]
    if not any(points):
        raise InputError("the LDS is a mean over test points; ask for metrics of single points")
    return datamodelling_score(predicted[:, points], actual[:, points])


def datamodelling_figure(effects: Sequence[Effect]) -> Figure:
    """Predicted against actual change, one panel per method; each metric in units of its spread.

    Args:
      effects: rows of one deletion size.

    Raises:
      InputError: if rows are missing.
    """
    methods = _by_method(effects)
    figure = new_figure(3.1 * len(methods) + 0.6, 3.5)
    panels = figure.subplots(1, len(methods), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (method, members) in zip(panels, methods.items(), strict=True):
        _draw(axes, members)
        score = point_score(members)
        axes.set_title(f"{method}: LDS {_with_interval(score)}", fontsize=10, color=INK)
        axes.set_xlabel("Predicted change / its spread", fontsize=9.5)
    panels[0].set_ylabel("Change after retraining / its spread", fontsize=9.5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8.5, frameon=False
    )
    figure.set_layout_engine("constrained")
    return figure


def _by_method(effects: Sequence[Effect]) -> dict[str, list[Effect]]:
    groups = group_by(effects, lambda row: row.method)
    order = sorted(groups, key=lambda method: method != METAGRADIENTS)
    return {method: groups[method] for method in order}


def _draw(axes: Axes, effects: Sequence[Effect]) -> None:
    names, predicted, actual = changes_of(effects)
    kinds = list(dict.fromkeys(_kind(name) for name in names))
    axes.axline((0, 0), slope=1, color=FAINT, lw=1, zorder=0)
    for colour, kind in zip(COLOURS, kinds, strict=False):
        columns = [index for index, name in enumerate(names) if _kind(name) == kind]
        across, up = (_standardised(values[:, columns]).ravel() for values in (predicted, actual))
        axes.plot(
            across,
            up,
            ls="",
            marker="o",
            markersize=3,
            alpha=0.55,
            markeredgewidth=0,
            color=colour,
            label=kind,
            gid=f"effects {kind}",
        )
    axes.set_xlim(-_LIMIT * 1.05, _LIMIT * 1.05)
    axes.set_ylim(-_LIMIT * 1.05, _LIMIT * 1.05)
    axes.set_aspect("equal")
    plain_axes(axes)
    axes.tick_params(colors=MUTED)


def _kind(metric: str) -> str:
    return "loss of a test point" if metric.startswith(f"{POINTS}[") else metric


def _standardised(values: np.ndarray) -> np.ndarray:
    spread = values.std(axis=0)
    centred = values - values.mean(axis=0)
    return np.clip(centred / np.where(spread > 0, spread, 1.0), -_LIMIT, _LIMIT)


def _with_interval(score: Score) -> str:
    if score.value is None:
        return "not defined"
    return f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"


def _introduction(row: Effect, smooth: Smoothness) -> list[str]:
    verdict = smooth.warning or "nothing speaks against metagradients here"
    return [
        f"{row.dataset}, {row.model}, {row.optimizer}, seed {row.seed}. Each deletion was "
        "retrained with the key and the schedule of the original. Rank correlations of predicted "
        "and actual change over the deletions, with 95% intervals; the LDS is the mean over test "
        "points, its interval from resampled deletions. Slope: actual over predicted change, by "
        "least squares, median over the metrics; 1 where sizes are right too.",
        "",
        f"Smoothness check, {smooth.trainings} trainings: score {smooth.score:.2f}, agreement of "
        f"the losses {smooth.agreement:.2f}, cosine {smooth.cosine:.2f}, curvature "
        f"{smooth.curvature:.2f}: {verdict}.",
    ]


def _section(fraction: float, effects: Sequence[Effect]) -> list[str]:
    methods = _by_method(effects)
    names, _, actual = changes_of(next(iter(methods.values())))
    singles = [name for name in names if _kind(name) == name]
    size = effects[0].size
    lines = [
        f"## {len(actual)} deletions of {fraction:.2g} of the training set ({size} examples)",
        "",
        "| method | LDS over test points | slope | " + " | ".join(singles) + " |",
        "| :--- |" + " ---: |" * (2 + len(singles)),
    ]
    for method, members in methods.items():
        names, predicted, actual = changes_of(members)
        correlations = datamodelling_score(predicted, actual, resamples=1).metrics
        cells = [
            _correlation(correlation)
            for name, correlation in zip(names, correlations, strict=True)
            if name in singles
        ]
        slope = format_number(_median_slope(predicted, actual))
        line = [method, _with_interval(point_score(members)), slope, *cells]
        lines.append("| " + " | ".join(line) + " |")
    return lines


def _median_slope(predicted: np.ndarray, actual: np.ndarray) -> float:
    """Least-squares factor between actual and predicted changes, median over the metrics."""
    squares = (predicted**2).sum(axis=0)
    products = (predicted * actual).sum(axis=0)
    return float(np.median(products[squares > 0] / squares[squares > 0])) if squares.any() else 0.0


def _correlation(correlation: Correlation) -> str:
    if correlation.value is None:
        return correlation.note
    if correlation.low is None:
        return f"{correlation.value:.2f}"
    return f"{correlation.value:.2f} [{correlation.low:.2f}, {correlation.high:.2f}]"


def _price_table(prices: Sequence[Price]) -> list[str]:
    lines = [
        "## Cost in multiples of the training",
        "",
        "| method | metrics at once | example gradients | seconds | note |",
        "| :--- | ---: | ---: | ---: | :--- |",
    ]
    for price in prices:
        numbers = (price.cost_ratio_gradients, price.cost_ratio_seconds)
        cells = [price.method, str(price.metrics), *(format_number(n) for n in numbers)]
        lines.append("| " + " | ".join([*cells, price.note or ""]) + " |")
    return lines
