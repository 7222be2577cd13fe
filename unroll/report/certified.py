"""Certified removals and the four-step pipeline as figures, tables and pages of Markdown.

Design: one row per request, as it was served; what a certificate says stands beside what was
measured. Rejected: a single number of removals per setting; it hides how far the bound lies above
the residual that it bounds, which is what the budget is spent on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unroll.errors import InputError
from unroll.report.files import write_atomically
from unroll.report.formatting import format_interval, format_number
from unroll.report.style import COLOURS, FAINT, INK, MUTED, new_figure, plain_axes
from unroll.report.summary import group_by, t_interval

_MARKERS = ("o", "s", "^", "D", "v", "p", ">")
_CERTIFIED_TEXT = """\
Examples are removed one after the other, each by a Newton step, until the bound on the gradient
that they leave would exceed the budget. `true / bound`: the norm of that gradient over its bound,
at the last removal. `distance / bound`: the same for the distance to the optimum on what remains,
with the same perturbation. `accuracy, retrained`: of a model trained anew with a perturbation of
its own. `plain`: accuracy of the first model without any perturbation. A budget that was not
exhausted after all removals is written with a `+`."""
_PIPELINE_TEXT = """\
Each row is one influence with one kind of noise. `error`: distance to the retrained model over that
of the original, 0 is retrained, 1 is the original, as it would be served, with its noise.
`accepted`: share of the updates that passed all checks; where one failed, the old model stays."""


@dataclasses.dataclass(frozen=True)
class Removal:
    """A row of `removals.jsonl`: the model after some removals.

    Attributes:
      dataset: name.
      classes: which classes are told apart.
      bound: form of the bound.
      l2: of the penalty.
      sigma: standard deviation of the perturbation.
      seed: of perturbation and order.
      removals: served so far, of one example each.
      budget: largest residual that the perturbation hides.
      residual_bound: bound on the residual.
      residual: norm of the gradient, measured.
      distance_bound: bound on the distance to the optimum.
      distance: to the optimum with the same perturbation, measured.
      accuracy: on the test set.
      retrained_accuracy: of a model retrained on what remains.
      plain_accuracy: of the first model, without perturbation.
      seconds: of the last removal.
      retrain_seconds: of the retraining.
      last: whether the budget did not cover one removal more.
    """

    dataset: str
    classes: str
    bound: str
    l2: float
    sigma: float
    seed: int
    removals: int
    budget: float
    residual_bound: float
    residual: float
    distance_bound: float
    distance: float
    accuracy: float
    retrained_accuracy: float
    plain_accuracy: float
    seconds: float
    retrain_seconds: float
    last: bool = False

    @property
    def setting(self) -> tuple[str, float, float]:
        """What tells the lines of a figure apart."""
        return self.bound, self.l2, self.sigma


@dataclasses.dataclass(frozen=True)
class Served:
    """A row of `served.jsonl`: one request through one pipeline.

    Attributes:
      dataset: name.
      model: name.
      influence: text of the first step.
      noise: text of the third.
      seed: of the training.
      error: relative verification error of the update; `None` where it diverged.
      accuracy: of the update on the test set.
      original_accuracy: of the old model.
      accepted: whether the update was accepted.
      example_gradients: spent, over those of retraining.
      statement: what the noise means.
      note: why a row has no numbers.
    """

    dataset: str
    model: str
    influence: str
    noise: str
    seed: int
    error: float | None
    accuracy: float | None
    original_accuracy: float
    accepted: bool
    example_gradients: float | None
    statement: str = ""
    note: str | None = None


def write_certified(rows: Sequence[Removal], workdir: Path, title: str) -> Path:
    """Writes `certified.md` and `certified.png`; returns the path of the page.

    Args:
      rows: of one data set.
      workdir: an existing directory.
      title: of the page.

    Raises:
      InputError: if there is no row.
    """
    _save(removal_figure(rows), workdir / "certified.png")
    return _write(workdir / "certified.md", _certified_page(rows, title))


def removal_figure(rows: Sequence[Removal]) -> Figure:
    """Bound, residual and budget against the removals, and the accuracy; a line for each seed.

    Raises:
      InputError: if there is no row.
    """
    if not rows:
        raise InputError("there are no removals to draw")
    figure = new_figure(9.2, 3.6)
    left, right = figure.subplots(1, 2)
    for number, (setting, group) in enumerate(group_by(rows, lambda row: row.setting).items()):
        colour = COLOURS[number % len(COLOURS)]
        label = _name(setting)
        for found in group_by(group, _seed).values():
            found = sorted(found, key=lambda row: row.removals)
            # What training leaves is rounding, which would stretch the axis by ten decades.
            _draw(left, found[1:], "residual_bound", color=colour, label=label)
            _draw(left, found[1:], "residual", color=colour, ls=":")
            _draw(right, found, "accuracy", color=colour)
            _draw(right, found, "retrained_accuracy", color=colour, ls=":")
            label = None
        left.axhline(group[0].budget, color=colour, lw=0.9, ls="--")
    plain = sum(row.plain_accuracy for row in rows) / len(rows)
    right.axhline(plain, color=MUTED, lw=0.9, ls="--")
    left.set_yscale("log")
    left.set_ylabel("Gradient left: bound, true (dotted), budget")
    right.set_ylabel("Test accuracy, retrained (dotted)")
    for axes in (left, right):
        axes.set_xlabel("Removals")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color=FAINT, lw=0.5)
        plain_axes(axes)
    left.tick_params(which="minor", colors=MUTED)
    figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), fontsize=8, frameon=False, ncol=2)
    figure.tight_layout()
    return figure


def _draw(axes: Axes, rows: Sequence[Removal], name: str, **style) -> None:
    at, values = [row.removals for row in rows], [getattr(row, name) for row in rows]
    axes.plot(at, values, lw=1.1, marker=".", markersize=4, **style)


def _name(setting: tuple[str, float, float]) -> str:
    bound, l2, sigma = setting
    return f"{bound} bound, l2 {l2:g}, sigma {sigma:g}"


def _certified_page(rows: Sequence[Removal], title: str) -> str:
    seeds = len({row.seed for row in rows})
    columns = (
        "bound", "l2", "sigma", "budget", "removals", "true / bound", "distance / bound",
        "accuracy", "accuracy, retrained", "plain", "seconds", "seconds, retrained",
    )  # fmt: skip
    lines = [
        f"# {title}",
        "",
        f"{rows[0].dataset}, {rows[0].classes}. Means over {seeds} seeds and half the width of "
        "their 95% intervals.",
        "",
        _CERTIFIED_TEXT,
        "",
        "![bound, residual and accuracy](certified.png)",
        "",
        *_header(columns, 1),
    ]
    for (bound, l2, sigma), group in group_by(rows, lambda row: row.setting).items():
        ends = [max(each, key=lambda r: r.removals) for each in group_by(group, _seed).values()]
        counts = format_interval(t_interval([row.removals for row in ends]))
        cells = [
            bound,
            f"{l2:g}",
            f"{sigma:g}",
            format_number(ends[0].budget),
            counts + ("" if all(row.last for row in ends) else " +"),
            _shares([(row.residual, row.residual_bound) for row in ends if row.removals]),
            _shares([(row.distance, row.distance_bound) for row in ends if row.removals]),
            _mean([row.accuracy for row in ends]),
            _mean([row.retrained_accuracy for row in ends]),
            _mean([row.plain_accuracy for row in ends]),
            _mean([row.seconds for row in ends]),
            _mean([row.retrain_seconds for row in ends]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _seed(row: Removal | Served) -> int:
    return row.seed


def _shares(pairs: Sequence[tuple[float, float]]) -> str:
    # Before the first removal both are rounding, and their ratio means nothing.
    return _mean([value / bound for value, bound in pairs if bound > 0]) if pairs else "-"


def _mean(values: Sequence[float]) -> str:
    return format_interval(t_interval(list(values)))


def write_pipeline(rows: Sequence[Served], workdir: Path, title: str) -> Path:
    """Writes `pipeline.md` and `pipeline.png`; returns the path of the page.

    Args:
      rows: of one data set and model.
      workdir: an existing directory.
      title: of the page.

    Raises:
      InputError: if there is no row with numbers.
    """
    _save(pipeline_figure(rows), workdir / "pipeline.png")
    return _write(workdir / "pipeline.md", _pipeline_page(rows, title))


def pipeline_figure(rows: Sequence[Served]) -> Figure:
    """Accuracy against relative verification error; full points were accepted for every seed.

    Raises:
      InputError: if there is no row with numbers.
    """
    known = [row for row in rows if row.error is not None]
    if not known:
        raise InputError("no update has numbers to draw")
    influences = list(dict.fromkeys(row.influence for row in known))
    noises = list(dict.fromkeys(row.noise for row in known))
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    for (influence, noise), group in group_by(known, lambda r: (r.influence, r.noise)).items():
        colour = COLOURS[influences.index(influence) % len(COLOURS)]
        accepted = all(row.accepted for row in group)
        axes.plot(
            sum(row.error for row in group) / len(group),
            sum(row.accuracy for row in group) / len(group),
            marker=_MARKERS[noises.index(noise) % len(_MARKERS)],
            color=colour,
            markerfacecolor=colour if accepted else "white",
            ls="",
            label=f"{influence}, {noise}",
        )
    axes.axvline(1.0, color=MUTED, lw=0.9, ls="--")
    old = sum(row.original_accuracy for row in rows) / len(rows)
    axes.axhline(old, color=MUTED, lw=0.9, ls="--")
    axes.set_xscale("log")
    axes.set_xlabel("Relative verification error (dashed: the original)")
    axes.set_ylabel("Test accuracy")
    axes.grid(color=FAINT, lw=0.5)
    plain_axes(axes)
    axes.tick_params(which="minor", colors=MUTED)
    axes.title.set_color(INK)
    figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), fontsize=7, frameon=False, ncol=2)
    figure.tight_layout()
    return figure


def _pipeline_page(rows: Sequence[Served], title: str) -> str:
    seeds = len({row.seed for row in rows})
    columns = ("influence", "noise", "error", "accuracy", "accepted", "gradients / retraining")
    lines = [
        f"# {title}",
        "",
        f"{rows[0].dataset}, {rows[0].model}. Means over {seeds} training seeds and half the width "
        "of their 95% intervals.",
        "",
        _PIPELINE_TEXT,
        "",
        "![accuracy and error](pipeline.png)",
        "",
        *_header(columns, 2),
    ]
    notes = []
    for (influence, noise), group in group_by(rows, lambda r: (r.influence, r.noise)).items():
        known = [row for row in group if row.error is not None]
        numbers = ["-"] * 2
        cost = "-"
        if known:
            numbers = [_mean([row.error for row in known]), _mean([row.accuracy for row in known])]
            cost = _mean([row.example_gradients for row in known])
        share = sum(row.accepted for row in group) / len(group)
        cells = [influence, noise, *numbers, f"{share:.2g}", cost]
        lines.append("| " + " | ".join(cells) + " |")
        notes += [f"- {influence}, {noise}, seed {r.seed}: {r.note}" for r in group if r.note]
    lines += ["", f"What the noise means, seed {rows[0].seed}:", ""]
    said = [row for row in rows if row.statement and row.seed == rows[0].seed]
    for statement, group in group_by(said, lambda row: row.statement).items():
        lines.append(f"- {', '.join(dict.fromkeys(row.influence for row in group))}: {statement}")
    lines += ["", *notes] if notes else []
    return "\n".join(lines) + "\n"


def _header(columns: Sequence[str], texts: int) -> list[str]:
    rule = ["---"] * texts + ["---:"] * (len(columns) - texts)
    return ["| " + " | ".join(columns) + " |", "| " + " | ".join(rule) + " |"]


def _save(figure: Figure, path: Path) -> None:
    write_atomically(
        path, lambda file: figure.savefig(file, format="png", dpi=150, bbox_inches="tight")
    )


def _write(path: Path, page: str) -> Path:
    write_atomically(path, lambda file: file.write(page.encode()))
    return path
