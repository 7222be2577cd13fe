"""The table of ratios, for the terminal and as markdown; both read rows only."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import machine as machines
from rich.table import Table
from work import Row, Work
from works import WORKS

_HEADER = ("Work", "Against", "unroll", "theirs", "Ratio", "Asked for", "Met")


def cells(work: Work, row: Row | None) -> tuple[str, ...]:
    """The cells of one row; `None` where it was not measured."""
    goal = "" if work.goal is None else str(work.goal)
    named = (work.title, work.against)
    if row is None:
        return (*named, "not measured", "", "", goal, "")
    if row.ratio is None:
        word = "failed" if row.failed else "not run here"
        return (*named, f"{word}: {row.note}", "", "", goal, "")
    met = {True: "yes", False: "no", None: "smoke" if row.smoke else "no goal here"}[row.met]
    least, greatest = row.ratio_range
    ratio = f"{row.ratio:.2f} [{least:.2f}, {greatest:.2f}]"
    sides = (f"{_spread(figures)} {work.unit}" for figures in (row.ours, row.theirs))
    return (*named, *sides, ratio, goal, met)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


def latest(rows: Sequence[Row], machine: dict, smoke: bool) -> dict[str, Row]:
    """The last row of each work among those of one machine."""
    fitting = [row for row in rows if row.smoke == smoke and machines.same(row.machine, machine)]
    return {row.work: row for row in fitting}


def console_table(rows: dict[str, Row], machine: dict) -> Table:
    """For the terminal."""
    table = Table(title=machines.in_words(machine), show_lines=True)
    for column in _HEADER:
        table.add_column(column)
    for work in WORKS:
        table.add_row(*cells(work, rows.get(work.name)))
    return table


def markdown(rows: dict[str, Row], machine: dict) -> str:
    """The same as markdown, and below it what each row's figures rest on."""
    lines = [
        "# Benchmarks",
        "",
        f"{machines.in_words(machine)}. Medians with ranges over turns; the two sides of a row "
        "take turns in one process. A ratio is a speed-up where `at least` is asked for and a cost "
        "where `at most` is; its range is over neighbouring turns. Compilation is not counted.",
        "",
        "| " + " | ".join(_HEADER) + " |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    lines += ["| " + " | ".join(cells(work, rows.get(work.name))) + " |" for work in WORKS]
    lines += ["", "| Row | Turns | Same work | Other side | Compilation, s | Row, s | Load |"]
    lines += ["|---|---:|---|---|---:|---:|---:|"]
    for work in WORKS:
        row = rows.get(work.name)
        if row is not None and row.ratio is not None:
            figures = f"{row.compilation_seconds:.1f} | {row.row_seconds:.0f}"
            lines.append(
                f"| {work.name} | {len(row.ours)} | {row.check} | {row.setting} | {figures} | "
                f"{row.machine['load']} |"
            )
    return "\n".join(lines) + "\n"


def write(path: Path, rows: dict[str, Row], machine: dict) -> None:
    """Writes the markdown."""
    path.write_text(markdown(rows, machine), encoding="utf-8")
