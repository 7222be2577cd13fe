"""Loss along training, to see that original and retrained model were trained to the same point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from unroll.evaluation.records import ORIGINAL, RETRAIN, Record
from unroll.report.style import INK, MUTED, new_figure, plain_axes, section_rows
from unroll.report.summary import group_by

_WINDOWS_PER_RUN = 40
_ORANGE = "#D55E00"
# The dashed curve comes last: the two often coincide, and both must show.
_CURVES = ((RETRAIN, _ORANGE, "-", 2.4), (ORIGINAL, INK, "--", 1.5))


def training_curves(records: Sequence[Record]) -> Figure | None:
    """Draws the training loss against the step, thin per seed and bold for the mean.

    Args:
      records: records of one section.

    Returns:
      The figure, or `None` when the records have no training loss.
    """
    section_rows(records)
    losses = [
        record
        for record in records
        if record.metric == "training_loss" and record.at is not None and record.value is not None
    ]
    if not losses:
        return None
    figure = new_figure(6.4, 3.8)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    by_method = group_by(losses, lambda record: record.method)
    window = max(running_window(members) for members in by_method.values())
    for method, colour, line, width in _CURVES:
        curves = [
            (steps, running_mean(values, window))
            for steps, values in _runs(by_method.get(method, []))
        ]
        for steps, values in curves:
            axes.plot(steps, values, color=colour, lw=0.7, alpha=0.35, zorder=2)
        if curves:
            steps, mean = mean_curve(curves)
            axes.plot(steps, mean, color=colour, lw=width, ls=line, label=method, zorder=3)
    smoothing = f", running mean over {window} points" if window > 1 else ""
    axes.set_xlabel("Step")
    axes.set_ylabel(f"Training loss{smoothing}")
    if min(record.value for record in losses) > 0:
        axes.set_yscale("log")
        # Over less than a decade the default formatter writes powers of ten at every tick.
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(StrMethodFormatter("{x:g}"))
    plain_axes(axes)
    axes.tick_params(which="minor", colors=MUTED, labelcolor=INK, labelsize=8)
    axes.legend(frameon=False, fontsize=9)
    return figure


def running_window(records: Sequence[Record]) -> int:
    """Length of the running mean, in points: a fortieth of the run."""
    return max(1, len({record.at for record in records}) // _WINDOWS_PER_RUN)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and its neighbours; at the ends the window shrinks, so nothing is lost."""
    ones = np.ones(window)
    sums = np.convolve(values, ones, mode="full")
    counts = np.convolve(np.ones(len(values)), ones, mode="full")
    start = (window - 1) // 2
    return (sums / counts)[start : start + len(values)]


def mean_curve(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over runs at the steps that every run has."""
    common = set(curves[0][0]).intersection(*(steps for steps, _ in curves[1:]))
    kept = [values[[step in common for step in steps]] for steps, values in curves]
    return np.array(sorted(common)), np.mean(kept, axis=0)


def _runs(records: Sequence[Record]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Steps and losses of each run, in order of steps."""
    runs = group_by(records, lambda record: (record.train_seed, record.method_seed))
    curves = []
    for members in runs.values():
        loss_at = {record.at: record.value for record in members}
        steps = sorted(loss_at)
        curves.append((np.array(steps), np.array([loss_at[step] for step in steps])))
    return curves
