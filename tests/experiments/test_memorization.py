"""The experiment on memorization scores as a user runs it: its smoke form, and mistakes."""

import json

import numpy as np
import pytest
from run_script import one_line_error, run_script

IMAGES = "--config.dataset=random_images(num_train=80, num_test=20, size=8, num_classes=4)"


def score(config, *arguments, cwd):
    return run_script("memorization.py", f"memorization/{config}:smoke", *arguments, cwd=cwd)


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ("scores_digits.py", ["--cpu_devices=2"]),
        pytest.param("scores_cifar10.py", [IMAGES], marks=pytest.mark.slow),
    ],
)
def test_smoke_run(tmp_path, config, arguments):
    result = score(config, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    workdir = tmp_path / "runs" / f"{config.removesuffix('.py')}-smoke"
    assert f"report: runs/{workdir.name}/scores.md" in result.stdout
    rows = [json.loads(line) for line in (workdir / "scores.jsonl").read_text().splitlines()]
    assert [row["measure"] for row in rows] == ["accuracy", "probability"]
    with np.load(workdir / "scores.npz") as file:
        assert len(file["memorization"]) == len(file["labels"]) == rows[0]["examples"]
        np.testing.assert_array_equal(file["included"] + file["excluded"], rows[0]["models"])
        assert rows[0]["mean"] == pytest.approx(file["memorization"].mean())
    for figure in ("distribution", "most_memorized", "influences"):
        assert f"({figure}.png)" in (workdir / "scores.md").read_text()
        assert (workdir / f"{figure}.png").stat().st_size > 1000
    stored = tmp_path / "runs" / "store"
    assert not list(stored.glob("unfinished-*"))
    if config == "scores_digits.py":  # once is enough
        again = score(config, *arguments, cwd=tmp_path)
        assert again.returncode == 0 and "everything is stored" in again.stderr, again.stderr


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.models=3", "train more models"),
        ("--config.measure=loss", "choose accuracy or probability"),
        ("--cpu_devices=0", "cpu_devices must be a whole number"),
    ],
)
def test_mistakes_are_one_line_and_cost_nothing(tmp_path, argument, message):
    result = score("scores_digits.py", argument, cwd=tmp_path)
    assert message in one_line_error(result)
