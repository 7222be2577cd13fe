"""The ladder experiment as a user runs it, killed half-way and run again."""

import pytest
from run_script import run_script

from unroll.evaluation.ladder import Rung
from unroll.evaluation.rows import read_rows


def ladder(*arguments, cwd):
    axes = "--config.axes=(('epochs',(1,)),('forget',('random(size=2)',)))"
    return run_script("ladder.py", "unrolling/ladder.py:smoke", axes, *arguments, cwd=cwd)


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


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--config.order=0", "order must be a whole number, 1 or more; got 0"),
        ("--config.axes=(('batch_size',(16,32)),)", "two cells of the grid are the same to a row"),
    ],
)
def test_mistakes_show_before_any_work(tmp_path, argument, message):
    result = ladder(argument, cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr.strip().splitlines()[-1] and "Traceback" not in result.stderr
    assert not (tmp_path / "runs" / "ladder-smoke").exists()


def test_cells_that_cannot_be_measured_are_rows_and_the_grid_goes_on(tmp_path):
    """The first diverges at once; at a rate of 0 in the second original and twin are equal."""
    result = ladder(
        "--config.variants=((('model','mlp(hidden=(8,))'),),)",
        "--config.train_seeds=(0,)",
        "--config.order=1",
        "--config.epochs=1",
        "--config.axes=(('optimizer.learning_rate',(1e30,0.0,0.05)),)",
        "--config.forget=random(size=2)",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    workdir = tmp_path / "runs" / "ladder-smoke"
    rows = read_rows(workdir / "ladder.jsonl", Rung)
    assert [rung.order for rung in rows] == [0, 1] * 3
    assert [rung.relative_error is None for rung in rows] == [True] * 4 + [False] * 2
    assert "diverged" in rows[0].note and "nothing was forgotten" in rows[2].note
    assert "missing in 1 of 1" in (workdir / "ladder.md").read_text()
