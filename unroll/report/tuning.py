"""A sweep of hyper-parameters as a table: the best candidate of each method and its runner-up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unroll.evaluation.tuning import REFERENCES, Candidate, Choice, Trial, choose, seed_values
from unroll.report.files import write_atomically
from unroll.report.formatting import format_interval, format_number
from unroll.report.summary import ROLES, group_by, t_interval

_NAMES = {
    "tow": "tug of war against the twin",
    "tow_mia": "tug of war with the membership attack, against the twin",
    "tow_independent": "tug of war against independent retrains",
    "tow_mia_independent": "tug of war with the membership attack, against independent retrains",
}


def write_tuning(
    rows: Sequence[Trial],
    workdir: Path,
    title: str,
    *,
    criterion: str,
    most_cost: float | None = None,
) -> Path:
    """Writes `tuning.md` into an existing directory and returns its path.

    Args:
      rows: trials of one experiment, references included.
      workdir: where to write.
      title: title of the page.
      criterion: see `choose`.
      most_cost: see `choose`.
    """
    choices = choose(rows, criterion, most_cost)
    first = rows[0]
    blocks = [
        f"# {title}",
        f"{first.dataset}, {first.model}; development forget set {first.forget}, "
        f"{first.forget_size} examples; training seeds "
        f"{', '.join(str(seed) for seed in sorted({row.train_seed for row in rows}))}.",
        _guide(choices, criterion, most_cost),
        "\n".join(_table(rows, choices, criterion)),
    ]
    refused = [line for choice in choices for line in _refused(choice)]
    if refused:
        blocks += ["## Candidates that were not eligible", "\n".join(refused)]
    path = workdir / "tuning.md"
    write_atomically(path, lambda file: file.write(("\n\n".join(blocks) + "\n").encode()))
    return path


def _guide(choices: Sequence[Choice], criterion: str, most_cost: float | None) -> str:
    counts = sorted({len(choice.ranked) + len(choice.refused) for choice in choices})
    text = (
        f"Every method has {' or '.join(map(str, counts))} candidates. Criterion: "
        f"{_NAMES[criterion]}, mean over the training seeds ± half the width of the 95% interval; "
        "row `retrain` is the twin itself, `retrain_vs_retrain` another retrained model. The best "
        "of many candidates is better here than it will be elsewhere. Settings that all candidates "
        "of a method share are left out; best.json has them. Costs are example-gradients relative "
        "to retraining. "
    )
    if most_cost is not None:
        text += f"Candidates that cost more than {format_number(most_cost)} are not eligible. "
    return text + "An optimum at an edge of its grid may lie beyond it."


def _table(rows: Sequence[Trial], choices: Sequence[Choice], criterion: str) -> list[str]:
    lines = ["| Method | best | criterion | runner-up | criterion | cost | at an edge | eligible |"]
    lines += ["| --- | --- | ---: | --- | ---: | ---: | --- | ---: |"]
    references = group_by(rows, lambda row: row.method)
    for name in REFERENCES:
        if name in references:
            values = seed_values(references[name], criterion)
            cost = references[name][0].cost
            shown = "" if cost is None else format_number(cost)
            cells = [f"`{name}`", ROLES[name], _interval(values), "", "", shown, "", ""]
            lines.append(_line(cells))
    for choice in choices:
        tried = len(choice.ranked) + len(choice.refused)
        edges = "; ".join(choice.edges) or "no"
        best = _candidate(choice, choice.best) if choice.best else ["none", ""]
        cost = format_number(choice.best.cost) if choice.best else ""
        second = _candidate(choice, choice.runner_up) if choice.runner_up else ["", ""]
        edges = edges if choice.best else ""
        counts = f"{len(choice.ranked)} of {tried}"
        lines.append(_line([f"`{choice.method}`", *best, *second, cost, edges, counts]))
    return lines


def _candidate(choice: Choice, candidate: Candidate) -> list[str]:
    return [_settings(choice, candidate), _interval(candidate.values)]


def _settings(choice: Choice, candidate: Candidate) -> str:
    """The hyper-parameters in which the candidates of a method differ."""
    tried = [other.hyperparameters for other in (*choice.ranked, *choice.refused)]
    pairs = sorted(candidate.hyperparameters.items())
    differ = [f"{name}={value!r}" for name, value in pairs if any(t[name] != value for t in tried)]
    return f"`{', '.join(differ) or candidate.label}`"


def _interval(values: Sequence[float]) -> str:
    return format_interval(t_interval(values)) if values else "missing"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _refused(choice: Choice) -> list[str]:
    return [
        f"- `{choice.method}`, {_settings(choice, candidate)}: {candidate.note}"
        for candidate in choice.refused
    ]
