"""Records to reports: tables, figures, Markdown and HTML.

Reports read records only. They never touch a model, so any metric and any method that writes
records shows up without a change here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unroll.evaluation.records import Record
from unroll.report.console import console_table
from unroll.report.definitions import Definition, metric_definitions
from unroll.report.document import build_document
from unroll.report.figures import (
    accuracy_gaps,
    output_distributions,
    output_entropies,
    save_figures,
    scoreboard,
    training_curves,
)
from unroll.report.files import write_atomically
from unroll.report.html import html_report
from unroll.report.markdown import markdown_report
from unroll.report.summary import Interval, Missing, Row, group_sections, summarize, t_interval

__all__ = [
    "Definition",
    "Interval",
    "Missing",
    "Row",
    "accuracy_gaps",
    "console_table",
    "group_sections",
    "html_report",
    "markdown_report",
    "metric_definitions",
    "output_distributions",
    "output_entropies",
    "save_figures",
    "scoreboard",
    "summarize",
    "t_interval",
    "training_curves",
    "write_report",
]


def write_report(
    records: Iterable[Record],
    workdir: str | os.PathLike,
    title: str,
    config: Mapping[str, Any] | None = None,
    notes: Iterable[str] = (),
) -> Path:
    """Writes `report.html`, `report.md` and `figures/*.png` into a directory.

    Every file is complete or absent: it is written beside its place and then moved there. The same
    records give the same bytes.

    Args:
      records: rows of one or more experiments.
      workdir: where to write; made if needed.
      title: title of the report.
      config: configuration of the experiment, nested mappings allowed.
      notes: sentences to print at the top.

    Returns:
      Path of the HTML page, which can be sent on its own.

    Raises:
      InputError: there are no records, or a comparison lacks its `retrain` row.
    """
    records, notes, workdir = list(records), list(notes), Path(workdir)
    # Refuses bad records before anything is written.
    build_document(records, title, config, notes)
    workdir.mkdir(parents=True, exist_ok=True)
    figures = save_figures(records, workdir / "figures")
    links = {name: path.relative_to(workdir).as_posix() for name, path in figures.items()}
    page = workdir / "report.html"
    _write_text(workdir / "report.md", markdown_report(records, title, config, notes, links))
    _write_text(page, html_report(records, title, config, notes, figures))
    return page


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))
