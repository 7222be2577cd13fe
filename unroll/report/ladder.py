"""The Taylor ladder as a figure, a table and a page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from unroll.evaluation.ladder import (
    FACTOR,
    RELIABLE_BELOW,
    Calibration,
    Rung,
    calibration,
    calibrations,
)
from unroll.report.files import write_atomically
from unroll.report.style import COLOURS, FAINT, INK, MUTED, new_figure, plain_axes
from unroll.report.summary import group_by, t_interval


def write_ladder(rungs: Sequence[Rung], workdir: Path, title: str) -> Path:
    """Writes `ladder.md`, `ladder.png` and `calibration.png`; returns the path of the page."""
    for name, draw in (("ladder", ladder_figure), ("calibration", calibration_figure)):
        figure = draw(rungs)
        write_atomically(
            workdir / f"{name}.png",
            lambda file, figure=figure: figure.savefig(
                file, format="png", dpi=150, bbox_inches="tight"
            ),
        )
    path = workdir / "ladder.md"
    write_atomically(path, lambda file: file.write(_page(rungs, title).encode()))
    return path


def _page(rungs: Sequence[Rung], title: str) -> str:
    found = calibration(rungs)
    orders = sorted({rung.order for rung in rungs if rung.order})
    resummed = bool(orders) and orders[-1] >= 2
    lines = [
        f"# {title}",
        "",
        "Relative verification error of the Taylor series along the trajectory (1 = did nothing, "
        "0 = the retrained model), mean over training seeds and half the width of its 95% "
        "interval. `retrains` is the distance of two independent retrains on the same scale"
        + ("; `r` marks the resummed series of the highest order." if resummed else "."),
        "",
        f"The estimate from the next term, which needs no retraining, is within a factor of "
        f"{FACTOR:g} of the true error in {_share(found)} rungs whose true error is below "
        f"{RELIABLE_BELOW:g}; {found.high} are higher than that, {found.low} lower. In the last "
        "three columns only rungs count whose estimate is not mostly the rounding floor, which is "
        "right without a word from the series.",
        "",
        *_calibration_table(rungs),
        "",
        "![ladder](ladder.png)",
        "",
        "![calibration](calibration.png)",
        "",
    ]
    header = ["epochs", "forgotten", "retrains", *(str(k) for k in orders)]
    header += [f"r{orders[-1]}"] if resummed else []
    recipes = group_by(rungs, lambda rung: (rung.dataset, rung.model, rung.optimizer))
    for (dataset, model, optimizer), members in recipes.items():
        lines += [f"## {model}, {optimizer}", "", f"{dataset}", ""]
        lines += ["| " + " | ".join(header) + " |", "|" + " ---: |" * len(header)]
        cells = group_by(members, lambda rung: (rung.epochs, rung.forget_size))
        for (epochs, size), cell in sorted(cells.items()):
            numbers = [_mean(cell, k, "relative_error") for k in orders]
            numbers += [_mean(cell, orders[-1], "resummed")] if resummed else []
            apart = _mean(cell, 0, "retrain_distance")
            lines.append("| " + " | ".join([str(epochs), str(size), apart, *numbers]) + " |")
        missing = [rung for rung in members if rung.relative_error is None and rung.note]
        notes = dict.fromkeys(
            f"{rung.forget}, {rung.epochs} epochs: {rung.note}" for rung in missing
        )
        lines += ["", *(f"Missing, {note}" for note in notes), *([""] if notes else [])]
    return "\n".join(lines)


def _share(found: Calibration) -> str:
    return f"{found.good} of {found.judged}" + (
        f" ({found.good / found.judged:.0%})" if found.judged else ""
    )


def _calibration_table(rungs: Sequence[Rung]) -> list[str]:
    header = ["optimiser", "order", f"within a factor of {FACTOR:g}", "higher", "lower"]
    header += ["floor below next term", "higher", "lower"]
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    for (optimizer, order), (whole, clear) in calibrations(rungs).items():
        cells = [optimizer, str(order)]
        for found in (whole, clear):
            cells += [_share(found), str(found.high), str(found.low)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _mean(cell: Sequence[Rung], order: int, field: str) -> str:
    values = [getattr(rung, field) for rung in cell if rung.order == order]
    known = [value for value in values if value is not None]
    if not values:
        return "-"
    if len(known) < len(values):
        return f"missing in {len(values) - len(known)} of {len(values)}"
    interval = t_interval(known)
    if interval.half_width is None:
        return f"{interval.mean:.2g}"
    return f"{interval.mean:.2g} ± {interval.half_width:.1g}"


def ladder_figure(rungs: Sequence[Rung]) -> Figure:
    """Relative verification error against the order: a panel per recipe, a line per cell."""
    recipes = group_by(rungs, lambda rung: (rung.model, rung.optimizer))
    columns = min(3, len(recipes))
    lines = -(-len(recipes) // columns)
    figure = new_figure(4.2 * columns, 3.4 * lines)
    sizes = sorted({rung.forget_size for rung in rungs})
    epochs = sorted({rung.epochs for rung in rungs})
    for index, ((model, optimizer), members) in enumerate(recipes.items(), start=1):
        axes = figure.add_subplot(lines, columns, index)
        plain_axes(axes)
        axes.set_yscale("log")
        axes.set_ylim(1e-6, 30)
        axes.axhline(1, color=MUTED, lw=1, zorder=0)
        axes.set_title(f"{model}\n{optimizer}", fontsize=8, color=INK)
        cells = group_by(members, lambda rung: (rung.forget_size, rung.epochs))
        for (size, epoch), cell in cells.items():
            points = group_by(cell, lambda rung: rung.order)
            means = {
                k: _finite_mean([rung.relative_error for rung in rungs_of_order])
                for k, rungs_of_order in points.items()
            }
            kept = sorted(k for k, value in means.items() if value)
            axes.plot(
                kept,
                [max(means[k], 1e-6) for k in kept],
                color=COLOURS[sizes.index(size) % len(COLOURS)],
                lw=0.8 + 0.6 * epochs.index(epoch),
                alpha=0.85,
            )
        axes.set_xticks(sorted({rung.order for rung in members}))
        axes.set_xlabel("order")
        if (index - 1) % columns == 0:
            axes.set_ylabel("relative verification error")
    handles = [
        _line(COLOURS[i % len(COLOURS)], 2, f"{size} forgotten") for i, size in enumerate(sizes)
    ] + [_line(INK, 0.8 + 0.6 * i, f"{epoch} epochs") for i, epoch in enumerate(epochs)]
    figure.tight_layout()
    figure.legend(
        handles=handles,
        ncols=5,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        frameon=False,
        fontsize=8,
    )
    return figure


def _line(colour: str, width: float, label: str):
    return Line2D([], [], color=colour, lw=width, label=label)


def _finite_mean(values: Sequence[float | None]) -> float | None:
    """Mean over the seeds, `None` if one of them diverged."""
    return None if None in values else sum(values) / len(values)


def calibration_figure(rungs: Sequence[Rung]) -> Figure:
    """Estimated against true relative verification error, orders in colours.

    Estimates that are mostly the rounding floor are hollow: they are right without a word from the
    series.
    """
    figure = new_figure(5, 4.6)
    axes = figure.add_subplot()
    plain_axes(axes)
    axes.set_xscale("log")
    axes.set_yscale("log")
    judged = [r for r in rungs if r.order and r.estimate and r.relative_error]
    shown = [RELIABLE_BELOW, *(r.estimate for r in judged), *(r.relative_error for r in judged)]
    low, high = min(shown) / 3, max(shown) * 3
    axes.plot([low, high], [low, high], color=MUTED, lw=1)
    axes.fill_between(
        [low, high],
        [low / FACTOR, high / FACTOR],
        [low * FACTOR, high * FACTOR],
        color=FAINT,
        alpha=0.5,
        lw=0,
    )
    axes.axvline(RELIABLE_BELOW, color=MUTED, lw=0.8, ls=":")
    handles = []
    for index, (order, members) in enumerate(sorted(group_by(judged, lambda r: r.order).items())):
        colour = COLOURS[index % len(COLOURS)]
        for floor in (True, False):
            part = [r for r in members if r.floor_dominated == floor]
            axes.scatter(
                [r.relative_error for r in part],
                [r.estimate for r in part],
                s=9,
                facecolors="none" if floor else colour,
                edgecolors=colour,
                lw=0.6 if floor else 0,
                alpha=0.7,
            )
        handles.append(_dot(colour, colour, f"order {order}"))
    if any(r.floor_dominated for r in judged):
        handles.append(_dot("none", MUTED, "mostly the rounding floor"))
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_xlabel("true relative verification error")
    axes.set_ylabel("estimate from the next term, without retraining")
    if handles:
        axes.legend(handles=handles, loc="upper left", frameon=False, fontsize=8)
    return figure


def _dot(face: str, edge: str, label: str) -> Line2D:
    return Line2D(
        [], [], ls="", marker="o", ms=4, markerfacecolor=face, markeredgecolor=edge, label=label
    )
