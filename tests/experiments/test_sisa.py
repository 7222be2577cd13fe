"""The SISA script as a user runs it: its smoke form, killed and run again, and mistakes."""

import pytest
from run_script import one_line_error, run_script

from unroll.deletion.tradeoff import CostRow, SisaRow
from unroll.evaluation.rows import read_rows

IMAGES = "--config.dataset=random_images(num_train=128, num_test=20, size=8, num_classes=4)"


def sisa(config, *arguments, cwd):
    return run_script("sisa.py", f"deletion/{config}:smoke", *arguments, cwd=cwd)


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        pytest.param("sisa_digits.py", [], marks=pytest.mark.slow),
        pytest.param("sisa_cifar10.py", [IMAGES], marks=pytest.mark.slow),
    ],
)
def test_smoke_run(tmp_path, config, arguments):
    result = sisa(config, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    workdir = tmp_path / "runs" / f"{config.removesuffix('.py')}-smoke"
    assert f"report: runs/{workdir.name}/sisa.md" in result.stdout
    rows = read_rows(workdir / "sisa.jsonl", SisaRow)
    assert {(row.shards, row.slices) for row in rows} == {(1, 1), (1, 4), (4, 1), (4, 4)}
    assert len(rows) == 12 and all(row.exact and row.after == row.scratch for row in rows)
    assert all(row.request_gradients > 0 for row in rows)
    costs = read_rows(workdir / "costs.jsonl", CostRow)
    adversarial = [row for row in costs if row.stream == "adversarial" and row.batch == 1]
    assert all(row.simulated == pytest.approx(row.expected) for row in adversarial)
    page = (workdir / "sisa.md").read_text()
    assert "(sisa.png)" in page and "| 1/1 |" in page
    assert (workdir / "sisa.png").stat().st_size > 1000
    if config == "sisa_digits.py":  # once is enough
        path = workdir / "sisa.jsonl"
        path.write_text(path.read_text()[:-10])
        again = sisa(config, *arguments, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        keep = [dict(vars(row), request_seconds=0, deletion_seconds=0) for row in rows]
        found = read_rows(path, SisaRow)
        assert [dict(vars(row), request_seconds=0, deletion_seconds=0) for row in found] == keep


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.forget=random(size=1)", "two examples or more"),
        ("--config.aggregations=('median',)", "unknown aggregation 'median'"),
        # Each takes a process of its own.
        pytest.param(
            "--config.request_batches=(3,)", "do not fill batches of 3", marks=pytest.mark.slow
        ),
        pytest.param(
            "--config.shards=(200,)", "more than the 128 examples", marks=pytest.mark.slow
        ),
        pytest.param("--config.epochs=1", "leave a slice without one", marks=pytest.mark.slow),
    ],
)
def test_mistakes_are_one_line_and_cost_nothing(tmp_path, argument, message):
    result = sisa("sisa_digits.py", argument, cwd=tmp_path)
    assert message in one_line_error(result)
