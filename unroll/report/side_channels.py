"""Side channels of deletions as a page of Markdown and a figure: what work tells about a request.

Design: what is counted and what is measured stand in tables of their own, since the first is exact
and the second depends on the machine and on who else uses it. Rejected: one score for a channel;
whether it tells the slice or the size of a request is the point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unroll.deletion.side_channels import Leak, estimated_leak
from unroll.errors import InputError
from unroll.report.files import write_atomically
from unroll.report.formatting import format_interval, format_number
from unroll.report.rum import markdown_table, save_figure
from unroll.report.style import COLOURS, FAINT, INK, MUTED, new_figure, plain_axes
from unroll.report.summary import group_by, t_interval

ONE, TWO, NONE = "one", "two", "none"
SECRETS = {
    "slice of the example": (ONE,),
    "two examples of different shards": (TWO,),
    "an example was there": (NONE, ONE),
    "two examples, not one": (ONE, TWO),
}
"""The kinds of requests that each secret tells apart, or is about."""
_GUIDE = """\
Somebody sees one quantity of a deletion and guesses a secret. `chance`: accuracy without looking.
`AUC`: probability that the quantity is larger where the secret is true; 0.5 tells nothing. `bits`:
mutual information, of as many as the secret has. Means over seeds with half the width of their 95%
Student t intervals."""
_COUNTED = """\
Over all requests that are possible, uniformly likely, by one who knows plan and assignment; these
are no estimates, and the intervals are over assignments. Where two kinds of requests are told apart
each is as likely as the other. Bytes written are a multiple of the states."""
_MEASURED = """\
From a sample of requests to one system per seed. Accuracy: a decision tree, cross-validated. Bits:
bins of equal counts, the bias taken off by the jackknife, so below 0 at times. `bits of nothing`:
the 95th percentile of the same estimate with shuffled secrets. Times depend on the machine and on
what else it does; compilation is not counted, which in sequential mode tells a stage of a length
that is new to the process."""


@dataclasses.dataclass(frozen=True)
class Observation:
    """A row of `observations.jsonl`: one deletion as somebody sees it who watches.

    Attributes:
      dataset, model: names.
      way: how it was served.
      seed: of the system.
      kind: `one`, `two`, or `none` for a request of an example that is not there.
      slice: the first slice of the request; `None` without examples.
      shards: number of shards that it hits.
      example_gradients: as the deletion reports them.
      states: entries that the store has got.
      bytes: on disk, of those entries.
      seconds: of the whole deletion, compilation not counted.
      seconds_with_compilation: as a clock on the wall sees it.
    """

    dataset: str
    model: str
    way: str
    seed: int
    kind: str
    slice: int | None
    shards: int
    example_gradients: int
    states: int
    bytes: int
    seconds: float
    seconds_with_compilation: float

    @property
    def cell(self) -> tuple[str, int]:
        """What is measured together."""
        return self.way, self.seed


@dataclasses.dataclass(frozen=True)
class Counted:
    """A row of `counted.jsonl`: what a counted quantity tells, over all possible requests.

    Attributes:
      way: how the requests are served.
      seed: of the assignment.
      secret: one of `SECRETS`.
      quantity: name.
      chance, accuracy, auc, entropy, bits: as in `Leak`.
      mean: of the quantity over the requests for one example.
    """

    way: str
    seed: int
    secret: str
    quantity: str
    chance: float
    accuracy: float
    auc: float | None
    entropy: float
    bits: float
    mean: float


def secret_of(secret: str, row: Observation) -> int:
    """The value of a secret."""
    if secret == "slice of the example":
        return row.slice
    if secret == "two examples of different shards":
        return int(row.shards > 1)
    return SECRETS[secret].index(row.kind)


def write_side_channels(
    rows: Sequence[Observation], counted: Sequence[Counted], workdir: Path, title: str
) -> Path:
    """Writes `side_channels.md` and `side_channels.png`; returns the path of the page.

    Args:
      rows: of one data set and model.
      counted: of the same systems.
      workdir: an existing directory.
      title: of the page.

    Raises:
      InputError: if there is no row.
    """
    save_figure(side_channel_figure(rows), workdir / "side_channels.png")
    path = workdir / "side_channels.md"
    page = _page(rows, counted, title)
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def side_channel_figure(rows: Sequence[Observation]) -> Figure:
    """Gradients and seconds of requests for one example against its slice, for each way.

    Raises:
      InputError: if there is no row.
    """
    single = [row for row in rows if row.kind == ONE]
    if not single:
        raise InputError("there are no deletions to draw; run the experiment first")
    ways = list(group_by(single, lambda row: row.way))
    figure = new_figure(10.5, 3.6)
    left, right = figure.subplots(1, 2)
    for number, way in enumerate(ways):
        own = [row for row in single if row.way == way]
        place = (number - (len(ways) - 1) / 2) * 0.8 / len(ways)
        style = dict(color=COLOURS[number % len(COLOURS)], label=way)
        _draw(left, own, place, lambda row: row.example_gradients, **style)
        _draw(right, own, place, lambda row: row.seconds, **style)
    for axes, name in ((left, "example gradients"), (right, "seconds without compilation")):
        plain_axes(axes)
        axes.set_yscale("log")
        axes.tick_params(which="minor", colors=MUTED)
        axes.set_xticks(sorted({row.slice for row in single}))
        axes.set_xlabel("slice of the deleted example (0 is trained first)")
        axes.set_ylabel(name, color=INK)
        axes.grid(axis="y", color=FAINT, linewidth=0.5)
    figure.legend(
        *left.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(ways),
        fontsize=8,
        frameon=False,
    )
    figure.set_layout_engine("constrained")
    return figure


def _draw(axes: Axes, rows, place: float, number: Callable, *, color: str, label: str) -> None:
    groups = group_by(rows, lambda row: row.slice)
    for part, own in sorted(groups.items()):
        values = [number(row) for row in own]
        axes.plot(
            [part + place] * len(own), values, ls="", marker=".", ms=3, color=color, alpha=0.35
        )
        axes.plot(
            part + place,
            np.median(values),
            ls="",
            marker="_",
            ms=12,
            color=color,
            label=label if part == min(groups) else None,
        )


def _page(rows: Sequence[Observation], counted: Sequence[Counted], title: str) -> str:
    seeds = sorted({row.seed for row in rows})
    lines = [f"# {title}", "", f"- Data: {rows[0].dataset}", f"- Model: {rows[0].model}"]
    lines += [f"- Seeds: {', '.join(map(str, seeds))}", "", _GUIDE, ""]
    lines += ["![gradients and seconds](side_channels.png)", "", "## What is counted", ""]
    header = ["secret", "way", "quantity", "chance", "accuracy", "AUC", "bits", "of"]
    lines += [_COUNTED, "", *markdown_table(header, _counted_table(counted), left=3), ""]
    lines += ["## What is measured", "", _MEASURED, ""]
    header = [*header[:3], "requests", *header[3:], "bits of nothing"]
    lines += [*markdown_table(header, _measured_table(rows), left=3), ""]
    header = ["way", "requests for one example", "gradients", "states", "seconds"]
    lines += ["## What it costs", "", *markdown_table(header, _costs(rows, counted), left=1), ""]
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    return format_interval(t_interval(list(values)))


def _counted_table(counted: Sequence[Counted]) -> list[list[str]]:
    body = []
    groups = group_by(counted, lambda row: (row.secret, row.way, row.quantity))
    for name, own in groups.items():
        auc = "" if own[0].auc is None else _mean([row.auc for row in own])
        body.append(
            [
                *name,
                _mean([row.chance for row in own]),
                _mean([row.accuracy for row in own]),
                auc,
                _mean([row.bits for row in own]),
                _mean([row.entropy for row in own]),
            ]
        )
    return body


_QUANTITIES = {
    "seconds": lambda row: row.seconds,
    "bytes on disk": lambda row: row.bytes,
}


def _measured_table(rows: Sequence[Observation]) -> list[list[str]]:
    body = []
    for secret, kinds in SECRETS.items():
        about = [row for row in rows if row.kind in kinds]
        for way, own in group_by(about, lambda row: row.way).items():
            for quantity, number in _QUANTITIES.items():
                cells = group_by(own, lambda row: row.seed).values()
                leaks = [_leak(secret, cell, number) for cell in cells]
                body.append([secret, way, quantity, *_cells(leaks)])
    return body


def _leak(secret: str, rows: Sequence[Observation], number: Callable) -> Leak:
    secrets = np.array([secret_of(secret, row) for row in rows])
    folds = min(5, int(np.unique(secrets, return_counts=True)[1].min()))
    return estimated_leak(np.array([number(row) for row in rows]), secrets, folds=folds)


def _cells(leaks: Sequence[Leak]) -> list[str]:
    auc = "" if leaks[0].auc is None else _mean([leak.auc.value for leak in leaks])
    return [
        str(sum(leak.requests for leak in leaks)),
        _mean([leak.chance for leak in leaks]),
        _mean([leak.accuracy.value for leak in leaks]),
        auc,
        _mean([leak.bits.value for leak in leaks]),
        format_number(leaks[0].entropy),
        _mean([leak.bits_of_nothing for leak in leaks]),
    ]


def _costs(rows: Sequence[Observation], counted: Sequence[Counted]) -> list[list[str]]:
    body = []
    for way, own in group_by(rows, lambda row: row.way).items():
        own = [row for row in own if row.kind == ONE]
        seeds = list(group_by(own, lambda row: row.seed).values())
        kind = way.split(",")[0]
        exact = [
            row.mean
            for row in counted
            if (row.way, row.quantity, row.secret) == (kind, "gradients", next(iter(SECRETS)))
        ]
        body.append(
            [
                way,
                str(len(own)),
                _mean(exact),
                _mean([float(np.mean([row.states for row in seed])) for seed in seeds]),
                _mean([float(np.median([row.seconds for row in seed])) for seed in seeds]),
            ]
        )
    return body
