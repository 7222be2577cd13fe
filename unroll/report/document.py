"""The content of a report, before it is written as Markdown or HTML."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unroll.errors import InputError
from unroll.evaluation.records import NULL, ORIGINAL, Record
from unroll.report.definitions import define, metric_definitions
from unroll.report.formatting import display_labels, format_interval
from unroll.report.summary import Interval, Row, Section, group_sections, summarize
from unroll.report.tables import OF_THE_SECTION, Table, build_tables, over_forgetting

READING_GUIDE = (
    "Cells are the mean ± half the width of the 95% Student t interval over training seeds; "
    "method seeds are averaged within a training seed first. A bare number was the same for every "
    "training seed. The target of every column is the value of the retrain row; the "
    "retrain_vs_retrain row is an independently retrained model judged as if it were unlearned, "
    "so differences of its size mean nothing."
)
_CURVES_WITH_FIGURE = ("training_loss", "true_class_probability", "output_entropy")


@dataclasses.dataclass(frozen=True)
class Part:
    """One section of a report.

    Attributes:
      heading: what tells the section apart from the others.
      facts: what was run, as (name, value).
      tables: the numbers.
      remarks: sentences under the tables.
      settings: full label of each method whose label is shortened, by short label.
      prefix: start of the names of the figures of the section.
    """

    heading: str
    facts: list[tuple[str, str]]
    tables: list[Table]
    remarks: list[str]
    settings: dict[str, str]
    prefix: str


@dataclasses.dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
      title: its title.
      notes: sentences of the author, shown at the top.
      parts: one per experiment, data set, model and forget set.
      config: the configuration as JSON text, or `None`.
    """

    title: str
    notes: list[str]
    parts: list[Part]
    config: str | None


def build_document(
    records: Iterable[Record],
    title: str,
    config: Mapping[str, Any] | None = None,
    notes: Iterable[str] = (),
) -> Document:
    """Builds the content of a report.

    Args:
      records: rows of one or more experiments.
      title: title of the report.
      config: configuration of the experiment, nested mappings allowed.
      notes: sentences to print at the top.

    Returns:
      The document.

    Raises:
      InputError: there are no records, or a comparison lacks its `retrain` row.
    """
    records = list(records)
    if not records:
        raise InputError("there are no records to report; run the evaluation first")
    rows_of: dict[Section, list[Row]] = {}
    for row in summarize(records):
        rows_of.setdefault(row.section, []).append(row)
    prefixes = figure_prefixes(rows_of)
    parts = [
        _part(section, members, rows_of[section], config, prefixes[section])
        for section, members in group_sections(records).items()
    ]
    text = None if config is None else json.dumps(config, indent=2, default=str)
    return Document(title, list(notes), parts, text)


def figure_prefixes(sections: Iterable[Section]) -> dict[Section, str]:
    """Start of the figure names of each section: empty for one section, else `1_`, `2_`, ..."""
    sections = list(sections)
    if len(sections) == 1:
        return {sections[0]: ""}
    return {section: f"{number}_" for number, section in enumerate(sections, start=1)}


def _part(
    section: Section,
    records: Sequence[Record],
    rows: Sequence[Row],
    config: Mapping[str, Any] | None,
    prefix: str,
) -> Part:
    labels = display_labels(rows)
    return Part(
        heading=" · ".join(section),
        facts=_facts(section, records, rows, config),
        tables=build_tables(rows),
        remarks=[*_remarks(records, rows), *over_forgetting(rows)],
        settings={short: full for full, short in labels.items() if short != full},
        prefix=prefix,
    )


def _facts(
    section: Section,
    records: Sequence[Record],
    rows: Sequence[Row],
    config: Mapping[str, Any] | None,
) -> list[tuple[str, str]]:
    sizes = sorted({record.forget_size for record in records})
    examples = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
    facts = [
        ("Experiment", section.experiment),
        ("Data set", section.dataset),
        ("Model", section.model),
        ("Forget set", f"{section.forget}, {examples} examples"),
        ("Training seeds", _listed({record.train_seed for record in records})),
        ("Method seeds", _listed({record.method_seed for record in records})),
        ("Methods", str(sum(row.role == "method" for row in rows))),
    ]
    rule = find_setting(config or {}, "denominator")
    if rule is not None:
        facts.append(("Denominator rule", rule))
    for metric in OF_THE_SECTION:
        known = (value for row in rows for key, value in row.values.items() if key[0] == metric)
        value = next((value for value in known if isinstance(value, Interval)), None)
        if value is not None:
            facts.append((define(metric).title, format_interval(value)))
    return facts


def find_setting(config: Mapping[str, Any], word: str) -> str | None:
    """Finds the first setting whose name contains a word, at any depth; `None` without one."""
    for name, value in config.items():
        found = find_setting(value, word) if isinstance(value, Mapping) else None
        if found is None and word in str(name) and not isinstance(value, Mapping):
            found = str(value)
        if found is not None:
            return found
    return None


def _remarks(records: Sequence[Record], rows: Sequence[Row]) -> list[str]:
    """Says what a careful reader would miss."""
    methods = {row.method for row in rows}
    remarks = []
    if ORIGINAL not in methods:
        remarks.append(f"There is no `{ORIGINAL}` row: what doing nothing scores is unknown.")
    if NULL not in methods:
        remarks.append(f"There is no `{NULL}` row: the noise floor of each metric is unknown.")
    if len({record.train_seed for record in records}) == 1:
        remarks.append("There is one training seed: no interval can be given.")
    curves = {record.metric for record in records if record.at is not None}
    unseen = sorted(curves.difference(_CURVES_WITH_FIGURE))
    if unseen:
        remarks.append(f"Curves in the records without a figure: {', '.join(unseen)}.")
    undefined = sorted({r.metric for r in records if r.at is None}.difference(metric_definitions))
    if undefined:
        remarks.append(f"Metrics without a registered definition: {', '.join(undefined)}.")
    return remarks


def _listed(seeds: Iterable[int]) -> str:
    seeds = sorted(seeds)
    if len(seeds) > 3 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]} ({len(seeds)})"
    return f"{', '.join(map(str, seeds))} ({len(seeds)})"
