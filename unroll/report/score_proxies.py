"""Proxies of memorization scores as a table and figures: agreement with the exact ones, and cost.

Design: one line per proxy and way of training, agreement and cost side by side on the same lines,
so that neither is read without the other. Rejected: agreement against cost as a scatter; the ten
proxies lie in two heaps there, and their names on top of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import rankdata

from unroll.calls import parse_call
from unroll.errors import InputError
from unroll.evaluation.score_proxies import ScoreProxyRow
from unroll.report.axes import LogAxisWithZero
from unroll.report.files import write_atomically
from unroll.report.formatting import format_interval
from unroll.report.style import COLOURS, INK, MUTED, new_figure, plain_axes
from unroll.report.summary import Interval, group_by, t_interval

# From one example on it can be seen on white.
_COUNTS = LinearSegmentedColormap.from_list("counts", ["#b6d4ea", COLOURS[0], "#06243d"])
_GUIDE = """\
Means over training seeds with half the width of their 95% intervals (Student's t). In brackets the
95% interval over examples, its ends averaged over the seeds: Fisher's z for the rank correlation,
Wilson's for the precision. It takes examples as independent, and leaves out the noise of the exact
scores, which all seeds share. The ceiling is what a proxy without error would reach by that noise.
Precision is the share of the top examples by the proxy that are in the top by the exact score; a
proxy that knows nothing has the share that the top is of all. Costs are what a proxy takes beyond
the training of the original, in percent of the exact scores; a forward pass counts as a third of a
gradient."""


def write_score_proxies(
    rows: Sequence[ScoreProxyRow],
    values: Mapping[str, np.ndarray],
    exact: np.ndarray,
    workdir: Path,
    title: str,
) -> Path:
    """Writes `score_proxies.md`, `agreement.png` and `scatter.png`; returns the page's path.

    Args:
      rows: of one training set.
      values: scores `[N]` of some proxies on one run, for the scatter.
      exact: `[N]` exact scores.
      workdir: an existing directory.
      title: of the page.
    """
    figures = {"agreement": agreement_figure(rows)}
    if values:
        figures["scatter"] = scatter_figure(values, exact)
    for name, figure in figures.items():
        write_atomically(
            workdir / f"{name}.png",
            lambda file, figure=figure: figure.savefig(
                file, format="png", dpi=150, bbox_inches="tight"
            ),
        )
    path = workdir / "score_proxies.md"
    write_atomically(path, lambda file: file.write(_page(rows, title, figures).encode()))
    return path


def _page(rows: Sequence[ScoreProxyRow], title: str, names: Sequence[str]) -> str:
    first = rows[0]
    lines = [f"# {title}", "", _GUIDE, ""]
    lines += [
        f"{first.dataset}, {first.model}: {first.examples} examples, exact scores from "
        f"{first.models} models. {_ceiling_text(rows)}",
        "",
    ]
    for augmented, members in group_by(rows, lambda row: row.augmented).items():
        accuracy = _known(members, lambda row: row.test_accuracy)
        ending = "" if accuracy is None else f", test accuracy {format_interval(accuracy)}"
        seconds = _known(members, lambda row: row.training_cost_seconds)
        gradients = _known(members, lambda row: row.training_cost_gradients)
        lines.append(
            f"Originals {_training(augmented)}{ending}; the training of one takes "
            f"{_percent(seconds)} of the seconds and {_percent(gradients)} of the example "
            "gradients of the exact scores."
        )
    lines += ["", *_table(rows), "", *_augmentation(rows)]
    for row in rows:
        if row.note:
            lines.append(f"`{row.proxy}`, seed {row.seed}, {_training(row.augmented)}: {row.note}")
    for name in names:
        lines += ["", f"![{name}]({name}.png)"]
    return "\n".join(lines) + "\n"


def _training(augmented: bool) -> str:
    return "with augmentation" if augmented else "without augmentation"


def _ceiling_text(rows: Sequence[ScoreProxyRow]) -> str:
    ceiling = rows[0].ceiling
    if ceiling is None:
        return "They are too few for a ceiling."
    return f"Ceiling of the rank correlation: {ceiling:.2f}."


def _known(
    rows: Sequence[ScoreProxyRow], value: Callable[[ScoreProxyRow], float | None]
) -> Interval | None:
    """Interval over the seeds that have a value."""
    by_seed = {row.seed: value(row) for row in rows if value(row) is not None}
    return t_interval(list(by_seed.values())) if by_seed else None


def _table(rows: Sequence[ScoreProxyRow]) -> list[str]:
    shares = list(dict.fromkeys(share for row in rows for share in row.precision))
    header = ["proxy", "augmentation", "Spearman"]
    header += [f"precision, top {float(share):.0%}" for share in shares]
    header += ["seconds", "example gradients"]
    lines = ["| " + " | ".join(header) + " |", "| --- | --- |" + " ---: |" * (len(header) - 2)]
    groups = group_by(rows, lambda row: (row.proxy, row.augmented))
    for (text, augmented), members in sorted(groups.items(), key=lambda item: _rank(item[1])):
        known = [row for row in members if row.spearman is not None]
        cells = [f"`{text}`", "yes" if augmented else "no"]
        cells.append(_with_ends(known, lambda r: (r.spearman, r.spearman_low, r.spearman_high)))
        for share in shares:
            cells.append(
                _with_ends(
                    known,
                    lambda r, share=share: (
                        r.precision[share],
                        r.precision_low[share],
                        r.precision_high[share],
                    ),
                )
            )
        cells += [
            _percent(_known(known, lambda row: row.cost_seconds)),
            _percent(_known(known, lambda row: row.cost_gradients)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _augmentation(rows: Sequence[ScoreProxyRow]) -> list[str]:
    """What augmenting the originals changes, within seeds; no lines where nothing was augmented."""
    found = []
    for text, members in group_by(rows, lambda row: row.proxy).items():
        known = {(r.seed, r.augmented): r.spearman for r in members if r.spearman is not None}
        pairs = [
            known[seed, True] - known[seed, False]
            for seed in sorted({seed for seed, _ in known})
            if {(seed, True), (seed, False)} <= known.keys()
        ]
        if pairs:
            found.append((t_interval(pairs), text))
    if not found:
        return []
    lines = ["Spearman with augmentation minus without, within seeds:", ""]
    lines += ["| proxy | difference |", "| --- | ---: |"]
    found.sort(key=lambda each: each[0].mean)
    return [*lines, *(f"| `{text}` | {format_interval(each, True)} |" for each, text in found), ""]


def _rank(rows: Sequence[ScoreProxyRow]) -> float:
    """The best first, those without a number last."""
    found = _known(rows, lambda row: row.spearman)
    return math.inf if found is None else -found.mean


def _with_ends(rows, triple: Callable[[ScoreProxyRow], tuple]) -> str:
    found = _known(rows, lambda row: triple(row)[0])
    if found is None:
        return "-"
    ends = [_known(rows, lambda row, end=end: triple(row)[end]) for end in (1, 2)]
    text = format_interval(found)
    return text if None in ends else f"{text} [{ends[0].mean:.2f}, {ends[1].mean:.2f}]"


def _percent(found: Interval | None) -> str:
    return "-" if found is None else f"{100 * found.mean:.2g} %"


def agreement_figure(rows: Sequence[ScoreProxyRow]) -> Figure:
    """Rank correlation and cost of each proxy, in lines that both panels share.

    Raises:
      InputError: if no proxy has a number.
    """
    rows = [row for row in rows if row.spearman is not None]
    if not rows:
        raise InputError("no proxy has a rank correlation; there is nothing to draw")
    by_proxy = group_by(rows, lambda row: row.proxy)
    order = sorted(by_proxy, key=lambda text: _rank(by_proxy[text]), reverse=True)
    ways = sorted({row.augmented for row in rows})
    figure = new_figure(9.2, 1.4 + 0.36 * len(order))
    left, right = figure.subplots(1, 2, sharey=True)
    costs = LogAxisWithZero.around(_costs(rows))
    for axes in (left, right):
        plain_axes(axes)
        axes.grid(axis="y", color="#eaeef2", lw=0.8)
        axes.set_axisbelow(True)
    for number, augmented in enumerate(ways):
        shift = 0.0 if len(ways) == 1 else (0.14, -0.14)[number]
        for height, text in enumerate(order):
            members = [row for row in by_proxy[text] if row.augmented == augmented]
            if members:
                _draw_line(left, right, costs, members, height + shift, COLOURS[number])
        left.plot([], [], "o", ms=5, color=COLOURS[number], label=_training(augmented))
    ceiling = rows[0].ceiling
    if ceiling is not None:
        left.axvline(ceiling, color=INK, lw=1, ls="--", label="ceiling")
    left.axvline(0, color=MUTED, lw=1)
    left.set_yticks(range(len(order)), [_label(text) for text in order])
    left.set_ylim(-0.6, len(order) - 0.4)
    left.xaxis.set_major_locator(MaxNLocator(6))
    left.set_xlabel("Spearman correlation with the exact scores")
    costs.apply(right, "x")
    training = _known(rows, lambda row: row.training_cost_seconds).mean
    right.axvline(costs.clip(training), color=MUTED, lw=1, ls=":", label="one training")
    right.plot([], [], "s", ms=5, color=INK, label="seconds")
    right.plot([], [], "D", ms=5, mfc="none", color=INK, label="example gradients")
    right.set_xlabel("cost as a share of the exact scores")
    right.tick_params(axis="y", length=0)
    figure.tight_layout()
    for axes in (left, right):
        axes.legend(
            frameon=False,
            fontsize=8,
            ncols=3,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            handletextpad=0.4,
            columnspacing=1.2,
        )
    return figure


def _costs(rows: Sequence[ScoreProxyRow]) -> list[float]:
    """All costs that are drawn; what is measured as less than nothing is drawn as nothing."""
    found = [row.training_cost_seconds for row in rows]
    for row in rows:
        found += [max(row.cost_seconds, 0.0), row.cost_gradients]
    return found


def _draw_line(left, right, costs: LogAxisWithZero, rows, height: float, colour: str) -> None:
    found = _known(rows, lambda row: row.spearman)
    if found.low is not None:
        left.plot([found.low, found.high], [height, height], color=colour, lw=1.6)
    left.plot(found.mean, height, "o", ms=5, color=colour)
    seconds = _known(rows, lambda row: max(row.cost_seconds, 0.0)).mean
    gradients = _known(rows, lambda row: row.cost_gradients).mean
    right.plot(costs.place(seconds), height, "s", ms=5, color=colour, clip_on=False)
    right.plot(
        costs.place(gradients), height, "D", ms=6, mfc="none", mew=1.2, color=colour, clip_on=False
    )


def _label(text: str) -> str:
    return parse_call(text)[0].replace("_", " ")


def scatter_figure(values: Mapping[str, np.ndarray], exact: np.ndarray) -> Figure:
    """Exact score against the rank of each proxy's score, as a map of counts.

    Ranks, since the rank is all that a refinement by scores uses, and since raw values have heavy
    tails. Ties share their mean rank.
    """
    columns = min(5, len(values))
    height = -(-len(values) // columns)
    figure = new_figure(2.3 * columns + 0.4, 2.2 * height + 0.4)
    for number, (text, scores) in enumerate(values.items(), start=1):
        axes = figure.add_subplot(height, columns, number)
        plain_axes(axes)
        ranks = (rankdata(scores) - 0.5) / len(scores)
        limits = (0, 1, exact.min(), exact.max() if np.ptp(exact) else exact.min() + 1)
        axes.hexbin(
            ranks, exact, gridsize=22, extent=limits, bins="log", cmap=_COUNTS, mincnt=1, lw=0.1
        )
        axes.set_title(_label(text), fontsize=9, color=INK)
        axes.set_xticks([0, 0.5, 1])
        if number % columns == 1 or columns == 1:
            axes.set_ylabel("exact score")
        if number > len(values) - columns:
            axes.set_xlabel("rank by the proxy")
    figure.tight_layout()
    return figure
