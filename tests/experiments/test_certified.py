"""Certified removals and the pipeline as a user runs them: their smoke forms, and mistakes."""

import json

import pytest
from run_script import one_line_error, run_script


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_certified_removals(tmp_path):
    result = run_script("certified_removal.py", "deletion/certified_digits.py:smoke", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    workdir = tmp_path / "runs" / "certified_digits-smoke"
    rows = rows_of(workdir / "removals.jsonl")
    assert {row["bound"] for row in rows} == {"paper", "integral"}
    assert all(row["residual"] <= row["residual_bound"] <= row["budget"] for row in rows)
    assert all(row["distance"] <= row["distance_bound"] for row in rows)
    page = (workdir / "certified.md").read_text()
    assert "| integral |" in page and "retrained" in page
    assert (workdir / "certified.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "name", [pytest.param("pipeline_digits", marks=pytest.mark.slow), "pipeline_linear_digits"]
)
def test_pipelines(tmp_path, name):
    result = run_script("pipeline.py", f"deletion/{name}.py:smoke", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    workdir = tmp_path / "runs" / f"{name}-smoke"
    rows = rows_of(workdir / "served.jsonl")
    assert {row["seed"] for row in rows} == {0, 1} and not [r for r in rows if r["error"] is None]
    said = {row["noise"].split("(")[0]: row["statement"] for row in rows}
    assert said["measured"].startswith("Noise that would be needed if the sensitivity were")
    assert "certif" not in said["measured"]
    if "proved" in said:
        assert "strong convexity" in said["proved"] or "is above" in said["proved"]
    assert "What the noise means" in (workdir / "pipeline.md").read_text()
    assert (workdir / "pipeline.png").stat().st_size > 5000


# Each takes a process of its own: one for each script here, the rest with the slow tests.
@pytest.mark.parametrize(
    ("script", "config", "argument", "message"),
    [
        ("certified_removal.py", "certified_digits", "--config.classes=(3,)", "two or more of"),
        ("pipeline.py", "pipeline_digits", "--config.noises=('loud',)", "unknown part 'loud'"),
    ],
)
def test_mistakes_are_one_line_and_cost_nothing(tmp_path, script, config, argument, message):
    result = run_script(script, f"deletion/{config}.py:smoke", argument, cwd=tmp_path)
    assert message in one_line_error(result)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "config", "argument", "message"),
    [
        ("certified_removal.py", "certified_digits", "--config.removals=0", "removals must be"),
        ("pipeline.py", "pipeline_digits", "--config.checks=('luck(at_most=1)',)", "luck"),
        ("pipeline.py", "pipeline_digits", "--config.influences=(('a','b'),)", "triples"),
    ],
)
def test_further_mistakes_are_one_line(tmp_path, script, config, argument, message):
    result = run_script(script, f"deletion/{config}.py:smoke", argument, cwd=tmp_path)
    assert message in one_line_error(result)
