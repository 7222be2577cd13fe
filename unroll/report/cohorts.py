"""Deletion of cohorts by tangents: a figure, two tables and a page of Markdown.

Design: reads the records of `evaluation.cohorts` and nothing else. Rejected: the report of a study
for every size of union; what is to be seen is how the error grows with the union, and that is one
curve.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from unroll.errors import InputError
from unroll.evaluation.cohorts import COSTS, TANGENTS
from unroll.evaluation.records import NULL, ORIGINAL, RETRAIN, Record
from unroll.report.files import write_atomically
from unroll.report.formatting import format_interval
from unroll.report.style import COLOURS, MUTED, new_figure, plain_axes
from unroll.report.summary import Interval, group_by, t_interval

_ERROR = "relative_verification_error"
_GUIDE = (
    "Cells are the mean ± half the width of the 95% Student t interval over training seeds. The "
    "relative verification error is the distance to the twin, which was retrained without the "
    "union under the same key, divided by the distance of the original from the twin (the column "
    "`Distance`): 1 by definition for doing nothing, 0 for the twin. The independent retrain, "
    "under another key, stands on the same scale."
)
_COST_GUIDE = (
    "Seconds and example gradients are those of the tangents alone, per registered cohort, in "
    "trainings of the model; a Hessian-vector product counts two gradients. Bytes are those of the "
    "tangents of the whole state, cross terms included."
)


def write_cohorts(
    records: Sequence[Record], workdir: Path, title: str, config: Mapping[str, Any] | None = None
) -> Path:
    """Writes `cohorts.png` and `cohorts.md` into a directory; returns the path of the page.

    Raises:
      InputError: if there is no row of a union, or rows of several experiments.
    """
    figure = cohort_figure(records)
    page = cohort_page(records, title, config)
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(
        workdir / "cohorts.png",
        lambda file: figure.savefig(file, format="png", dpi=150, bbox_inches="tight"),
    )
    path = workdir / "cohorts.md"
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def cohort_page(
    records: Sequence[Record], title: str, config: Mapping[str, Any] | None = None
) -> str:
    """The tables as Markdown."""
    unions = _unions(records)
    series = _series(records)
    first = records[0]
    lines = [f"# {title}", "", f"{first.dataset}, `{first.model}`.", "", _GUIDE, ""]
    lines += ["![relative verification error against the size of the union](cohorts.png)", ""]
    compared = {ORIGINAL: "doing nothing", **series}
    lines += _header(["Cohorts", "Examples", "Distance", *compared.values(), "Deletion (ms)"])
    for size, rows in unions.items():
        seconds = [r for r in rows if r.method == TANGENTS and r.seconds is not None]
        cells = [
            str(size),
            f"{sum(r.forget_size for r in rows) / len(rows):g}",
            _cell([r for r in rows if r.metric == "no_unlearning_distance"]),
            *(_cell(_errors(rows, label)) for label in compared),
            _milliseconds(seconds),
        ]
        lines.append(_line(cells))
    lines += ["", "Test accuracy:", ""]
    labels = {ORIGINAL: "original", RETRAIN: "twin", **series}
    lines += _header(["Cohorts", *labels.values()])
    for size, rows in unions.items():
        known = [r for r in rows if r.metric == "accuracy"]
        cells = (_cell([r for r in known if r.label == label]) for label in labels)
        lines.append(_line([str(size), *cells]))
    lines += ["", "## Cost of a cohort", "", _COST_GUIDE, ""]
    lines += _header(["Order", "Seconds (trainings)", "Gradients (trainings)", "Bytes"])
    for order, rows in _costs(records).items():
        cells = (_cell([r for r in rows if r.metric == metric]) for metric in COSTS)
        lines.append(_line([str(order), *cells]))
    lines += [f"\n{note}." for note in dict.fromkeys(r.note for r in records if r.note)]
    if config is not None:
        text = json.dumps(config, indent=2, default=str)
        lines += ["", "## Configuration", "", f"```json\n{text}\n```"]
    return "\n".join(lines) + "\n"


def cohort_figure(records: Sequence[Record]) -> Figure:
    """Relative verification error against the number of cohorts in the union, a line per order.

    Raises:
      InputError: if there is no row of a union, or rows of several experiments.
    """
    unions, series = _unions(records), _series(records)
    figure = new_figure(5.6, 3.8)
    axes = figure.add_subplot()
    plain_axes(axes)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.axhline(1, color=MUTED, lw=1, zorder=0)
    colours = iter(COLOURS)
    for label, text in series.items():
        points = {size: _interval(_errors(rows, label)) for size, rows in unions.items()}
        points = {size: value for size, value in points.items() if value is not None}
        if not points:
            continue
        colour = MUTED if label == NULL else next(colours)
        means = [value.mean for value in points.values()]
        widths = [value.half_width or 0.0 for value in points.values()]
        # On a logarithmic axis an interval that reaches 0 ends a decade under the mean.
        below = [min(width, 0.9 * mean) for mean, width in zip(means, widths, strict=True)]
        axes.errorbar(
            list(points),
            means,
            yerr=[below, widths],
            color=colour,
            marker="d" if label == NULL else "o",
            ls=":" if label == NULL else "-",
            capsize=3,
            label=text,
        )
    axes.set_xticks(list(unions), [str(size) for size in unions])
    axes.minorticks_off()
    axes.set_xlabel("cohorts deleted together")
    axes.set_ylabel("relative verification error")
    axes.annotate("doing nothing", (min(unions), 1), xytext=(0, 3), textcoords="offset points",
                  color=MUTED, fontsize=8)  # fmt: skip
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    axes.set_title(_cost_line(records), fontsize=8, color=MUTED)
    return figure


def _unions(records: Sequence[Record]) -> dict[int, list[Record]]:
    """Rows of the unions by their number of cohorts, ascending."""
    if len({(r.experiment, r.dataset, r.model) for r in records}) > 1:
        raise InputError("a page on cohorts shows one experiment; split the records")
    found = []
    for record in records:
        match = re.fullmatch(r"cohorts\(union=(\d+)\)", record.forget)
        if match:
            found.append((int(match[1]), record))
    if not found:
        raise InputError("there is no deletion of cohorts in the records; run the study first")
    groups = group_by(sorted(found, key=lambda pair: pair[0]), lambda pair: pair[0])
    return {size: [record for _, record in pairs] for size, pairs in groups.items()}


def _series(records: Sequence[Record]) -> dict[str, str]:
    """Header of each compared method by its label: the orders, then the independent retrain."""
    tangents = {r.label: r.hyperparameters["order"] for r in records if r.method == TANGENTS}
    orders = {label: f"order {order}" for label, order in sorted(tangents.items())}
    return {**orders, NULL: "independent retrain"}


def _costs(records: Sequence[Record]) -> dict[int, list[Record]]:
    """Rows on the cost of registered cohorts by order."""
    rows = [record for record in records if record.metric in COSTS]
    return group_by(rows, lambda record: record.hyperparameters["order"])


def _errors(rows: Sequence[Record], label: str) -> list[Record]:
    return [row for row in rows if row.label == label and row.metric == _ERROR]


def _interval(rows: Sequence[Record]) -> Interval | None:
    """Interval over training seeds, `None` where one of them has no value."""
    values = {row.train_seed: row.value for row in rows}
    return t_interval(list(values.values())) if values and None not in values.values() else None


def _cell(rows: Sequence[Record]) -> str:
    interval = _interval(rows)
    return "n/a" if interval is None else format_interval(interval)


def _milliseconds(rows: Sequence[Record]) -> str:
    """The slowest order's."""
    slowest = group_by(rows, lambda row: row.label)
    means = [1e3 * sum(r.seconds for r in group) / len(group) for group in slowest.values()]
    return f"{max(means):.2g}" if means else "n/a"


def _header(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|" + " ---: |" * len(cells)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cost_line(records: Sequence[Record]) -> str:
    parts = []
    for order, rows in _costs(records).items():
        cell = _cell([row for row in rows if row.metric == COSTS[0]])
        parts.append(f"order {order}: {cell}")
    return f"trainings per registered cohort (seconds): {', '.join(parts)}" if parts else ""
