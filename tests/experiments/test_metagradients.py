"""The metagradient experiment as a user runs it: the smoke form, and mistakes."""

import json

import pytest
from run_script import one_line_error, run_script

DIGITS = "unrolling/metagradients.py:smoke"


def attribute(config, *arguments, cwd, data_dir="nowhere"):
    return run_script("metagradients.py", config, *arguments, cwd=cwd, data_dir=data_dir)


def test_smoke_run(tmp_path):
    result = attribute(DIGITS, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "report: runs/metagradients-smoke/datamodelling.md" in result.stdout
    workdir = tmp_path / "runs" / "metagradients-smoke"
    rows = [json.loads(line) for line in (workdir / "effects.jsonl").read_text().splitlines()]
    assert {row["method"] for row in rows} == {"metagradients", "last epoch", "tracin"}
    assert len(rows) == 3 * 5 * 6  # methods, deletions, metrics
    prices = [json.loads(line) for line in (workdir / "prices.jsonl").read_text().splitlines()]
    assert prices[0]["metrics"] == 1 and prices[0]["cost_ratio_gradients"] > 4
    assert "score" in json.loads((workdir / "smoothness.json").read_text())
    page = (workdir / "datamodelling.md").read_text()
    assert "5 deletions of 0.02 of the training set (4 examples)" in page
    assert (workdir / "datamodelling_0.02.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.deletions=2", "deletions must be a whole number, 3 or more; got 2"),
        ("--config.fractions=()", "fractions is empty"),
        ("--config.train_seeds=(0,1)", "give one seed"),
        ("--config.fractions=(1.5,)", "fraction"),
        ("--config.test_points=0", "size"),
        ("--config.model=resnet()", "unknown model"),
    ],
)
def test_mistakes_are_one_line_and_cost_nothing(tmp_path, argument, message):
    result = attribute(DIGITS, argument, cwd=tmp_path)
    assert message in one_line_error(result)


@pytest.mark.slow  # derivatives of a convolutional network through a run
def test_real_data_smoke(tmp_path, real_data_dir):
    folder = real_data_dir("cifar10", "3.0.2").resolve()
    config = "unrolling/metagradients_cifar10.py:smoke"
    result = attribute(config, cwd=tmp_path, data_dir=folder)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs" / "metagradients_cifar10-smoke" / "datamodelling.md").exists()
