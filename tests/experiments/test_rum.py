"""RUM and the difficulty study as a user runs them: their smoke forms, and mistakes in one line."""

import json

import pytest
from run_script import one_line_error, run_script


def launch(script, config, *arguments, cwd):
    return run_script(script, f"memorization/{config}:smoke", *arguments, cwd=cwd)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_variants(tmp_path):
    first = launch("rum.py", "rum_digits.py", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    workdir = tmp_path / "runs" / "rum_digits-smoke"
    records = rows_of(workdir / "records.jsonl")
    assert {row["method"] for row in records} == {
        "original", "retrain", "retrain_vs_retrain", "neggrad_plus", "salun",
        "shuffle_neggrad_plus", "shuffle_salun", "rum_f_neggrad_plus", "rum_f_salun",
        "rum_f_neggrad_plus_by_confidence", "rum_f_salun_by_confidence", "rum", "rum_auto",
        "rum_f_tuned_salun",
    }  # fmt: skip
    assert {row["forget_size"] for row in records} == {18}
    assert not [row for row in records if row["note"] and "diverged" in row["note"]]
    chosen = json.loads((workdir / "selection.json").read_text())
    assert len(chosen["methods"]) == 3 and len(chosen["trials"]) == 3 * 2
    page = (workdir / "rum.md").read_text()
    assert "Does refinement help?" in page and "| rum_auto |" in page
    for name in ("rum.png", "report.html", "figures/scoreboard.png"):
        assert (workdir / name).stat().st_size > 1000


@pytest.mark.slow
def test_difficulty(tmp_path):
    result = launch("difficulty.py", "difficulty_digits.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    workdir = tmp_path / "runs" / "difficulty_digits-smoke"
    sets = rows_of(workdir / "sets.jsonl")
    assert [(each["axis"], each["level"], len(each["ids"])) for each in sets] == [
        (axis, level, 12)
        for axis in ("memorization", "entanglement")
        for level in ("low", "medium", "high")
    ]
    names = {f"{each['level']} {each['axis']}" for each in sets}
    assert {row["forget"] for row in rows_of(workdir / "records.jsonl")} == names
    assert "ToW against the twin" in (workdir / "difficulty.md").read_text()
    assert (workdir / "difficulty.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("script", "config", "argument", "message"),
    [
        ("rum.py", "rum_digits.py", "--config.scores=luck", "unknown proxy 'luck'"),
        ("rum.py", "rum_digits.py", "--config.candidates=('replay',)", "needs the recorded run"),
        ("rum.py", "rum_digits.py", "--config.part_size=20", "need 120 examples; there are 100"),
    ],
)
def test_mistakes_are_one_line_and_cost_nothing(tmp_path, script, config, argument, message):
    result = launch(script, config, argument, cwd=tmp_path)
    assert message in one_line_error(result)
