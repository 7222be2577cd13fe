"""The experiments on proxies as a user runs them, killed half-way and run again."""

import importlib.util

import grids
import pytest
from run_script import ROOT, run_script

import unroll
from unroll.calls import parse_call
from unroll.evaluation.proxies import ProxyRow
from unroll.evaluation.rows import read_rows

CONFIGS = (
    "proxies",
    "proxies_full",
    "proxies_training",
    "proxies_training_full",
    "positions",
    "positions_full",
)


def proxies(name, *arguments, cwd):
    return run_script("proxies.py", f"unrolling/{name}.py:smoke", *arguments, cwd=cwd)


def test_positions_smoke_run_goes_on_where_it_was(tmp_path):
    first = proxies("positions", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    workdir = tmp_path / "runs" / "positions-smoke"
    rows = read_rows(workdir / "proxies.jsonl", ProxyRow)
    assert [(row.position, row.t, row.uses) for row in rows] == [
        (0, 2, 1),
        (0, 4, 1),
        (2, 2, 0),
        (2, 4, 1),
    ]
    assert [row.no_unlearning > 0 for row in rows] == [True, True, False, True]
    assert rows[-1].forget_batch == 2  # the batch that stands there anyway
    assert all(0 < row.ratio < 0.1 for row in rows if row.uses)  # few small steps
    # Killed while it wrote the last line: that run is measured again, from the stored models.
    text = (workdir / "proxies.jsonl").read_text()
    (workdir / "proxies.jsonl").write_text(text[:-10])
    assert proxies("positions", cwd=tmp_path).returncode == 0
    assert read_rows(workdir / "proxies.jsonl", ProxyRow) == rows
    assert "## digits[128/50], mlp(hidden=(16,))" in (workdir / "proxies.md").read_text()


def test_divergence_is_a_row_without_numbers(tmp_path):
    result = proxies(
        "proxies_training",
        "--config.optimizer.learning_rate=1e30",
        "--config.axes=()",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    workdir = tmp_path / "runs" / "proxies_training-smoke"
    rows = read_rows(workdir / "proxies.jsonl", ProxyRow)
    assert [row.t for row in rows] == [2, 4, 6, 8]
    assert all(row.verification_error is None and "diverged" in row.note for row in rows)
    assert "Left out" in (workdir / "proxies.md").read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config.steps=1", "--config.position=1"], "never uses its batch 1"),
        (["--config.optimizer.name=adam", "--config.optimizer.eps_root=1e-4"], "plain sgd"),
        (["--config.sigma_every=0"], "sigma_every must be a whole number"),
    ],
)
def test_mistakes_show_before_any_work(tmp_path, arguments, message):
    result = proxies("proxies", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "runs" / "proxies-smoke").exists()


def test_cells_that_rows_cannot_tell_apart_are_refused(tmp_path):
    axes = "--config.axes=(('optimizer.learning_rate',(0.1,0.2)),)"
    result = proxies("proxies", axes, cwd=tmp_path)
    assert result.returncode == 1
    assert "two cells of the grid are the same to a row" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", CONFIGS)
def test_cells_can_be_built(name):
    path = ROOT / "configs" / "unrolling" / f"{name}.py"
    description = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    cells = list(grids.cells(module.get_config()))
    assert len(cells) > 1
    for cell in cells:
        model, options = parse_call(cell.model)
        unroll.models.build(model, num_classes=10, **options)
        unroll.Objective(**cell.objective.to_dict())
        assert cell.dataset.startswith("cifar10") and cell.steps > cell.position
