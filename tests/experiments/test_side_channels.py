"""Side channels and noisy fine-tuning as a user runs them: their smoke forms, and mistakes."""

import json

import pytest
from run_script import one_line_error, run_script


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_side_channels(tmp_path):
    name = "side_channels_digits"
    result = run_script("side_channels.py", f"deletion/{name}.py:smoke", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    workdir = tmp_path / "runs" / f"{name}-smoke"
    rows, counted = (rows_of(workdir / f"{part}.jsonl") for part in ("observations", "counted"))
    constant = [row for row in rows if row["way"].startswith("constant work")]
    assert len({(row["example_gradients"], row["states"]) for row in constant}) == 1
    assert len({row["example_gradients"] for row in rows if row["way"] == "plain"}) > 2
    told = {(row["way"], row["secret"]): row["bits"] for row in counted}
    assert told["plain", "slice of the example"] == pytest.approx(1)
    assert {told[way, "slice of the example"] for way in ("constant work", "single model")} == {0}
    assert not list(workdir.glob(".store-*"))
    assert (workdir / "side_channels.png").stat().st_size > 5000


def test_noisy_fine_tuning(tmp_path):
    result = run_script("noisy_fine_tuning.py", "deletion/noisy_digits.py:smoke", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    workdir = tmp_path / "runs" / "noisy_digits-smoke"
    rows = rows_of(workdir / "noisy.jsonl")
    # Two seeds: original, retrained, 4 without noise, 2 clippings with and without quiet steps.
    assert len(rows) == 2 * (2 + 4 + 4) and not [row for row in rows if row["note"]]
    assert all(row["sigma"] > 0 for row in rows if row["method"] == "noisy fine-tuning")
    page = (workdir / "noisy.md").read_text()
    assert "destroys the model" in page and "is a certificate" not in page
    assert (workdir / "noisy.png").stat().st_size > 5000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "config", "argument", "message"),
    [
        ("side_channels.py", "side_channels_digits", "--config.shards=1", "two shards or more"),
        ("side_channels.py", "side_channels_digits", "--config.pairs=0", "pairs must be"),
        ("noisy_fine_tuning.py", "noisy_digits", "--config.delta=2.0", "delta below 1"),
        ("noisy_fine_tuning.py", "noisy_digits", "--config.epsilons=()", "one epsilon or more"),
    ],
)
def test_mistakes_are_one_line_and_cost_nothing(tmp_path, script, config, argument, message):
    result = run_script(script, f"deletion/{config}.py:smoke", argument, cwd=tmp_path)
    assert message in one_line_error(result)
