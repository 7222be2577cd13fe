"""The memory benchmark: its command, its arithmetic, and the estimate against what it measures."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import memory  # noqa: E402
from memory import FULL, SMOKE, Point, Row  # noqa: E402
from rich.console import Console  # noqa: E402

MB = 10**6


def command(*arguments, cwd):
    return subprocess.run(
        [sys.executable, str(FOLDER / "memory.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow  # a process for each point
def test_smoke_measures_what_is_expected(tmp_path):
    result = command("--smoke", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    out = tmp_path / "runs" / "memory-smoke"
    rows = memory.read(out / "memory.jsonl")
    assert [row.point for row in rows] == SMOKE.points()
    used = memory.above_baseline(rows)
    assert used
    for row in rows:
        if row.point in used:  # the estimate, before the work, against the process that did it
            assert 0.5 < row.expected / used[row.point] < 2, row
    assert (out / "memory.png").stat().st_size > 1000
    assert "| metagradients |" in (out / "memory.md").read_text()


def row(point, peak):
    parameters = point.width**2
    return Row(
        **dataclasses.asdict(point),
        parameters=parameters,
        state=4 * parameters,
        peak=peak,
        expected=7 * MB,
        device="cpu",
    )


@pytest.fixture
def rows():
    """Training takes 3 states, metagradients as many as the root of T, and a process 100 MB."""
    found = [row(memory.baseline(name), 100 * MB) for name in FULL.works]
    for point in FULL.points():
        if point != memory.baseline(point.work):
            states = point.steps**0.5 if point.work == "metagradients" else 3
            found.append(row(point, int(100 * MB + states * 4 * point.width**2)))
    return found


def test_exponents_of_known_growth(rows):
    (_, *header), body = memory.table_cells(FULL, rows)
    growth = {cells[0]: dict(zip(header, cells, strict=True)) for cells in body}
    assert growth["training"]["grows as T^"] == "0.00"
    assert growth["metagradients"]["grows as T^"] == "0.50"
    assert all(cells["grows as P^"] == "1.00" for cells in growth.values())
    state = 4 * FULL.at_width**2
    assert growth["training"]["T = 64"] == f"{3 * state / MB:.0f} (7)"


def test_figure_and_table_hold_every_work(rows, tmp_path):
    memory.draw(FULL, rows, tmp_path / "figures" / "memory.png")
    assert (tmp_path / "figures" / "memory.png").stat().st_size > 1000
    text = memory.markdown(FULL, rows)
    assert all(f"| {name} |" in text for name in FULL.works)


def test_what_was_measured_is_not_measured_again(tmp_path, monkeypatch):
    point = Point("training", 4, 8)
    path = tmp_path / "memory.jsonl"
    path.write_text(json.dumps(dataclasses.asdict(row(point, MB))) + "\n")
    monkeypatch.setattr(subprocess, "run", None)  # not to be called
    assert memory.measure_missing([point], path, Console(quiet=True)) == [row(point, MB)]


def test_a_point_that_fails_is_one_line(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nValueError: no such thing\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match="error: Point.*no such thing"):
        memory.measure_missing([Point("x", 1, 1)], tmp_path / "memory.jsonl", Console(quiet=True))
