"""SISA against S and R: accuracy, storage, and the cost of a request, measured and expected.

Design: theory is drawn as lines and simulation as points over them, so that a reader sees where
they part. Rejected: one panel for all streams, in which uniform and exponential requests hide each
other: to a random assignment they cost the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator

from unroll.deletion.tradeoff import CostRow, SisaRow
from unroll.errors import InputError
from unroll.metrics.tow import tow
from unroll.report.files import write_atomically
from unroll.report.formatting import format_interval, format_number
from unroll.report.rum import markdown_table, save_figure
from unroll.report.style import COLOURS, FAINT, INK, new_figure, plain_axes
from unroll.report.summary import group_by, t_interval

_MARKERS = ("o", "s", "^", "D", "v", "p")
_AWARE_MARKERS = {"aware_requests": "x", "aware_cost": "*", "aware_size": "+"}
_STREAMS = ("uniform", "exponential", "adversarial")
_GUIDE = """\
S shards of R slices; the epochs of all stages together take as many gradients as the single model's
(S = R = 1), whose deletion is retraining. Means over training seeds with half the width of their
95% Student t intervals. `exact`: in how many of the runs the system after the deletions has the
bits of one trained from scratch without the forget set. ToW is the tug of war of the accuracies
after the deletions: against that system from scratch, which is 1 where the bits are equal, and
against the single model retrained. One request: the gradients of the first deletion, as a share of
retraining the single model."""
_COSTS = """\
Example gradients per request as a share of training the single model again for each batch. Theory
assumes a random assignment; `aware` assignments know the probabilities of the exponential stream
and put the likely deletions together (by equal expected requests, least cost, or equal sizes)."""


def write_sisa(
    rows: Sequence[SisaRow], costs: Sequence[CostRow], workdir: Path, title: str
) -> Path:
    """Writes `sisa.md` and `sisa.png` into a directory; returns the page's path.

    Args:
      rows: measurements; those of S = R = 1 among them give the single model.
      costs: simulations.
      workdir: an existing directory.
      title: of the page.

    Raises:
      InputError: if there are no rows.
    """
    if not rows or not costs:
        raise InputError("no rows of a SISA system; run the experiment first")
    save_figure(sisa_figure(rows, costs), workdir / "sisa.png")
    page = _page(rows, costs, title)
    path = workdir / "sisa.md"
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def sisa_figure(rows: Sequence[SisaRow], costs: Sequence[CostRow]) -> Figure:
    """Test accuracy and storage against S, and the relative cost of a request for each stream."""
    batches = sorted({row.batch for row in costs})
    figure = new_figure(15, 3.2 * len(batches))
    panels = figure.subplots(len(batches), 5, squeeze=False)
    slices = sorted({row.slices for row in [*rows, *costs]})
    good = [row for row in rows if row.note is None]
    _draw_accuracy(panels[0, 0], good, slices)
    _draw_storage(panels[0, 1], good, slices)
    for axes in panels[1:, :2].flat:
        axes.set_axis_off()
    for line, batch in zip(panels, batches, strict=True):
        for axes, stream in zip(line[2:], _STREAMS, strict=True):
            own = [row for row in costs if (row.batch, row.stream) == (batch, stream)]
            _draw_costs(axes, own, slices)
            many = "one request" if batch == 1 else f"{batch} requests at once"
            axes.set_title(f"{stream}, {many}", fontsize=10, color=INK)
        line[2].set_ylabel("cost per request, of retraining")
        lowest, highest = zip(*(axes.get_ylim() for axes in line[2:]), strict=True)
        for axes in line[2:]:
            axes.set_ylim(min(lowest), max(highest))
    handles, labels = [], []
    for axes in (panels[0, 0], panels[0, 3], panels[0, 2]):
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.set_layout_engine("constrained")
    return figure


def _axes_over_shards(axes: Axes, shards: Sequence[int]) -> None:
    plain_axes(axes)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(set(shards)), [str(count) for count in sorted(set(shards))])
    axes.minorticks_off()
    axes.set_xlabel("shards S")
    axes.grid(axis="y", color=FAINT, linewidth=0.5)


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))


def _draw_accuracy(axes: Axes, rows: Sequence[SisaRow], slices: Sequence[int]) -> None:
    styles = {name: style for name, style in zip(_names(rows), ("-", "--", ":"), strict=False)}
    for number, count in enumerate(slices):
        for aggregation, style in styles.items():
            own = [r for r in rows if (r.slices, r.aggregation) == (count, aggregation)]
            groups = group_by(own, lambda row: row.shards)
            if not groups:
                continue
            found = [t_interval([row.after["test"] for row in group]) for group in groups.values()]
            axes.errorbar(
                list(groups),
                [each.mean for each in found],
                yerr=[each.half_width or 0.0 for each in found],
                color=COLOURS[number % len(COLOURS)],
                linestyle=style,
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=4,
                linewidth=1.2,
                capsize=2,
                label=f"R = {count}, {aggregation.replace('_', ' ')}",
            )
    _axes_over_shards(axes, [row.shards for row in rows] or [1])
    axes.set_title("test accuracy after deletion", fontsize=10, color=INK)


def _draw_storage(axes: Axes, rows: Sequence[SisaRow], slices: Sequence[int]) -> None:
    for number, count in enumerate(slices):
        sizes = {row.shards: row.state_bytes / 2**20 for row in rows if row.slices == count}
        places = sorted(sizes)
        axes.plot(
            places,
            [sizes[place] for place in places],
            color=COLOURS[number % len(COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4,
            linewidth=1.2,
        )
    _logarithmic(axes)
    _axes_over_shards(axes, [row.shards for row in rows] or [1])
    axes.set_title("stored states, MiB", fontsize=10, color=INK)


def _draw_costs(axes: Axes, rows: Sequence[CostRow], slices: Sequence[int]) -> None:
    for number, count in enumerate(slices):
        for assignment in dict.fromkeys(row.assignment for row in rows):
            own = [r for r in rows if (r.slices, r.assignment) == (count, assignment)]
            own = sorted(own, key=lambda row: row.shards)
            colour = COLOURS[number % len(COLOURS)]
            places = [row.shards for row in own]
            random = assignment == "random"
            if random:
                theory = [row.expected / row.single for row in own]
                axes.plot(places, theory, color=colour, linewidth=1.2, label=f"R = {count}, theory")
            axes.errorbar(
                places,
                [row.simulated / row.single for row in own],
                yerr=[2 * row.standard_error / row.single for row in own],
                color=colour,
                linestyle="" if random else ":",
                marker=_MARKERS[number % len(_MARKERS)] if random else _AWARE_MARKERS[assignment],
                markersize=4 if random else 6,
                linewidth=0.9,
                capsize=2,
                label=f"R = {count}, {'simulated' if random else _assignment_text(assignment)}",
            )
    _logarithmic(axes)
    _axes_over_shards(axes, [row.shards for row in rows] or [1])


def _assignment_text(assignment: str) -> str:
    return assignment.replace("_", " by ")


def _names(rows: Sequence[SisaRow]) -> list[str]:
    return list(dict.fromkeys(row.aggregation for row in rows))


def _page(rows: Sequence[SisaRow], costs: Sequence[CostRow], title: str) -> str:
    first = rows[0]
    seeds = sorted({row.seed for row in rows})
    lines = [f"# {title}", "", _GUIDE, "", f"- Data: {first.dataset}", f"- Model: {first.model}"]
    lines += [f"- Forget set: {first.forget}", f"- Seeds: {', '.join(map(str, seeds))}", ""]
    lines += ["![sisa](sisa.png)", "", "## Accuracy, storage, measured cost", ""]
    header = ["S", "R", "aggregation", "forget, before", "forget, after", "retain", "test, before"]
    header += ["test, after", "exact", "ToW, scratch", "ToW, single", "MiB", "one request"]
    lines += [*markdown_table(header, _table(rows), left=3), ""]
    broken = [row for row in rows if row.note is not None]
    lines += [f"- S={row.shards}, R={row.slices}, seed {row.seed}: {row.note}" for row in broken]
    header = ["stream", "assignment", "S", "R", "at once", "requests", "simulated", "theory"]
    body = [
        [row.stream, _assignment_text(row.assignment), str(row.shards), str(row.slices)]
        + [str(row.batch), str(row.requests)]
        + [
            f"{format_number(row.simulated / row.single)} "
            f"(s.e. {format_number(row.standard_error / row.single)})",
            "n/a" if row.expected is None else format_number(row.expected / row.single),
        ]
        for row in costs
    ]
    lines += ["", "## Expected cost of a request", "", _COSTS, ""]
    lines += [*markdown_table(header, body, left=2), ""]
    return "\n".join(lines)


def _table(rows: Sequence[SisaRow]) -> list[list[str]]:
    single = {
        (row.seed, row.aggregation): row.after for row in rows if (row.shards, row.slices) == (1, 1)
    }
    body = []
    groups = group_by(rows, lambda row: (row.shards, row.slices, row.aggregation))
    for (shards, slices, aggregation), own in groups.items():
        name = [str(shards), str(slices), aggregation]
        if any(row.note is not None for row in own):
            body.append([*name, *["n/a"] * 10])
            continue

        def mean(number, own=own):
            return format_interval(t_interval([number(row) for row in own]))

        # A single model has one constituent, whose vote is its mean.
        others = [single.get((row.seed, row.aggregation)) for row in own]
        tows = [tow(row.after, other) for row, other in zip(own, others, strict=True) if other]
        body.append(
            [
                *name,
                mean(lambda row: row.before["forget"]),
                mean(lambda row: row.after["forget"]),
                mean(lambda row: row.after["retain"]),
                mean(lambda row: row.before["test"]),
                mean(lambda row: row.after["test"]),
                f"{sum(row.exact for row in own)}/{len(own)}",
                mean(lambda row: tow(row.after, row.scratch)),
                format_interval(t_interval(tows)) if len(tows) == len(own) else "n/a",
                format_number(own[0].state_bytes / 2**20),
                mean(lambda row: row.request_gradients / row.single_gradients),
            ]
        )
    return body
