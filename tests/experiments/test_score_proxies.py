"""The experiment on proxies of memorization as a user runs it, and what it says about mistakes."""

import json

import numpy as np
import pytest
from run_script import one_line_error, run_script


def score_proxies(*arguments, cwd):
    config = "memorization/proxies_digits.py:smoke"
    return run_script("score_proxies.py", config, *arguments, cwd=cwd)


def read(workdir):
    return [json.loads(line) for line in (workdir / "rows.jsonl").read_text().splitlines()]


def without_seconds(rows):
    return [{key: row[key] for key in row if "seconds" not in key} for row in rows]


def test_smoke_run_and_its_repetition(tmp_path):
    result = score_proxies(cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "report: runs/proxies_digits-smoke/score_proxies.md" in result.stdout
    assert "28 trainings of 6 to 8 steps" in result.stderr
    workdir = tmp_path / "runs" / "proxies_digits-smoke"
    rows = read(workdir)
    assert len(rows) == 2 * 10 and {row["seed"] for row in rows} == {0, 1}
    for row in rows:
        assert row["note"] is None and -1 <= row["spearman_low"] <= row["spearman_high"] <= 1
        assert set(row["precision"]) == {"0.05", "0.1"}
        # 24 models, 2 epochs, 70 examples each.
        assert row["cost_gradients"] == row["example_gradients"] / (24 * 2 * 70)
    with np.load(workdir / "scores.npz") as scores:
        assert scores["memorization"].shape == (100,)
    page = (workdir / "score_proxies.md").read_text()
    assert page.count("| `") == 10 and "(agreement.png)" in page
    for name in ("agreement", "scatter"):
        assert (workdir / f"{name}.png").stat().st_size > 1000

    again = score_proxies(cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "expected: at most" in again.stderr and "for 4 trainings of 8 steps" in again.stderr
    assert without_seconds(read(workdir)) == without_seconds(rows)


MISTAKES = {
    "unknown proxy": ("--config.proxies=('luck',)", "unknown proxy 'luck'"),
    "share": ("--config.top_shares=(2.0,)", "top_shares: 2.0 must be"),
    "too few models": ("--config.models=4", "train more models"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_and_cost_nothing(tmp_path, mistake):
    argument, message = MISTAKES[mistake]
    result = score_proxies(argument, cwd=tmp_path)
    assert message in one_line_error(result)
