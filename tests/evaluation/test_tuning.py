"""Sweeps: equal budgets, disjoint forget sets, and which candidate is chosen."""

import dataclasses
import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import unroll
from unroll.evaluation.rows import append_rows, read_rows
from unroll.evaluation.tuning import (
    Trial,
    candidates,
    choose,
    development_ids,
    seed_values,
    trials,
)
from unroll.report.tuning import write_tuning

RATES = ("learning_rate", (0.001, 0.01, 0.1))
ASCENTS = ("maximisation_epochs", (1, 2))


def trial(method, seed, tow, cost=0.1, **hyperparameters):
    return Trial(
        "sweep", "digits", "mlp", "random()", 5, method, hyperparameters, seed, 0, tow, cost=cost
    )


def sweep(method, by_rate, cost=0.1):
    return [
        trial(method, seed, value, cost, learning_rate=rate, epochs=1)
        for rate, values in by_rate.items()
        for seed, value in enumerate(values)
    ]


def test_a_grid_is_every_value_of_each_axis():
    found = candidates([("finetune", [RATES, ("epochs", (1, 2))]), ("scrub", [RATES, ASCENTS])], 6)
    assert len(found) == len(set(found)) == 12
    assert found[0] == "finetune(epochs=1, learning_rate=0.001)"
    assert sum(text.startswith("scrub(") for text in found) == 6


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ([("finetune", [RATES])], "grid of finetune has 3 candidates"),
        ([("finetune", [("learning_rate", (0.1, 0.1))])], "1 of them distinct"),
        ([("finetune", [("epochs", (1, 1.0))])], "whole number"),
        ([("finetune", [("rate", (1, 2))])], "no 'rate'"),
        ([("fine", [RATES])], "unknown method"),
        ([("finetune", [("epochs", (1, 2))])] * 2, "there twice"),
    ],
)
def test_unequal_budgets_and_bad_candidates_are_refused(grids, message):
    with pytest.raises(unroll.InputError, match=message):
        candidates(grids, 2)


@hypothesis.given(st.sets(st.integers(0, 49), min_size=1), st.sets(st.integers(0, 49)))
def test_the_development_set_is_disjoint_from_the_test_set(chosen, test):
    left = chosen - test
    arrays = (np.array(sorted(ids), np.int64) for ids in (chosen, test))
    if len(left) < 0.5 * len(chosen) or len(left) == 50:
        with pytest.raises(unroll.InputError):
            development_ids(*arrays, 50)
    else:
        assert development_ids(*arrays, 50).tolist() == sorted(left)


def test_the_best_mean_wins_and_the_edge_is_said():
    rows = sweep("finetune", {0.001: (0.5, 0.6), 0.01: (0.9, 0.8), 0.1: (0.95, 0.7)})
    rows += sweep("scrub", {0.001: (0.9, 0.9), 0.01: (0.2, 0.2), 0.1: (0.1, 0.1)})
    rows += [trial("original", 0, 0.99), trial("retrain", 0, 1.0)]
    tuned, scrubbed = choose(rows, "tow")
    assert tuned.method == "finetune"
    assert tuned.best.label == "finetune(epochs=1, learning_rate=0.01)"
    assert tuned.best.mean == pytest.approx(0.85)
    assert tuned.runner_up.label == "finetune(epochs=1, learning_rate=0.1)"
    assert tuned.edges == ()
    assert scrubbed.edges == ("learning_rate=0.001 (smallest tried)",)


def test_failed_and_costly_candidates_are_not_eligible():
    rows = sweep("finetune", {0.001: (0.5, 0.5)}, cost=0.3)
    rows += sweep("finetune", {0.01: (0.9, 0.9)}, cost=0.7)
    rows += sweep("finetune", {0.1: (0.99, None)})
    rows[-1] = dataclasses.replace(rows[-1], note="diverged")
    (choice,) = choose(rows, "tow", most_cost=0.5)
    assert choice.best.label == "finetune(epochs=1, learning_rate=0.001)"
    assert choice.runner_up is None
    assert [refused.note for refused in choice.refused] == [
        "costs 0.7 of retraining",
        "failed on 1 of 2 seeds: diverged",
    ]
    (choice,) = choose(rows, "tow")
    assert choice.best.label == "finetune(epochs=1, learning_rate=0.01)"
    (nothing,) = choose(rows[-2:], "tow")
    assert nothing.best is None and nothing.edges == ()


def test_method_seeds_are_averaged_before_training_seeds():
    rows = [
        dataclasses.replace(trial("finetune", seed, tow), method_seed=other)
        for seed, other, tow in ((0, 0, 0.1), (0, 1, 0.3), (1, 0, 0.6), (1, 1, None))
    ]
    assert seed_values(rows, "tow") == pytest.approx((0.2,))


def test_unknown_criterion():
    with pytest.raises(unroll.InputError, match="unknown criterion 'accuracy'"):
        choose([], "accuracy")


@pytest.fixture(scope="module")
def studied():
    train, test = unroll.data.load("blobs", num_train=60, num_test=30, num_classes=3)
    study = unroll.Study(
        name="sweep",
        train=train,
        test=test,
        spec=unroll.TrainSpec(
            unroll.models.build("mlp", num_classes=train.num_classes, hidden=(8,))
        ),
        forget=np.arange(5),
        forget_description="first",
        model_name="mlp",
        methods=candidates([("finetune", [("learning_rate", (0.01, 1e38)), ("epochs", (1,))])], 2),
        epochs=1,
        batch_size=16,
        train_seeds=(0, 1),
        independents=2,
    )
    return list(unroll.run_study(study))


def test_a_trial_has_the_numbers_of_its_records(studied):
    rows = list(trials(studied))
    # Three references and two candidates on each of two seeds.
    assert len(rows) == len({row.place for row in rows}) == 10
    records = [record for records in studied for record in records]
    by_method = {row.method: row for row in rows if row.train_seed == 1}
    assert by_method["retrain"].tow == 1 and by_method["retrain"].cost == 1
    for metric, split, oracle, name in (
        ("tow", None, "independent", "tow_independent"),
        ("accuracy", "retain", None, "retain_accuracy"),
    ):
        for row in rows:
            (value,) = (
                record.value
                for record in records
                if (record.metric, record.split, record.oracle) == (metric, split, oracle)
                and (record.label, record.train_seed) == (row.label, row.train_seed)
            )
            assert getattr(row, name) == value
    failed = [row for row in rows if row.tow is None]
    assert len(failed) == 2 and all("not finite" in row.note for row in failed)


def test_rows_are_kept_and_written_as_a_table(studied, tmp_path):
    rows = list(trials(studied))
    append_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl", Trial) == rows
    assert json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])["method"] == "original"
    page = write_tuning(rows, tmp_path, "Sweep", criterion="tow", most_cost=2.0).read_text()
    assert "Every method has 2 candidates." in page
    assert "| `retrain` | oracle | 1 |" in page
    assert "| `finetune` | `learning_rate=0.01` |" in page
    assert "learning_rate=0.01 (smallest tried) | 1 of 2 |" in page
    assert "- `finetune`, `learning_rate=1e+38`: failed on 2 of 2 seeds" in page
