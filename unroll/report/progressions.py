"""Sequences as a figure and a table: accuracy against the position, a line for each label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unroll.evaluation.progressions import Point
from unroll.report.files import write_atomically
from unroll.report.formatting import format_interval
from unroll.report.style import COLOURS, MUTED, new_figure, plain_axes
from unroll.report.summary import group_by, t_interval

_MARKERS = ("o", "s", "^", "D", "v", "p")


def write_progressions(
    points: Sequence[Point], workdir: Path, title: str, position: str, text: str
) -> Path:
    """Writes `progressions.md` and `progressions.png`; returns the path of the page.

    Args:
      points: the rows.
      workdir: an existing directory.
      title: of the page.
      position: name of the axis.
      text: what the values are, in a sentence or two.
    """
    figure = progression_figure(points, position)
    write_atomically(
        workdir / "progressions.png",
        lambda file: figure.savefig(file, format="png", dpi=150, bbox_inches="tight"),
    )
    path = workdir / "progressions.md"
    write_atomically(path, lambda file: file.write(_page(points, title, position, text).encode()))
    return path


def progression_figure(points: Sequence[Point], position: str) -> Figure:
    """A panel for each value; lines are means over seeds, bars their 95% intervals."""
    names = list(dict.fromkeys(name for point in points for name in point.values))
    columns = 2 if len(names) == 4 else min(3, len(names))
    lines = -(-len(names) // columns)
    figure = new_figure(4.0 * columns, 3.0 * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    labels = list(dict.fromkeys(point.label for point in points))
    for axes, name in zip(grid.flat, names, strict=False):
        plain_axes(axes)
        axes.set_xlabel(position)
        axes.set_title(name, fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for number, label in enumerate(labels):
            found = _intervals(points, label, name)
            axes.errorbar(
                list(found),
                [interval.mean for interval in found.values()],
                yerr=[interval.half_width or 0.0 for interval in found.values()],
                color=MUTED if label == "retrain" else COLOURS[number % len(COLOURS)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=4,
                linewidth=1.2,
                capsize=2,
                label=label,
            )
    for axes in list(grid.flat)[len(names) :]:
        axes.set_axis_off()
    figure.legend(
        *grid.flat[0].get_legend_handles_labels(),
        loc="upper center",
        fontsize=8,
        bbox_to_anchor=(0.5, 0.0),
        frameon=False,
    )
    figure.tight_layout()
    return figure


def _intervals(points, label, name):
    chosen = [point for point in points if point.label == label and name in point.values]
    groups = sorted(group_by(chosen, lambda point: point.position).items())
    return {at: t_interval([point.values[name] for point in group]) for at, group in groups}


def _page(points: Sequence[Point], title: str, position: str, text: str) -> str:
    seeds = len({point.seed for point in points})
    lines = [
        f"# {title}",
        "",
        text,
        "",
        f"Means over {seeds} training seeds and half the width of their 95% intervals.",
        "",
        "![progressions](progressions.png)",
        "",
    ]
    for (dataset, model), members in group_by(points, lambda p: (p.dataset, p.model)).items():
        names = list(dict.fromkeys(name for point in members for name in point.values))
        lines += [f"## {model}", "", dataset, ""]
        lines += ["| " + " | ".join(["", position, *names]) + " |"]
        lines += ["| --- |" + " ---: |" * (len(names) + 1)]
        for (label, at), group in group_by(members, lambda p: (p.label, p.position)).items():
            cells = []
            for name in names:
                known = [point.values[name] for point in group if name in point.values]
                cells.append(format_interval(t_interval(known)) if known else "-")
            lines.append("| " + " | ".join([label, str(at), *cells]) + " |")
        notes = dict.fromkeys(f"{p.label}, seed {p.seed}: {p.note}" for p in members if p.note)
        lines += ["", *(f"Missing, {note}" for note in notes), *([""] if notes else [])]
    return "\n".join(lines)
