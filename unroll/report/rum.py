"""RUM and its variants as a figure, two tables and a page of Markdown.

    vanilla      one method on the whole forget set
    shuffle      the same method on random parts, one after the other
    rum_f        the same method on parts by memorization
    rum_f_tuned  like rum_f, with hyper-parameters that were tuned for it
    rum          a method for each part, chosen by hand
    rum_auto     a method for each part, chosen on a development forget set

Design: reads the records of an ordinary study, whose methods have these names or begin with them
(`rum_f_salun`, which keeps other reports short); whether refinement helps is said by differences
within training seeds. Rejected: comparing the intervals of two rows; both contain what differs from
seed to seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unroll.calls import format_call, parse_call
from unroll.evaluation.records import NULL, ORIGINAL, RETRAIN, Record
from unroll.evaluation.selector import Selection
from unroll.report.definitions import define
from unroll.report.files import write_atomically
from unroll.report.formatting import format_interval, format_number
from unroll.report.style import COLOURS, FAINT, INK, MUTED, new_figure, plain_axes, section_rows
from unroll.report.summary import Interval, Key, Row, Value, seed_means, t_interval

VANILLA = "vanilla"
VARIANTS = (VANILLA, "shuffle", "rum_f", "rum_f_tuned", "rum", "rum_auto")
_ONE_METHOD = ("shuffle", "rum_f", "rum_f_tuned")
_PANELS: tuple[Key, ...] = tuple(
    (metric, None, oracle) for metric in ("tow", "tow_mia") for oracle in ("twin", "independent")
)
_MARKERS = dict(zip(VARIANTS, ("o", "v", "^", "P", "s", "D"), strict=True))
_REFERENCES = (ORIGINAL, RETRAIN, NULL)
_GUIDE = """\
`vanilla`: one method on the whole forget set; `shuffle`: the same on random parts, one after the
other; `rum_f`: on parts by memorization; `rum_f_tuned`: the same with hyper-parameters that were
tuned for it, where the others have those of the whole set; `rum`: a method for each part, low
first; `rum_auto`: the same, chosen on a development forget set that shares no example with this
one. `original` does nothing, `retrain` is the twin, `retrain_vs_retrain` an independent retrain
judged as if it were unlearned: what a model can be expected to reach against oracles of other
seeds."""
_DIFFERENCES = """\
Differences of ToW within training seeds, with the 95% interval of their mean: above 0 the first is
better. An interval that holds 0 does not tell the two apart."""


def write_rum(
    records: Sequence[Record],
    workdir: Path,
    title: str,
    selection: Selection | None = None,
    notes: Iterable[str] = (),
) -> Path:
    """Writes `rum.md` and `rum.png` into a directory; returns the path of the page.

    Args:
      records: of one study.
      workdir: an existing directory.
      title: of the page.
      selection: what the automatic selector tried.
      notes: sentences to print at the top.

    Raises:
      InputError: if the records belong to several sections.
    """
    figure = rum_figure(records)
    page = rum_page(records, title, selection, notes)
    save_figure(figure, workdir / "rum.png")
    path = workdir / "rum.md"
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def variant_of(row: Row) -> str:
    """One of `VARIANTS`, or the name of a reference row."""
    if row.method in _REFERENCES:
        return row.method
    fits = [name for name in VARIANTS if row.method == name or row.method.startswith(f"{name}_")]
    return max(fits, key=len) if fits and "methods" in row.hyperparameters else VANILLA


def applied(row: Row) -> str:
    """The method of a row, or its methods from the low part to the high one, as text."""
    if row.method in _REFERENCES:
        return ""
    if variant_of(row) == VANILLA:
        return row.label
    methods = row.hyperparameters["methods"]
    return methods if isinstance(methods, str) else ", ".join(methods)


def rum_figure(records: Sequence[Record]) -> Figure:
    """Tug of war with its interval by variant, a panel for each metric and oracle.

    A row that failed for some seeds has no point. Grey is the null row. Intervals end at 0 and 1.
    """
    rows = _ordered(section_rows(records))
    drawn = [row for row in rows if row.method != RETRAIN]
    panels = [key for key in _PANELS if any(isinstance(row.get(*key), Interval) for row in rows)]
    names, bases = _names(drawn), sorted({applied(row) for row in drawn if _is_single(row)})
    figure = new_figure(1.9 + 2.7 * max(len(panels), 1), 1.2 + 0.3 * len(drawn))
    grid = figure.subplots(1, max(len(panels), 1), sharey=True, squeeze=False)[0]
    for axes, key in zip(grid, panels, strict=False):
        null = next((row.get(*key) for row in rows if row.method == NULL), None)
        _draw_null(axes, null)
        for position, row in enumerate(drawn):
            _draw_point(axes, position, row, row.get(*key), bases)
        plain_axes(axes)
        metric, _, oracle = key
        axes.set_title(f"{define(metric).title}, {oracle}", fontsize=10, color=INK)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=FAINT, linewidth=0.5)
        axes.locator_params(axis="x", nbins=4)
    grid[0].set_yticks(range(len(drawn)), [names[row.label] for row in drawn])
    grid[0].set_ylim(len(drawn) - 0.4, -0.6)
    figure.set_layout_engine("constrained")
    return figure


def rum_page(
    records: Sequence[Record],
    title: str,
    selection: Selection | None = None,
    notes: Iterable[str] = (),
) -> str:
    """The page in Markdown."""
    rows = _ordered(section_rows(records))
    section, seeds = rows[0].section, sorted({record.train_seed for record in records})
    lines = [f"# {title}", "", *(f"{note}\n" for note in notes), _GUIDE, ""]
    lines += [f"- Data: {section.dataset}", f"- Model: {section.model}"]
    lines += [f"- Forget set: {section.forget}, {records[0].forget_size} examples"]
    lines += [f"- Training seeds: {', '.join(map(str, seeds))}; 95% Student t intervals", ""]
    lines += ["![rum](rum.png)", "", "## Tug of war", "", *_tow_table(rows), ""]
    broken = [f"- `{row.label}`: {row.get(*_PANELS[0]).note}" for row in rows if _is_broken(row)]
    lines += [*broken, ""] if broken else []
    found = differences(records)
    if found:
        body = [[first, second, format_interval(each, True)] for first, second, each in found]
        table = markdown_table(["first", "second", "ToW, twin"], body, left=2)
        lines += ["## Does refinement help?", "", _DIFFERENCES, "", *table, ""]
    if selection is not None:
        lines += ["## Selection on the development forget set", "", *_selection(selection), ""]
    return "\n".join(lines)


def differences(records: Sequence[Record]) -> list[tuple[str, str, Interval]]:
    """Differences of the tug of war against the twin between variants, within training seeds.

    Of one method: `shuffle` and `rum_f` against `vanilla`, `rum_f` against `shuffle`, `rum_f_tuned`
    against `vanilla` whatever its hyper-parameters; of several:
    `rum` and `rum_auto` against every `vanilla` row. Pairs without a common seed are left out.
    """
    rows = _ordered(section_rows(records))
    names, metric = _names(rows), _PANELS[0]
    values = {}
    for row in rows:
        own = [r for r in records if r.label == row.label and r.at is None]
        own = [r for r in own if (r.metric, r.split, r.oracle) == metric]
        values[row.label] = seed_means(own, lambda record: record.value)
    found = []
    for first in rows:
        for second in rows:
            if _comparable(first, second):
                common = sorted(set(values[first.label]) & set(values[second.label]))
                pairs = [(values[first.label][s], values[second.label][s]) for s in common]
                if pairs:
                    interval = t_interval([one - other for one, other in pairs])
                    found.append((names[first.label], names[second.label], interval))
    return found


def _comparable(first: Row, second: Row) -> bool:
    one, other = variant_of(first), variant_of(second)
    if one in ("rum", "rum_auto"):
        return other == VANILLA
    if one == "rum_f_tuned":
        return other == VANILLA and parse_call(applied(first))[0] == second.method
    pairs = (("shuffle", VANILLA), ("rum_f", VANILLA), ("rum_f", "shuffle"))
    return (one, other) in pairs and applied(first) == applied(second)


def markdown_table(
    header: Sequence[str], body: Sequence[Sequence[str]], left: int = 1
) -> list[str]:
    """Lines of a table whose first columns are text and the others numbers."""
    marks = [" --- "] * left + [" ---: "] * (len(header) - left)
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(marks) + "|"]
    return lines + ["| " + " | ".join(cells) + " |" for cells in body]


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, whole or not at all."""
    write_atomically(
        path, lambda file: figure.savefig(file, format="png", dpi=150, bbox_inches="tight")
    )


def cell(value: Value) -> str:
    """A value of a row as text; a mean of some of the seeds is no value."""
    return format_interval(value) if isinstance(value, Interval) and not value.missing else "n/a"


def _ordered(rows: Sequence[Row]) -> list[Row]:
    """References first, then by method and variant, those with several methods last."""
    singles = list(dict.fromkeys(sorted(applied(row) for row in rows if _is_single(row))))

    def place(row: Row) -> tuple:
        if row.method in _REFERENCES:
            return 0, _REFERENCES.index(row.method), 0, ""
        variant = VARIANTS.index(variant_of(row))
        if _is_single(row):
            return 1, singles.index(applied(row)), variant, row.label
        return 2, variant, 0, row.label

    return sorted(rows, key=place)


def _is_single(row: Row) -> bool:
    if row.method in _REFERENCES:
        return False
    return variant_of(row) == VANILLA or (
        variant_of(row) in _ONE_METHOD and isinstance(row.hyperparameters["methods"], str)
    )


def _names(rows: Sequence[Row]) -> dict[str, str]:
    """Short names by label: variant and methods, with what else tells two rows apart."""
    short = _short_texts({text for row in rows for text in _texts(row)})
    names = {}
    for row in rows:
        variant, texts = variant_of(row), [short[text] for text in _texts(row)]
        names[row.label] = f"{variant}: {', '.join(texts)}" if texts else row.method
    shared = [name for name in names.values() if list(names.values()).count(name) > 1]
    for row in rows:
        if names[row.label] in shared and _scores(row):
            names[row.label] += f" by {_scores(row)}"
    return names


def _short_texts(texts: Iterable[str]) -> dict[str, str]:
    """Methods by their names, and by the hyper-parameters in which those of one name differ."""
    by_head: dict[str, list[tuple[str, dict]]] = {}
    for text in texts:
        head, arguments = parse_call(text)
        by_head.setdefault(head, []).append((text, arguments))
    short = {}
    for head, members in by_head.items():
        for text, own in members:
            pairs = own.items()
            differ = {k: v for k, v in pairs if any(a.get(k) != v for _, a in members)}
            short[text] = format_call(head, differ) if differ else head
    return short


def _scores(row: Row) -> str:
    """What the parts are by, for readers; nothing for rows without parts."""
    return row.hyperparameters.get("scores", "").rpartition(":")[0]


def _texts(row: Row) -> list[str]:
    if row.method in _REFERENCES:
        return []
    methods = row.label if variant_of(row) == VANILLA else row.hyperparameters["methods"]
    return [methods] if isinstance(methods, str) else list(methods)


def _tow_table(rows: Sequence[Row]) -> list[str]:
    keys = [key for key in _PANELS if any(isinstance(row.get(*key), Interval) for row in rows)]
    columns = [f"{define(metric).title}, {oracle}" for metric, _, oracle in keys]
    names = _names(rows)
    header = ["variant", "method", "parts by", *columns, *(f"accuracy, {s}" for s in _SPLITS)]
    header += ["cost (gradients)", "cost (seconds)"]
    body = []
    for row in rows:
        values = [*(row.get(*key) for key in keys), *(row.get("accuracy", s) for s in _SPLITS)]
        values += [row.cost_ratio_gradients, row.cost_ratio_seconds]
        method = names[row.label].partition(": ")[2].partition(" by ")[0]
        body.append([variant_of(row), method, _scores(row), *map(cell, values)])
    texts = dict.fromkeys(text for row in rows for text in _texts(row))
    full = [f"- `{text}`" for text in texts if text != ORIGINAL]
    return [*markdown_table(header, body, left=3), "", "Methods in full:", "", *full]


_SPLITS = ("forget", "retain", "test")


def _is_broken(row: Row) -> bool:
    value = row.get(*_PANELS[0])
    return not isinstance(value, Interval) or bool(value.missing)


def _selection(selection: Selection) -> list[str]:
    body = []
    for trial in selection.trials:
        chosen = tuple(trial.methods) == selection.methods
        value = "n/a" if trial.value is None else format_number(trial.value)
        if trial.note:
            value += f" ({trial.note})"
        texts = ", ".join(f"`{text}`" for text in trial.methods)
        cost = [format_number(trial.example_gradients), format_number(trial.seconds)]
        body.append([str(trial.part or "all"), texts, f"**{value}**" if chosen else value, *cost])
    header = ["part", "methods, low to high", "value", "example gradients", "seconds"]
    return [
        f"Chosen: {', '.join(f'`{text}`' for text in selection.methods)}, after "
        f"{len(selection.trials)} trials of {format_number(selection.example_gradients)} example "
        f"gradients and {format_number(selection.seconds)} seconds in all. The value of a part is "
        "the tug of war with the parts up to it as the forgotten split; bold is the final choice.",
        "",
        *markdown_table(header, body, left=2),
    ]


def _draw_null(axes: Axes, null: Value | None) -> None:
    if isinstance(null, Interval) and null.low is not None:
        axes.axvspan(
            max(null.low, 0.0), min(null.high, 1.0), color=FAINT, alpha=0.6, lw=0, zorder=0
        )


def _draw_point(axes: Axes, position: int, row: Row, value: Value, bases: Sequence[str]) -> None:
    if not isinstance(value, Interval) or value.missing:
        axes.text(
            0.5, position, "n/a", transform=axes.get_yaxis_transform(), fontsize=8, color=MUTED,
            ha="center", va="center",
        )  # fmt: skip
        return
    colour = INK
    if row.method in _REFERENCES:
        colour = MUTED
    elif applied(row) in bases:
        colour = COLOURS[bases.index(applied(row)) % len(COLOURS)]
    if value.low is not None:
        # The tug of war lies between 0 and 1; Student's interval of two or three seeds need not.
        ends = [max(value.low, 0.0), min(value.high, 1.0)]
        axes.plot(ends, [position] * 2, color=colour, lw=1.5, zorder=3)
    axes.plot(
        [value.mean],
        [position],
        ls="",
        marker=_MARKERS.get(variant_of(row), "X"),
        color=colour,
        markersize=6,
        markeredgecolor="white",
        markeredgewidth=0.6,
        zorder=4,
        gid=f"point {row.label}",
    )
