"""The scoreboard in the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table
from rich.text import Text

from unroll.evaluation.records import Record
from unroll.report.formatting import display_labels, format_interval, format_number
from unroll.report.summary import Interval, Missing, Row, Value, group_by, summarize

_CAPTION = "± half of the 95% interval over seeds; other cells are means; *: see the report's notes"
_MEANS = (
    ("acc forget", ("accuracy", "forget", None)),
    ("retain", ("accuracy", "retain", None)),
    ("test", ("accuracy", "test", None)),
    ("ToW", ("tow", None, "twin")),
    ("MIA", ("mia", "forget", None)),
)


def console_table(records: Iterable[Record]) -> Table:
    """Builds the scoreboard as a `rich` table with short columns.

    Args:
      records: rows of one or more experiments.

    Returns:
      The table; print it with `rich.console.Console().print`.
    """
    sections = group_by(summarize(records), lambda row: row.section)
    table = Table(box=box.SIMPLE_HEAD, caption=_CAPTION)
    table.add_column("method", overflow="fold")
    for header in ("rel. error", "cost", *(header for header, _ in _MEANS)):
        table.add_column(header, justify="right", no_wrap=True)
    for section, rows in sections.items():
        heading = Text(" · ".join(section), style="bold")
        if len(sections) == 1:
            table.title = heading
        else:
            table.add_section()
            table.add_row(heading)
        labels = display_labels(rows)
        for row in rows:
            style = None if row.role == "method" else "dim"
            table.add_row(Text(labels[row.label]), *_texts(row), style=style)
    return table


def _texts(row: Row) -> list[str]:
    error = row.relative_error
    first = "n/a" if isinstance(error, Missing) else format_interval(error) + _mark(error)
    means = [row.cost_ratio_gradients, *(row.get(*key) for _, key in _MEANS)]
    return [first, *map(_mean, means)]


def _mean(value: Value) -> str:
    if isinstance(value, Missing):
        return "n/a"
    return format_number(float(f"{value.mean:.3g}")) + _mark(value)


def _mark(value: Interval) -> str:
    """What says that a value is to be read with care."""
    return "*" if value.note else ""
