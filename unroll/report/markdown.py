"""A report as Markdown, for repositories and reviews."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unroll.evaluation.records import Record
from unroll.report.document import READING_GUIDE, Part, build_document
from unroll.report.figures import CAPTIONS
from unroll.report.tables import Cell, Table


def markdown_report(
    records: Iterable[Record],
    title: str,
    config: Mapping[str, Any] | None = None,
    notes: Iterable[str] = (),
    figures: Mapping[str, str] | None = None,
) -> str:
    """Writes a report as Markdown.

    Args:
      records: rows of one or more experiments.
      title: title of the report.
      config: configuration of the experiment.
      notes: sentences to print at the top.
      figures: path of each figure as the text should link it, by the name `save_figures` gives it.

    Returns:
      The text.
    """
    document = build_document(records, title, config, notes)
    blocks = [f"# {document.title}", *document.notes, READING_GUIDE]
    for part in document.parts:
        blocks += _part(part, figures or {})
    if document.config is not None:
        blocks += ["## Configuration", f"```json\n{document.config}\n```"]
    return "\n\n".join(blocks) + "\n"


def _part(part: Part, figures: Mapping[str, str]) -> list[str]:
    facts = "\n".join(f"- {name}: {value}" for name, value in part.facts)
    blocks = [f"## {part.heading}", facts]
    for kind, caption in CAPTIONS.items():
        path = figures.get(part.prefix + kind)
        if path is not None:
            blocks += [f"![{kind.replace('_', ' ')}]({path})", f"*{caption}*"]
    for table in part.tables:
        blocks += _table(table)
    if part.remarks:
        blocks += ["### Remarks", "\n".join(f"- {remark}" for remark in part.remarks)]
    if part.settings:
        settings = (f"- `{short}`: `{full}`" for short, full in part.settings.items())
        blocks += ["### Full settings of shortened names", "\n".join(settings)]
    return blocks


def _table(table: Table) -> list[str]:
    lines = [
        _line(["Method", *table.headers]),
        _line(["---", *("---:" for _ in table.headers)]),
        *(_line([f"`{row.label}`", *map(_cell, row.cells)]) for row in table.rows),
    ]
    blocks = [f"### {table.title}", "\n".join(lines)]
    if table.footnotes:
        numbered = (f"- [{n}] {text}" for n, text in enumerate(table.footnotes, start=1))
        blocks.append("\n".join(numbered))
    blocks.append("\n".join(f"- **{header}**: {text}" for header, text in table.legend))
    return blocks


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _cell(cell: Cell) -> str:
    return " ".join([cell.text, *(f"[{mark}]" for mark in cell.marks)])
