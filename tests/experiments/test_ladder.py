"""The ladder experiment as a user runs it, killed half-way and run again."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

import unroll
from unroll.evaluation.ladder import Rung
from unroll.evaluation.rows import append_rows, read_rows

ROOT = Path(__file__).parents[2]


def ladder(*arguments, cwd):
    return subprocess.run(
        [
            sys.executable,
            str(ROOT / "experiments" / "ladder.py"),
            f"--config={ROOT / 'configs' / 'unrolling' / 'ladder.py'}:smoke",
            "--config.axes=(('epochs',(1,)),('forget',('random(size=2)',)))",
            *arguments,
        ],
        cwd=cwd,
        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_smoke_run_goes_on_where_it_was(tmp_path):
    first = ladder(cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    workdir = tmp_path / "runs" / "ladder-smoke"
    rows = read_rows(workdir / "ladder.jsonl", Rung)
    assert {rung.order for rung in rows} == {0, 1, 2}
    assert len({rung.cell for rung in rows}) == 4  # two recipes, two seeds
    assert all(rung.relative_error < 0.05 for rung in rows if rung.order)
    page = (workdir / "ladder.md").read_text()
    assert "momentum=0.9" in page and "| 1 | 2 |" in page
    # Killed while it wrote the last line of the second cell: that cell is measured again.
    text = (workdir / "ladder.jsonl").read_text()
    (workdir / "ladder.jsonl").write_text(text[:-10])
    assert ladder(cwd=tmp_path).returncode == 0
    again = read_rows(workdir / "ladder.jsonl", Rung)
    assert sorted(map(str, again)) == sorted(map(str, rows))


def test_a_grid_over_an_unknown_field_is_refused(tmp_path):
    result = ladder("--config.axes=(('epoch',(1,)),)", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip().endswith("the grid sets 'epoch', which the config does not have")


def test_rows_with_a_number_that_is_not_finite_are_refused(tmp_path):
    fields = {field.name: 0.0 for field in dataclasses.fields(Rung)}
    with pytest.raises(unroll.InputError, match="relative_error=nan"):
        append_rows(tmp_path / "rows.jsonl", [Rung(**{**fields, "relative_error": float("nan")})])
