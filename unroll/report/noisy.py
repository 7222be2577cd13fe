"""Noisy fine-tuning as a page of Markdown and a figure: accuracy at a guarantee, beside no noise.

Design: training from the reference for as many steps stands in every table. It has seen nothing of
the forget set and needs no noise, so it is what a guarantee has to beat. Rejected: the original and
the retrained model as the only neighbours, beside which any accuracy above chance looks good.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unroll.errors import InputError
from unroll.report.files import write_atomically
from unroll.report.formatting import format_interval, format_number
from unroll.report.rum import markdown_table, save_figure
from unroll.report.style import COLOURS, FAINT, INK, MUTED, new_figure, plain_axes
from unroll.report.summary import Interval, group_by, t_interval

NOISY, ORIGINAL, RETRAIN = "noisy fine-tuning", "original", "retrain"
DESTROYED = 0.5
"""Share of what the original knows beyond chance, below which the noise has destroyed it."""
_GUIDE = """\
Test accuracy after a deletion. Noisy fine-tuning is (epsilon, delta)-close to the same steps from
any other start, see `unroll.deletion.noisy`; the noise is what that takes: `sigma` in each
parameter and step, `norm` that of the noise of one step. The other rows have no noise. `retrain`
and `from scratch` (from the reference) never read the forget set; the others guarantee nothing.
`error`: distance to the retrained model over that of the original; it is measured and certifies
nothing, and of a noisy model it is mostly the noise. `kept`: accuracy beyond chance over that of
the original. `cost`: example gradients over those of retraining. `clipped`: share of the noisy
steps. Means over seeds and half the width of their 95% intervals."""


@dataclasses.dataclass(frozen=True)
class NoisyRow:
    """A row of `noisy.jsonl`: one model after one deletion.

    Attributes:
      dataset, model: names.
      seed: of the training.
      method: what was done.
      clipping, radius, epsilon, quiet_epochs: of noisy fine-tuning; `None` for other methods.
      sigma: standard deviation of the noise in each parameter and step.
      noise_norm: expected norm of the noise of a step.
      accuracy: on the test set; `None` where it diverged.
      forget_accuracy: on the forget set.
      error: relative verification error.
      original_accuracy: of the original on the test set.
      chance: share of the most frequent class of the test set.
      cost: example gradients over those of retraining.
      distance: of the original from the reference.
      share_clipped: share of the noisy steps in which something was clipped.
      note: why a row has no numbers.
    """

    dataset: str
    model: str
    seed: int
    method: str
    original_accuracy: float
    chance: float
    clipping: str | None = None
    radius: float | None = None
    epsilon: float | None = None
    quiet_epochs: int | None = None
    sigma: float | None = None
    noise_norm: float | None = None
    accuracy: float | None = None
    forget_accuracy: float | None = None
    error: float | None = None
    cost: float | None = None
    distance: float | None = None
    share_clipped: float | None = None
    note: str | None = None

    @property
    def setting(self) -> tuple:
        """What the seeds of a line of the table share."""
        return self.method, self.clipping, self.radius, self.quiet_epochs, self.epsilon

    @property
    def kept(self) -> float | None:
        """Accuracy beyond chance over that of the original; `None` where either is missing."""
        known = self.original_accuracy - self.chance
        if self.accuracy is None:
            return None
        return (self.accuracy - self.chance) / known if known > 0 else None


def write_noisy(rows: Sequence[NoisyRow], workdir: Path, title: str, delta: float) -> Path:
    """Writes `noisy.md` and `noisy.png`; returns the path of the page.

    Args:
      rows: of one data set.
      workdir: an existing directory.
      title: of the page.
      delta: of the guarantees.

    Raises:
      InputError: if there is no row of noisy fine-tuning.
    """
    save_figure(noisy_figure(rows), workdir / "noisy.png")
    path, page = workdir / "noisy.md", _page(rows, title, delta)
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def noisy_figure(rows: Sequence[NoisyRow]) -> Figure:
    """Accuracy against epsilon, a panel for each model; references are horizontal lines.

    A setting that diverged for some seeds has no point. Intervals end at 0 and 1.

    Raises:
      InputError: if there is no row of noisy fine-tuning.
    """
    if not any(row.method == NOISY and row.accuracy is not None for row in rows):
        raise InputError("no noisily fine-tuned model has an accuracy to draw")
    models = group_by(rows, lambda row: row.model)
    figure = new_figure(5.2 * len(models), 4.2)
    panels = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    for axes, (model, own) in zip(panels, models.items(), strict=True):
        _draw(axes, own)
        axes.set_title(model, fontsize=10, color=INK)
    panels[0].set_ylabel("test accuracy")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.set_layout_engine("constrained")
    return figure


def _draw(axes: Axes, rows: Sequence[NoisyRow]) -> None:
    known = [row for group in _settings(rows) if not _diverged(group) for row in group]
    noisy = [row for row in known if row.method == NOISY]
    lines = group_by(noisy, lambda row: (row.clipping, row.radius, row.quiet_epochs))
    colours = list(dict.fromkeys((clipping, radius) for clipping, radius, _ in lines))
    styles = dict(
        zip(dict.fromkeys(row.quiet_epochs for row in noisy), ("-", "--", ":"), strict=False)
    )
    for number, ((clipping, radius, quiet), own) in enumerate(lines.items()):
        points = group_by(own, lambda row: row.epsilon)
        apart = 1 + 0.05 * (number - (len(lines) - 1) / 2)  # so that intervals can be told apart
        found = [t_interval([row.accuracy for row in group]) for group in points.values()]
        axes.errorbar(
            [epsilon * apart for epsilon in points],
            [each.mean for each in found],
            yerr=np.transpose([_whiskers(each) for each in found]),
            color=COLOURS[colours.index((clipping, radius)) % len(COLOURS)],
            linestyle=styles.get(quiet, "-."),
            marker="o",
            markersize=3,
            linewidth=1.1,
            capsize=2,
            label=f"{clipping} clipping, C0 {radius:g}, {quiet} quiet epochs",
        )
    others = group_by([row for row in known if row.method != NOISY], lambda row: row.method)
    for number, (method, own) in enumerate(others.items()):
        axes.axhline(
            float(np.mean([row.accuracy for row in own])),
            color=(INK, MUTED)[number % 2],
            linewidth=1.0,
            linestyle=("-", "--", "-.", ":")[number // 2 % 4],
            label=method,
        )
    plain_axes(axes)
    axes.set_xscale("log")
    axes.set_xticks(sorted({row.epsilon for row in noisy}))
    axes.set_xticklabels([f"{value:g}" for value in sorted({row.epsilon for row in noisy})])
    axes.minorticks_off()
    axes.set_xlabel("epsilon")
    axes.grid(axis="y", color=FAINT, linewidth=0.5)


def _settings(rows: Sequence[NoisyRow]) -> list[list[NoisyRow]]:
    """The rows of each setting, one for each seed."""
    return list(group_by(rows, lambda row: row.setting).values())


def _diverged(rows: Sequence[NoisyRow]) -> bool:
    """Whether a mean over the seeds would be one of survivors."""
    return any(row.accuracy is None for row in rows)


def _whiskers(interval: Interval) -> tuple[float, float]:
    """How far an interval reaches below and above its mean, within the range of accuracies."""
    if interval.low is None:
        return 0.0, 0.0
    return interval.mean - max(interval.low, 0.0), min(interval.high, 1.0) - interval.mean


def _page(rows: Sequence[NoisyRow], title: str, delta: float) -> str:
    seeds = len({row.seed for row in rows})
    lines = [f"# {title}", "", f"{rows[0].dataset}, {seeds} seeds, delta {delta:g}.", "", _GUIDE]
    lines += ["", "![accuracy against epsilon](noisy.png)", ""]
    header = ["method", "clipping", "C0", "quiet epochs", "epsilon", "sigma", "norm", "accuracy"]
    header += ["on the forget set", "kept", "error", "cost", "clipped"]
    for model, own in group_by(rows, lambda row: row.model).items():
        groups = _settings(own)
        distances = [row.distance for row in own if row.distance is not None]
        lines += [f"## {model}", ""]
        if distances:
            lines += [f"Original to reference: {_mean(distances)}.", ""]
        lines += [*markdown_table(header, [_cells(group) for group in groups], left=2), ""]
        lines += [_verdict(groups), ""]
        broken = [row for row in own if row.note is not None]
        lines += [f"- not drawn: {row.setting}, seed {row.seed}: {row.note}" for row in broken]
    return "\n".join(lines) + "\n"


def _verdict(groups: Sequence[Sequence[NoisyRow]]) -> str:
    noisy = [rows for rows in groups if rows[0].method == NOISY]
    lost = [
        rows
        for rows in noisy
        if _diverged(rows) or float(np.mean([row.kept or 0.0 for row in rows])) < DESTROYED
    ]
    return (
        f"In {len(lost)} of {len(noisy)} settings the noise destroys the model: it keeps less than "
        f"{DESTROYED:.0%} of what the original knows beyond chance."
    )


def _mean(values: Sequence[float]) -> str:
    return format_interval(t_interval(list(values)))


def _cells(rows: Sequence[NoisyRow]) -> list[str]:
    first = rows[0]

    def given(value) -> str:
        return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

    diverged, noisy = _diverged(rows), first.method == NOISY

    def mean(number) -> str:
        values = [number(row) for row in rows]
        if diverged:
            return "n/a"
        return "" if any(value is None for value in values) else _mean(values)

    def noise(values: Sequence[float | None]) -> str:
        known = [value for value in values if value is not None]
        return format_number(known[0]) if known else "n/a" if noisy else ""

    return [
        first.method,
        given(first.clipping),
        given(first.radius),
        given(first.quiet_epochs),
        given(first.epsilon),
        noise([row.sigma for row in rows]),
        noise([row.noise_norm for row in rows]),
        mean(lambda row: row.accuracy),
        mean(lambda row: row.forget_accuracy),
        mean(lambda row: row.kept) or "n/a",
        mean(lambda row: row.error),
        mean(lambda row: row.cost),
        mean(lambda row: row.share_clipped),
    ]
