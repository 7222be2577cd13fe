"""Penalties as tables and figures: accuracy lost against verification error gained.

Every verification error stands beside the no-unlearning distance; every mean has Student's interval
over training seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from unroll.calls import parse_call
from unroll.evaluation.penalties import NONE, Outcome, match_accuracy
from unroll.evaluation.privacy import ORIGINAL, RETRAINED, RiskRow, gap_correlations
from unroll.metrics.correlation import Correlation, pearson, spearman
from unroll.report.files import write_atomically
from unroll.report.formatting import format_interval, format_number
from unroll.report.style import COLOURS, INK, MUTED, new_figure, plain_axes
from unroll.report.summary import Interval, group_by, ratio_interval, t_interval

_MARKERS = ("o", "s", "^", "D", "v")
_ALL = "all models"


def write_penalties(rows: Sequence[Outcome], workdir: Path, title: str) -> Path:
    """Writes `penalties.md`, `absolute.png` and `relative.png`; returns the path of the page."""
    for relative, name in ((False, "absolute"), (True, "relative")):
        _save(trade_off_figure(rows, relative), workdir / f"{name}.png")
    lines = [
        f"# {title}",
        "",
        "Means over training seeds and half the width of their 95% intervals. sigma: largest "
        "|eigenvalue| of the Hessian of the loss without penalty at w_t; `training sigma`: of the "
        "loss that was trained (without the singular-value penalty). D: distance travelled. "
        "`none`: distance to the retrained model without unlearning. VE: verification error; "
        "relative: divided by `none` (1 = did nothing, 0 = the retrained model).",
        "",
        "![accuracy lost against verification error](absolute.png)",
        "",
        "![accuracy lost against relative verification error](relative.png)",
        "",
    ]
    for (dataset, model, forget), members in _recipes(rows).items():
        lines += [f"## {model}", "", f"{dataset}, forgetting {forget}", ""]
        for horizon, part in group_by(members, lambda row: row.horizon).items():
            lines += _horizon_section(horizon, part)
    path = workdir / "penalties.md"
    write_atomically(path, lambda file: file.write("\n".join(lines).encode()))
    return path


def write_privacy(rows: Sequence[RiskRow], workdir: Path, title: str) -> Path:
    """Writes `privacy.md` and `privacy.png`; returns the path of the page."""
    _save(privacy_figure(rows), workdir / "privacy.png")
    lines = [
        f"# {title}",
        "",
        "Mean privacy risk score of the forget set, by histograms per class of a shadow model: "
        "original and retrained model, and for each method the gap to the retrained model with its "
        "verification error (VE). Means over training seeds and half the width of their 95% "
        "intervals.",
        "",
        "![gap of the privacy risk score against verification error](privacy.png)",
        "",
    ]
    for (dataset, model, forget), members in _recipes(rows).items():
        lines += [f"## {model}", "", f"{dataset}, forgetting {forget}", ""]
        for horizon, part in group_by(members, lambda row: row.horizon).items():
            lines += [f"### {horizon}", "", *_risk_table(part), "", *_risk_correlations(part), ""]
    path = workdir / "privacy.md"
    write_atomically(path, lambda file: file.write("\n".join(lines).encode()))
    return path


def _save(figure: Figure, path: Path) -> None:
    write_atomically(
        path, lambda file: figure.savefig(file, format="png", dpi=150, bbox_inches="tight")
    )


def _recipes(rows):
    return group_by(rows, lambda row: (row.dataset, row.model, row.forget))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = "| :--- |" + " ---: |" * (len(header) - 1)
    return ["| " + " | ".join(line) + " |" for line in [header]] + [
        rule,
        *("| " + " | ".join(line) + " |" for line in rows),
    ]


def _mean(rows: Sequence, number: Callable) -> str:
    values = [number(row) for row in rows]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return f"missing in {len(values) - len(known)} of {len(values)}"
    return format_interval(t_interval(known))


def _horizon_section(horizon: str, rows: Sequence[Outcome]) -> list[str]:
    known = [row for row in rows if row.errors]
    if not known:
        return [f"### {horizon}", "", "every run diverged", ""]
    methods = list(known[0].errors)
    header = ["penalty", "strength", "accuracy", "sigma", "training sigma", "eta t sigma", "D"]
    header += ["none", *(f"VE {name}" for name in methods)]
    header += [*(f"relative {name}" for name in methods), "step cost"]
    numbers = [
        lambda row: row.accuracy,
        lambda row: row.sigma,
        lambda row: row.training_sigma,
        lambda row: row.eta_t_sigma,
        lambda row: row.displacement,
        lambda row: row.no_unlearning,
        *(lambda row, name=name: row.errors.get(name) for name in methods),
        *(lambda row, name=name: row.relative_error(name) for name in methods),
        lambda row: row.step_cost,
    ]
    settings = group_by(rows, lambda row: (row.penalty, row.strength))
    body = [
        [penalty, f"{strength:g}", *(_mean(members, number) for number in numbers)]
        for (penalty, strength), members in settings.items()
    ]
    steps = f"{known[0].steps} steps, {known[0].forget_size} examples forgotten"
    lines = [f"### {horizon}", "", steps, "", *_table(header, body), ""]
    lines += _matched_section(rows, methods)
    if known[0].proxies:
        lines += _proxy_section(known, methods)
    notes = dict.fromkeys(row.note for row in rows if row.note)
    return [*lines, *(f"Note: {note}" for note in notes), *([""] if notes else [])]


def tolerance(rows: Sequence[Outcome]) -> float:
    """Half the width of the interval of the accuracy without penalty; 0 with a single seed."""
    bare = [row.accuracy for row in rows if row.penalty == NONE and row.accuracy is not None]
    return (t_interval(bare).half_width or 0.0) if bare else 0.0


def _matched_section(rows: Sequence[Outcome], methods: Sequence[str]) -> list[str]:
    allowed = tolerance(rows)
    bare = {row.seed for row in rows if row.penalty == NONE and row.accuracy is not None}
    if not bare:
        return []
    matched = match_accuracy([row for row in rows if row.seed in bare], allowed)
    if not matched:
        return []
    names = ["sigma", "displacement", "no_unlearning", *methods]
    names += [f"relative {name}" for name in methods]
    body = []
    for found in matched:
        strength = f"{found.strength:.2g}" + ("" if found.reached else " (strongest)*")
        body.append(
            [
                found.penalty,
                strength,
                format_interval(t_interval(found.accuracy_loss), signed=True),
                *(_ratio(found.ratios.get(name)) for name in names),
            ]
        )
    return [
        f"At equal accuracy: the strength that costs {allowed:.3f}, half the width of the interval "
        "without penalty. A penalty marked * never costs as much and is taken at its strongest: "
        "its accuracy is *not* equal. Ratios to no penalty, seed by seed, below 1 is better: "
        "geometric means with the 95% interval that Student's t gives for the logarithms.",
        "",
        *_table(["penalty", "strength", "accuracy lost", *names], body),
        "",
    ]


def _ratio(ratios: Sequence[float] | None) -> str:
    if not ratios:
        return "-"
    zeros = sum(ratio <= 0 for ratio in ratios)
    if zeros:
        return f"0 in {zeros} of {len(ratios)}"
    return _format_ratio(ratio_interval(ratios))


def _format_ratio(found: Interval) -> str:
    """`0.67 [0.63, 0.71]`: an interval of a ratio is not symmetric."""
    if found.low is None:
        return f"{format_number(found.mean)} (1 seed)"
    return f"{_digits(found.mean)} [{_digits(found.low)}, {_digits(found.high)}]"


def _digits(value: float) -> str:
    """Two significant digits."""
    if 1e-3 <= value < 100:
        return f"{value:#.2g}".removesuffix(".")
    return format_number(float(f"{value:.2g}"))


def _proxy_section(rows: Sequence[Outcome], methods: Sequence[str]) -> list[str]:
    columns = {name: [row.proxies[name] for row in rows] for name in rows[0].proxies}
    columns |= {
        "D alone": [row.displacement for row in rows],
        "eta t sigma": [row.eta_t_sigma for row in rows],
        "no-unlearning distance": [row.no_unlearning for row in rows],
    }
    body = []
    for method in methods:
        kept = [i for i, row in enumerate(rows) if row.errors.get(method) is not None]
        errors = [rows[i].errors[method] for i in kept]
        for name, values in columns.items():
            pair = [values[i] for i in kept], errors
            body.append([method, name, _correlation(pearson(*pair)), _correlation(spearman(*pair))])
    return [
        f"Correlation with the verification error over penalties and seeds at a fixed number of "
        f"steps ({len(rows)} runs; those of one seed are not independent, so the intervals are "
        "too narrow):",
        "",
        *_table(["method", "proxy", "Pearson", "Spearman"], body),
        "",
    ]


def _correlation(found: Correlation) -> str:
    if found.value is None:
        return found.note
    if found.low is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _risk_table(rows: Sequence[RiskRow]) -> list[str]:
    methods = [name for name in dict.fromkeys(row.method for row in rows) if name != RETRAINED]
    header = ["penalty", "strength", "accuracy", "risk original", "risk retrained", "none"]
    for name in methods:
        header += [f"gap {name}"] + ([f"VE {name}"] if name != ORIGINAL else [])
    body = []
    for (penalty, strength), members in group_by(
        rows, lambda row: (row.penalty, row.strength)
    ).items():
        of = group_by(members, lambda row: row.method)
        line = [penalty, f"{strength:g}", _mean(of[ORIGINAL], lambda row: row.accuracy)]
        line += [_mean(of[name], lambda row: row.risk) for name in (ORIGINAL, RETRAINED)]
        line.append(_mean(of[ORIGINAL], lambda row: row.no_unlearning))
        for name in methods:
            line.append(_mean(of[name], lambda row: row.gap))
            if name != ORIGINAL:
                line.append(_mean(of[name], lambda row: row.verification_error))
        body.append(line)
    return _table(header, body)


def _risk_correlations(rows: Sequence[RiskRow]) -> list[str]:
    judged = [row for row in rows if row.method != RETRAINED]
    groups = {_ALL: judged, **group_by(judged, lambda row: row.method)}
    body = []
    for name, members in groups.items():
        for measure, pair in gap_correlations(members).items():
            # The models of one run are no repetitions, whose interval would be that of n runs.
            shown = [
                dataclasses.replace(c, low=None, high=None) if name == _ALL else c for c in pair
            ]
            count = str(pair[0].count)
            body.append([name, measure.replace("_", " "), count, *map(_correlation, shown)])
    count = len({(row.penalty, row.strength, row.seed) for row in judged})
    return [
        f"Correlation of |gap| with each measure over penalties and seeds ({count} runs; those of "
        "one seed are not independent, so the intervals are too narrow; the models of one run "
        f"share it, so {_ALL} together have no interval). `no unlearning` is the baseline: "
        "the distance of doing nothing, which knows nothing of the method.",
        "",
        *_table(["models", "measure", "n", "Pearson", "Spearman"], body),
    ]


def trade_off_figure(rows: Sequence[Outcome], relative: bool) -> Figure:
    """Accuracy lost against verification error: a panel per horizon and method, a line per penalty.

    Args:
      rows: all rows; a line of panels per recipe.
      relative: relative verification error; otherwise the ratio of the verification error to that
        without penalty, seed by seed.
    """
    recipes = _recipes(rows)
    panels = list(
        dict.fromkeys((row.horizon, name) for row in rows if row.errors for name in row.errors)
    )
    penalties = [name for name in dict.fromkeys(row.penalty for row in rows) if name != NONE]
    figure = new_figure(3.4 * max(len(panels), 1), 3.1 * len(recipes))
    for line, ((_, model, _), members) in enumerate(recipes.items()):
        for column, (horizon, method) in enumerate(panels):
            axes = figure.add_subplot(len(recipes), len(panels), line * len(panels) + column + 1)
            part = [row for row in members if row.horizon == horizon]
            _trade_off_panel(axes, part, method, penalties, relative)
            axes.set_title(f"{horizon}, {method}", fontsize=9, color=INK)
            if column == 0:
                name = parse_call(model)[0]
                axes.set_ylabel(f"{name}: accuracy lost" if len(recipes) > 1 else "accuracy lost")
            axes.set_xlabel(
                "relative verification error" if relative else "VE over VE without penalty"
            )
    figure.tight_layout()
    handles = {
        handle.get_label(): handle
        for axes in figure.axes
        for handle in axes.get_legend_handles_labels()[0]
    }
    if handles:  # none where every run diverged, or no penalty was asked for
        figure.legend(
            handles=list(handles.values()),
            labels=list(handles),
            ncols=5,
            loc="upper center",
            bbox_to_anchor=(0.5, 0),
            frameon=False,
            fontsize=9,
        )
    return figure


def _trade_off_panel(
    axes: Axes, rows: Sequence[Outcome], method: str, penalties: Sequence[str], relative: bool
) -> None:
    plain_axes(axes)
    axes.set_xscale("log")
    axes.axhline(0, color=MUTED, lw=0.8, zorder=0)
    axes.axvline(1, color=MUTED, lw=0.8, zorder=0)
    allowed = tolerance(rows)
    axes.axhspan(-allowed, allowed, color=MUTED, alpha=0.12, lw=0)
    bare = {row.seed: row for row in rows if row.penalty == NONE}

    def point(members):
        """Mean and half width of both coordinates, `None` where a seed is missing."""
        pairs = [(row, bare.get(row.seed)) for row in members]
        if any(
            not base or not base.errors.get(method) or not row.errors.get(method)
            for row, base in pairs
        ):
            return None
        lost = [base.accuracy - row.accuracy for row, base in pairs]
        errors = [
            row.relative_error(method) if relative else row.errors[method] / base.errors[method]
            for row, base in pairs
        ]
        # On a logarithmic axis the interval is that of the logarithms.
        return t_interval(np.log(errors)), t_interval(lost)

    origin = point(list(bare.values()))
    shown = []
    for index, penalty in enumerate(penalties):
        settings = group_by((r for r in rows if r.penalty == penalty), lambda row: row.strength)
        points = [origin, *(point(members) for _, members in sorted(settings.items()))]
        points = [found for found in points if found is not None]
        if not points:
            continue
        x = np.exp([error.mean for error, _ in points])
        shown += zip(x, (lost.mean for _, lost in points), strict=True)
        axes.errorbar(
            x,
            [lost.mean for _, lost in points],
            xerr=[
                x * (1 - np.exp([-(error.half_width or 0) for error, _ in points])),
                x * (np.exp([error.half_width or 0 for error, _ in points]) - 1),
            ],
            color=COLOURS[index % len(COLOURS)],
            marker=_MARKERS[index % len(_MARKERS)],
            ms=4,
            lw=1.3,
            elinewidth=0.6,
            label=penalty,
        )
    _show_means(axes, shown)


def _show_means(axes: Axes, shown: Sequence[tuple[float, float]]) -> None:
    """Limits that hold every mean; the intervals of few seeds may run out of the panel."""
    if not shown:
        return
    errors, lost = np.array(shown).T
    low, high = min(0.4, errors.min() / 1.6), max(2.5, errors.max() * 1.6)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 50 else (1,)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    margin = max(0.25 * np.ptp(lost), 0.01)
    axes.set_ylim(lost.min() - margin, lost.max() + margin)


def privacy_figure(rows: Sequence[RiskRow]) -> Figure:
    """|gap| of the privacy risk score against the verification error, a panel per horizon."""
    horizons = list(dict.fromkeys(row.horizon for row in rows))
    methods = [name for name in dict.fromkeys(row.method for row in rows) if name != RETRAINED]
    figure = new_figure(4.6 * len(horizons), 3.6)
    for column, horizon in enumerate(horizons, start=1):
        axes = figure.add_subplot(1, len(horizons), column)
        plain_axes(axes)
        axes.set_xscale("log")
        for index, method in enumerate(methods):
            members = [
                row
                for row in rows
                if row.horizon == horizon and row.method == method and row.gap is not None
            ]
            axes.scatter(
                [row.verification_error for row in members],
                [abs(row.gap) for row in members],
                s=16,
                lw=0,
                alpha=0.75,
                color=COLOURS[index % len(COLOURS)],
                marker=_MARKERS[index % len(_MARKERS)],
                label=method,
            )
        axes.set_title(horizon, fontsize=9, color=INK)
        axes.set_xlabel("verification error")
        if column == 1:
            axes.set_ylabel("|gap| of the privacy risk score")
            axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure
