"""Rows to tables of text that Markdown, HTML and the terminal share.

A table carries everything a reader needs to judge it: the definition, the target and the null row
of each column, and the reason for each missing value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from unroll.evaluation.records import NULL, RETRAIN
from unroll.report.definitions import define
from unroll.report.formatting import display_labels, format_interval
from unroll.report.summary import Interval, Key, Missing, Row, Value, group_by

SPLITS = ("forget", "retain", "test")
ORACLES = ("twin", "independent")
COSTS = ("cost_ratio_gradients", "cost_ratio_seconds")
_MAIN_KEYS: tuple[Key, ...] = (
    ("relative_verification_error", None, "twin"),
    ("verification_error", None, "twin"),
    ("cost_ratio_gradients", None, None),
    ("cost_ratio_seconds", None, None),
    *(("accuracy", split, None) for split in SPLITS),
    ("tow", None, "twin"),
    ("mia", "forget", None),
)
OF_THE_SECTION = ("no_unlearning_distance",)
"""Metrics that are the same for every method: the header of the section prints them."""
_WIDEST_OTHER_TABLE = 8


class Cell(NamedTuple):
    """Text of a cell and the numbers of its footnotes."""

    text: str
    marks: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class TableRow:
    """One method of a table."""

    label: str
    role: str
    cells: list[Cell]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
      title: heading.
      headers: column headers, without the column of methods.
      rows: the body.
      legend: what each metric is, its target and its null row, as (title, text).
      footnotes: text of footnote 1, 2, ...
    """

    title: str
    headers: list[str]
    rows: list[TableRow]
    legend: list[tuple[str, str]]
    footnotes: list[str]


def build_tables(rows: Sequence[Row]) -> list[Table]:
    """Builds all tables of one section: main, one of gaps per oracle, and all other metrics."""
    recorded = sorted(
        {key for row in rows for key in row.values},
        key=lambda key: tuple(part or "" for part in key),
    )
    tables = [build_table("Scoreboard", _MAIN_KEYS, rows)]
    shown = set(_MAIN_KEYS)
    for oracle in ORACLES:
        keys = [key for key in _gap_keys(oracle) if key in recorded]
        if keys:
            tables.append(build_table(f"Gaps to the oracle: {oracle}", keys, rows, oracle))
            shown.update(keys)
    others = [key for key in recorded if key not in shown and key[0] not in OF_THE_SECTION]
    for start in range(0, len(others), _WIDEST_OTHER_TABLE):
        title = "Other metrics" if start == 0 else "Other metrics, continued"
        tables.append(build_table(title, others[start : start + _WIDEST_OTHER_TABLE], rows))
    return tables


def build_table(
    title: str, keys: Sequence[Key], rows: Sequence[Row], oracle: str | None = None
) -> Table:
    """Builds one table.

    Args:
      title: heading.
      keys: columns as (metric, split, oracle); a cost ratio is a metric without either.
      rows: rows of one section.
      oracle: the oracle of the whole table, which the headers then leave out.

    Returns:
      The table, with a footnote for each reason why a value is missing or to be read with care.
    """
    footnotes: list[str] = []
    labels = display_labels(rows)
    body = [
        TableRow(
            labels[row.label], row.role, [_cell(_look_up(row, key), key, footnotes) for key in keys]
        )
        for row in rows
    ]
    return Table(
        title, [column_header(key, oracle) for key in keys], body, _legend(keys, rows), footnotes
    )


def column_header(key: Key, assumed_oracle: str | None = None) -> str:
    """Header of a column, for example `Accuracy, forget`.

    Args:
      key: metric, split and oracle.
      assumed_oracle: an oracle that the title of the table names already.

    Returns:
      The header.
    """
    metric, split, oracle = key
    # Verification errors exist against the twin only, so naming it would be noise.
    known = "verification_error" in metric or oracle == assumed_oracle
    qualifiers = [part for part in (split, None if known else oracle) if part]
    return ", ".join([define(metric).title, *qualifiers])


