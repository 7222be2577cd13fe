"""All figures of a report, by name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from unroll.evaluation.records import Record
from unroll.report.curves import training_curves
from unroll.report.distributions import output_distributions, output_entropies
from unroll.report.document import figure_prefixes
from unroll.report.files import write_atomically
from unroll.report.gaps import accuracy_gaps
from unroll.report.scoreboard import scoreboard
from unroll.report.summary import group_sections

FIGURES = {
    "scoreboard": scoreboard,
    "accuracy_gaps": accuracy_gaps,
    "output_distributions": output_distributions,
    "output_entropies": output_entropies,
    "training_curves": training_curves,
}
"""Functions from the records of one section to a figure, or to `None` where rows are missing."""

CAPTIONS = {
    "scoreboard": (
        "Verification error divided by the no-unlearning distance, against cost divided by the "
        "cost of retraining. Lower left is better. Bars: 95% intervals over training seeds. The "
        "grey line joins what no other row beats in both directions; exact zeros lie on the "
        "shaded band."
    ),
    "accuracy_gaps": (
        "Accuracy of each model minus the accuracy of its twin, with 95% intervals over training "
        "seeds. A gap inside the grey band is no larger than that of an independent retrain."
    ),
    "output_distributions": (
        "Share of the forget set with a true-class probability at or below a value, mean over "
        "seeds. The closer to the bold line, the closer to the retrained model."
    ),
    "output_entropies": (
        "Share of the forget set with an output of this entropy or less, mean over seeds; bold is "
        "the retrained model."
    ),
    "training_curves": "Training loss of original and retrained model; thin lines are seeds.",
}
"""One sentence or two under each figure."""

_DOTS_PER_INCH = 150


def save_figures(records: Iterable[Record], directory: str | os.PathLike) -> dict[str, Path]:
    """Draws all figures that the records allow and saves them as PNG.

    Args:
      records: rows of one or more experiments.
      directory: where to write; made if needed.

    Returns:
      Path by figure name; with several sections the names start with `1_`, `2_`, ...
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    sections = group_sections(records)
    prefixes = figure_prefixes(sections)
    paths = {}
    for section, members in sections.items():
        for kind, draw in FIGURES.items():
            figure = draw(members)
            if figure is not None:
                name = prefixes[section] + kind
                paths[name] = directory / f"{name}.png"
                _save(figure, paths[name])
    return paths


def _save(figure: Figure, path: Path) -> None:
    write_atomically(
        path,
        lambda file: figure.savefig(
            file, format="png", dpi=_DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.08
        ),
    )
