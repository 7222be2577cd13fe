"""The membership attack with many models as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unroll.evaluation.attacks import AttackRow
from unroll.report.files import write_atomically
from unroll.report.formatting import format_interval
from unroll.report.summary import group_by, t_interval

_GUIDE = (
    "A classifier that has seen other models tells those trained with the forget set from those "
    "trained without it, by softmax and label of the forgotten examples. 0.5: nothing to be told. "
    "Means over folds of the models ± half the width of the 95% interval; folds share most of "
    "their training models, so that the intervals are rather too narrow. Row `retrain`: retrained "
    "models of other seeds, attacked as if they had been unlearned."
)


def write_attacks(rows: Sequence[AttackRow], workdir: Path, title: str) -> Path:
    """Writes `attack.md` into an existing directory and returns its path."""
    lines = [f"# {title}", "", _GUIDE, "", "| Models | ROC AUC | PR AUC | models |"]
    lines += ["| --- | ---: | ---: | ---: |"]
    for target, members in group_by(rows, lambda row: row.target).items():
        cells = [
            format_interval(t_interval([getattr(row, name) for row in members]))
            for name in ("roc_auc", "pr_auc")
        ]
        count = sum(row.models for row in members)
        lines.append("| " + " | ".join([target, *cells, str(count)]) + " |")
    path = workdir / "attack.md"
    write_atomically(path, lambda file: file.write(("\n".join(lines) + "\n").encode()))
    return path