def over_forgetting(rows: Sequence[Row]) -> list[str]:
    """Names the methods that forget more than the oracle, by more than the null row does.

    Args:
      rows: rows of one section.

    Returns:
      One sentence per method and oracle, or one that says why there is no verdict.
    """
    methods = [row for row in rows if row.role == "method"]
    null = next((row for row in rows if row.method == NULL), None)
    compared = any(
        isinstance(_gap(row, "accuracy_gap", o), Interval) for row in methods for o in ORACLES
    )
    if null is None:
        reason = f"Over-forgetting is not judged: there is no `{NULL}` row to tell it from chance."
        return [reason] if compared else []
    labels = display_labels(rows)
    sentences = []
    for row in methods:
        for oracle in ORACLES:
            excess = _excess(row, null, oracle)
            if excess:
                sentences.append(f"Over-forgetting: `{labels[row.label]}` has {excess}.")
    return sentences


def _excess(row: Row, null: Row, oracle: str) -> str:
    """Says how far a method is beyond the oracle; empty where the null row explains it."""
    parts = []
    for metric, beyond, word in (("accuracy_gap", -1, "accuracy"), ("loss_gap", 1, "loss")):
        gap, chance = _gap(row, metric, oracle), _gap(null, metric, oracle)
        if not (isinstance(gap, Interval) and isinstance(chance, Interval)):
            continue
        # The signed null gap averages to about zero; the far end of its interval is its size.
        size = max(abs(end) for end in (chance.mean, chance.low, chance.high) if end is not None)
        if beyond * gap.mean > size:
            side = "below" if beyond < 0 else "above"
            parts.append(
                f"forget {word} {abs(gap.mean):.3g} {side} the {oracle} oracle's "
                f"(null row: within {size:.2g})"
            )
    return " and ".join(parts)


def _gap(row: Row, metric: str, oracle: str) -> Value:
    return row.get(metric, "forget", oracle)


def _gap_keys(oracle: str) -> list[Key]:
    splits = [
        (metric, split, oracle) for metric in ("accuracy_gap", "js_divergence") for split in SPLITS
    ]
    # The main table holds the ToW against the twin.
    keys = [*splits, ("tow_mia", None, oracle)]
    return keys if oracle == "twin" else [*keys, ("tow", None, oracle)]


def _look_up(row: Row, key: Key) -> Value:
    return getattr(row, key[0]) if key[0] in COSTS else row.get(*key)


def _cell(value: Value, key: Key, footnotes: list[str]) -> Cell:
    """Formats a value; adds its note to the footnotes unless it is there already."""
    if isinstance(value, Missing):
        text = "n/a"
    else:
        text = format_interval(value, define(key[0]).signed)
    if not value.note:
        return Cell(text)
    if value.note not in footnotes:
        footnotes.append(value.note)
    return Cell(text, (footnotes.index(value.note) + 1,))


def _legend(keys: Sequence[Key], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """One entry per metric; targets and null rows are listed in the order of its columns."""
    by_metric = group_by(keys, lambda key: key[0])
    return [(define(metric).title, _entry(group, rows)) for metric, group in by_metric.items()]


def _entry(keys: Sequence[Key], rows: Sequence[Row]) -> str:
    definition = define(keys[0][0])
    target = definition.ideal
    if target == "retrain":
        target = f"the retrain row, {_listed(keys, RETRAIN, rows)}"
    text = f"{definition.sentence} Target: {target}. Better: {definition.direction}."
    if keys[0][0] in COSTS:
        return text
    return f"{text} Null row: {_listed(keys, NULL, rows)}."


def _listed(keys: Sequence[Key], method: str, rows: Sequence[Row]) -> str:
    parts = []
    for key in keys:
        qualifiers = ", ".join(part for part in key[1:] if part) if len(keys) > 1 else ""
        parts.append(f"{qualifiers} {_printed(key, method, rows)}".strip())
    return "; ".join(parts)


def _printed(key: Key, method: str, rows: Sequence[Row]) -> str:
    row = next((row for row in rows if row.method == method), None)
    value = Missing("") if row is None else _look_up(row, key)
    return "n/a" if isinstance(value, Missing) else format_interval(value, define(key[0]).signed)
