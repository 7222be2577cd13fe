"""Side channels and noisy fine-tuning: their smoke forms, in here and as a user runs them."""

import importlib
import json

import numpy as np
import pytest
from run_script import one_line_error, run_here, run_script, smoke_config

from unroll.errors import InputError


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def as_a_user(script, config, cwd):
    result = run_script(f"{script}.py", f"deletion/{config}.py:smoke", cwd=cwd)
    assert result.returncode == 0, result.stderr
    return cwd / "runs" / f"{config}-smoke"


def check_side_channels(workdir):
    rows, counted = (rows_of(workdir / f"{part}.jsonl") for part in ("observations", "counted"))
    constant = [row for row in rows if row["way"].startswith("constant work")]
    assert len({(row["example_gradients"], row["states"]) for row in constant}) == 1
    assert len({row["example_gradients"] for row in rows if row["way"] == "plain"}) > 2
    told = {(row["way"], row["secret"]): row["bits"] for row in counted}
    assert told["plain", "slice of the example"] == pytest.approx(1)
    assert {told[way, "slice of the example"] for way in ("constant work", "single model")} == {0}
    assert not list(workdir.glob(".store-*"))
    assert (workdir / "side_channels.png").stat().st_size > 5000


SIDE_CHANNELS = "deletion/side_channels_digits.py"


def planned(**changes):
    """The module of the experiment, its config and its plan, without training."""
    module, config = importlib.import_module("side_channels"), smoke_config(SIDE_CHANNELS)
    config.update(changes)
    train, *_ = module.from_config.load_data(config)
    return module, config, module._plan(config, train, 0)


def test_what_is_asked_for_and_what_is_counted():
    module, config, plan = planned(pairs=6)
    requests = module._requests(config, plan)
    ids = np.concatenate([each for _, each in requests])
    assert len(np.unique(ids)) == len(ids) == 2 + 4 + 2 * 6
    pairs = [each for kind, each in requests if kind == "two"]
    assert sum(len(np.unique(plan.assignment.shard[pair])) == 1 for pair in pairs) == 3
    assert [kind for kind, _ in requests].count("none") == 2
    told = {(row.way, row.secret): row.bits for row in module._count(plan, (384, 24, 1))}
    assert told["plain", "slice of the example"] == pytest.approx(1)
    assert {bits for (way, _), bits in told.items() if way != "plain"} == {0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(pairs=3), "pairs must be a whole number, 4 or more"),
        (dict(shards=64, slices=1), "leave no pairs"),
        (dict(shards=1), "two shards or more"),
        (dict(requests=40), "too many requests"),
    ],
)
def test_requests_that_cannot_be_made_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        planned(**changes)


@pytest.mark.slow
def test_side_channels_as_a_user_runs_them(tmp_path):
    check_side_channels(as_a_user("side_channels", "side_channels_digits", tmp_path))


def check_noisy_fine_tuning(workdir, seeds, clippings):
    rows = rows_of(workdir / "noisy.jsonl")
    # Original, retrained, 4 without noise, each clipping with and without quiet steps.
    assert len(rows) == seeds * (2 + 4 + 2 * clippings) and not [row for row in rows if row["note"]]
    assert all(row["sigma"] > 0 for row in rows if row["method"] == "noisy fine-tuning")
    page = (workdir / "noisy.md").read_text()
    assert "destroys the model" in page and "is a certificate" not in page
    assert (workdir / "noisy.png").stat().st_size > 5000


def test_noisy_fine_tuning(tmp_path):
    script, config = "noisy_fine_tuning", "deletion/noisy_digits.py"
    small = dict(train_seeds=(0,), clippings=("gradient",))
    check_noisy_fine_tuning(run_here(script, config, tmp_path, **small), 1, 1)


@pytest.mark.slow
def test_noisy_fine_tuning_as_a_user_runs_it(tmp_path):
    check_noisy_fine_tuning(as_a_user("noisy_fine_tuning", "noisy_digits", tmp_path), 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "config", "argument", "message"),
    [
        ("side_channels.py", "side_channels_digits", "--config.pairs=3", "pairs must be"),
        ("noisy_fine_tuning.py", "noisy_digits", "--config.delta=2.0", "delta below 1"),
        ("noisy_fine_tuning.py", "noisy_digits", "--config.epsilons=()", "one epsilon or more"),
    ],
)
def test_mistakes_are_one_line_and_cost_nothing(tmp_path, script, config, argument, message):
    result = run_script(script, f"deletion/{config}.py:smoke", argument, cwd=tmp_path)
    assert message in one_line_error(result)
