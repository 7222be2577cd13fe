"""The sweep as a user runs it, killed half-way and run again."""

import json

import pytest
from run_script import run_script

from unroll.evaluation.rows import read_rows
from unroll.evaluation.tuning import Trial
from unroll.methods import method


def tuning(*arguments, cwd):
    return run_script("tuning.py", "memorization/tuning_digits.py:smoke", *arguments, cwd=cwd)


@pytest.mark.slow
def test_smoke_run_goes_on_where_it_was(tmp_path):
    first = tuning(cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    workdir = tmp_path / "runs" / "tuning_digits-smoke"
    rows = read_rows(workdir / "rows.jsonl", Trial)
    # Three references, three methods of two candidates and one of them as RUM^F, on two seeds.
    assert len(rows) == len({row.place for row in rows}) == 2 * (3 + 4 * 2)
    best = json.loads((workdir / "best.json").read_text())
    assert set(best) == {"finetune", "scrub", "influence", "rum_f_finetune"}
    assert all(method(text).name == name.removeprefix("rum_f_") for name, text in best.items())
    assert "1e+30" not in best["influence"]  # diverged
    page = (workdir / "tuning.md").read_text()
    # Killed while it wrote the last line: that candidate is tried again, from the stored models.
    text = (workdir / "rows.jsonl").read_text()
    (workdir / "rows.jsonl").write_text(text[:-10])
    second = tuning(cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    again = read_rows(workdir / "rows.jsonl", Trial)
    assert sorted(again, key=str) == sorted(rows, key=str)
    assert (workdir / "tuning.md").read_text() == page
    assert json.loads((workdir / "best.json").read_text()) == best


def test_a_development_set_that_is_the_test_set_is_refused(tmp_path):
    options = ("--config.scores=none", "--config.refined=()")
    options += ("--config.test_forget=random(size=20, seed=1)",)
    result = tuning(*options, "--config.forget=random(size=20, seed=1)", cwd=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: 20 of 20 development examples belong to the test forget set")
    assert not (tmp_path / "runs" / "tuning_digits-smoke").exists()
