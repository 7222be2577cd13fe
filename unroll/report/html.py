"""A report as one HTML file that needs nothing else: figures and style are inside."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from unroll.evaluation.records import Record
from unroll.report.document import READING_GUIDE, build_document
from unroll.report.figures import CAPTIONS


def html_report(
    records: Iterable[Record],
    title: str,
    config: Mapping[str, Any] | None = None,
    notes: Iterable[str] = (),
    figures: Mapping[str, str | os.PathLike] | None = None,
) -> str:
    """Writes a report as HTML.

    Args:
      records: rows of one or more experiments.
      title: title of the report.
      config: configuration of the experiment.
      notes: sentences to print at the top.
      figures: PNG file of each figure, by the name `save_figures` gives it.

    Returns:
      The page.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unroll.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    images = {
        name: base64.b64encode(Path(path).read_bytes()).decode("ascii")
        for name, path in (figures or {}).items()
    }
    return environment.get_template("report.html.j2").render(
        document=build_document(records, title, config, notes),
        guide=READING_GUIDE,
        captions=CAPTIONS,
        images=images,
    )
