"""The penalties script as a user runs it: both kinds of rows, killed and run again, mistakes."""

import numpy as np
import pytest
from run_script import run_script

from unroll.evaluation.penalties import Outcome
from unroll.evaluation.privacy import RiskRow
from unroll.evaluation.rows import read_rows


def penalties(config, *arguments, cwd):
    seeds = "--config.train_seeds=(0,)"
    return run_script("penalties.py", f"unrolling/{config}", seeds, *arguments, cwd=cwd)


def test_outcomes_and_a_run_that_was_killed(tmp_path):
    changes = (
        "--config.variants=((),(('objective.l2',0.5),))",
        "--config.methods=('taylor(order=1)',)",
        "--config.fine_tuning_epochs=0",
    )
    first = penalties("imdb_penalties_full.py:smoke", *changes, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    workdir = tmp_path / "runs" / "imdb_penalties_full-smoke"
    rows = read_rows(workdir / "penalties.jsonl", Outcome)
    assert [(row.penalty, row.horizon) for row in rows] == [
        ("none", "training"),
        ("weight decay", "training"),
    ]
    # At a rate of 2e-5 nothing is nonlinear, apart from rounding.
    assert all(row.relative_error("taylor(order=1)") < 0.05 for row in rows)
    # The training Hessian of a linear model is that of the loss plus lambda: 0.5.
    differences = [row.training_sigma - row.sigma for row in rows]
    np.testing.assert_allclose(differences, [0, 0.5], atol=2e-2)
    assert (workdir / "absolute.png").exists()
    # Killed while it wrote the last line: that cell is measured again, with the same result.
    path = workdir / "penalties.jsonl"
    path.write_text(path.read_text()[:-10])
    assert penalties("imdb_penalties_full.py:smoke", *changes, cwd=tmp_path).returncode == 0
    again = read_rows(path, Outcome)
    assert [row.errors for row in again] == [row.errors for row in rows]


def test_privacy_rows(tmp_path):
    result = penalties("privacy_full.py:smoke", "--config.variants=((),)", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    workdir = tmp_path / "runs" / "privacy_full-smoke"
    rows = read_rows(workdir / "privacy.jsonl", RiskRow)
    assert len(rows) == 8 and {row.forget_size for row in rows} == {8}
    assert {row.horizon for row in rows} == {"training", "fine-tuning"}
    assert all(0 <= row.risk <= 1 for row in rows)
    assert "Spearman" in (workdir / "privacy.md").read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--config.variants=((('objective.l2',0.1),('objective.sd_gamma',0.1)),)"],
            "compared one at a time",
        ),
        (
            ["--config.variants=((),(('batch_size',4),))"],
            "the same to a row, which knows their dataset, model, forget, penalty, strength",
        ),
        (["--config.optimizer.name=adam", "--config.optimizer.eps_root=1e-4"], "plain sgd"),
    ],
)
def test_mistakes_show_before_any_work(tmp_path, arguments, message):
    result = penalties("imdb_penalties_full.py:smoke", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr.strip().splitlines()[-1] and "Traceback" not in result.stderr
    assert not (tmp_path / "runs" / "imdb_penalties_full-smoke").exists()
