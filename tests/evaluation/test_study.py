"""A study: all rows, exact zeros where they belong, resumption, methods that fail."""

import dataclasses

import numpy as np
import pytest

import unroll
from unroll.evaluation.records import Record, append_records, read_records
from unroll.evaluation.study import Study, run_study
from unroll.report import summarize


@pytest.fixture(scope="module")
def study(blobs, mlp_spec):
    train, test = blobs
    return Study(
        name="blobs",
        train=train,
        test=test,
        spec=mlp_spec,
        forget=np.array([2, 30, 31]),
        forget_description="ids",
        model_name="mlp",
        methods=("replay", "gradient_ascent", "taylor(order=1)"),
        epochs=2,
        batch_size=16,
        train_seeds=(0, 1),
        method_seeds=(0, 1),
        independents=2,
        record_every=4,
    )


def flat(study, store=None):
    return [record for batch in run_study(study, store) for record in batch]


@pytest.fixture(scope="module")
def records(study):
    return flat(study)


def values(records, method, metric, oracle=None):
    return [
        r.value
        for r in records
        if (r.method, r.metric, r.oracle) == (method, metric, oracle) and r.at is None
    ]


def test_obligatory_rows_are_there(records):
    for method in ("original", "retrain", "retrain_vs_retrain", "replay", "taylor"):
        for metric, oracle in (
            ("verification_error", "twin"),
            ("relative_verification_error", "twin"),
            ("accuracy", None),
            ("loss", None),
            ("accuracy_gap", "twin"),
            ("accuracy_gap", "independent"),
            ("tow", "twin"),
            ("tow", "independent"),
            ("tow_mia", "twin"),
            ("tow_mia", "independent"),
            ("mia", None),
            ("attack_efficacy", None),
            ("attack_accuracy", None),
            ("js_divergence", "independent"),
            ("activation_distance_l2", "twin"),
            ("activation_distance_l2", "independent"),
        ):
            assert values(records, method, metric, oracle), (method, metric, oracle)


def test_exact_methods_are_exactly_zero_and_doing_nothing_is_one(records):
    assert set(values(records, "retrain", "verification_error", "twin")) == {0.0}
    assert set(values(records, "replay", "verification_error", "twin")) == {0.0}
    assert set(values(records, "original", "relative_verification_error", "twin")) == {1.0}
    assert set(values(records, "retrain", "tow", "twin")) == {1.0}
    assert set(values(records, "retrain", "tow_mia", "twin")) == {1.0}
    assert all(v > 1 for v in values(records, "retrain_vs_retrain", "verification_error", "twin"))


def test_seeds_are_all_there(records):
    rows = [r for r in records if r.method == "taylor" and r.metric == "mia"]
    assert {(r.train_seed, r.method_seed) for r in rows} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_costs_are_relative_to_the_twin(records):
    by_method = {r.method: r for r in records if r.metric == "mia"}
    assert by_method["retrain"].cost_ratio_gradients == 1.0
    assert by_method["original"].cost_ratio_gradients == 0.0
    # Both seeds use a forgotten example before the first snapshot at step 4: from the start on.
    assert by_method["taylor"].cost_ratio_gradients == 3.0
    # The independent retrain never sees the three forgotten examples.
    assert by_method["retrain_vs_retrain"].cost_ratio_gradients == pytest.approx(117 / 120)


def test_independent_oracles_leave_the_null_row_out(records):
    """A model compared with itself would give a divergence of zero."""
    assert all(v > 0 for v in values(records, "retrain_vs_retrain", "js_divergence", "independent"))


@pytest.mark.parametrize(
    ("metric", "highest"), [("true_class_probability", 1.0), ("output_entropy", np.log(3))]
)
def test_quantiles(records, metric, highest):
    quantiles = [r for r in records if r.metric == metric and r.method == "original"]
    assert {r.at for r in quantiles} >= {0.0, 0.5, 1.0}
    assert all(0 <= r.value <= highest for r in quantiles)


def test_curves(records):
    curves = [r for r in records if r.metric == "training_loss"]
    assert {r.method for r in curves} == {"original", "retrain"}
    # Two models, two seeds, two epochs of 7 full batches (and one padded batch, left out).
    assert len(curves) == 2 * 2 * 2 * 7


def test_the_same_study_gives_the_same_records(study, records, tmp_path):
    def numbers(found):
        drop = {"seconds", "cost_ratio_seconds"}
        return [
            {k: v for k, v in dataclasses.asdict(record).items() if k not in drop}
            for record in found
        ]

    store = unroll.Store(tmp_path)
    assert numbers(flat(study, store)) == numbers(records)
    assert numbers(flat(study, store)) == numbers(records)


def test_an_interrupted_study_goes_on(study, records, tmp_path, monkeypatch):
    """Stop after the first seed; its training steps are not taken again."""
    from unroll.training import loop

    taken = []
    advance = loop.advance

    def counting(*arguments):
        taken.append(arguments[-1] - arguments[-2])
        return advance(*arguments)

    monkeypatch.setattr(loop, "advance", counting)
    flat(study, unroll.Store(tmp_path / "whole"))
    whole = sum(taken)
    taken.clear()
    store = unroll.Store(tmp_path / "interrupted")
    running = run_study(study, store)
    for _ in range(9):  # curves, three rows, three methods with two seeds each but one
        next(running)
    running.close()
    first = sum(taken)
    taken.clear()
    assert len(flat(study, store)) == len(records)
    assert 0 < sum(taken) < whole
    # What the interruption can repeat is less than one method's work.
    assert whole <= first + sum(taken) <= whole + 16


def test_a_diverging_method_is_a_note_and_not_a_number(study):
    broken = dataclasses.replace(
        study, methods=("gradient_ascent(learning_rate=1e30)",), method_seeds=(0,), train_seeds=(0,)
    )
    records = flat(broken)
    missing = [r for r in records if r.method == "gradient_ascent"]
    assert {r.value for r in missing} == {None}
    assert all("diverged" in r.note for r in missing)
    # Every metric is missing, not only one: a mean over the seeds that survived would flatter.
    replayed = {r.metric for r in records if r.method == "retrain"} - {"training_loss"}
    assert {r.metric for r in missing} == replayed
    summarize(records)


def test_a_method_that_does_not_fit_the_run_loses_nothing_else(study, mlp_spec):
    adam = dataclasses.replace(mlp_spec, optimizer=unroll.optax_call("adam", 1e-3, eps_root=1e-8))
    mixed = dataclasses.replace(study, spec=adam, methods=("single_gradient", "replay"))
    records = flat(mixed)
    assert all("plain sgd" in r.note for r in records if r.method == "single_gradient")
    assert set(values(records, "replay", "verification_error", "twin")) == {0.0}


def test_forgetting_what_was_never_used_is_said(study):
    """With `drop` and one batch per epoch some examples are never used."""
    lonely = dataclasses.replace(study, partial="drop", batch_size=100, epochs=1, methods=())
    unused = np.setdiff1d(np.arange(120), lonely.schedule(0))[:2]
    records = flat(dataclasses.replace(lonely, forget=unused, train_seeds=(0,)))
    relative = [r for r in records if r.metric == "relative_verification_error"]
    assert all(r.value is None and "nothing" in r.note for r in relative)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(methods=("tailor",)), "unknown method"),
        (dict(train_seeds=()), "at least one training seed"),
        (dict(independents=1), "2 or more"),
        (dict(train_seeds=(1_000_000,)), "between 0 and"),
        (dict(train_seeds=(1, 0, 1)), "a seed twice: a copy is no repetition"),
        (dict(forget=np.array([], int)), "at least one example"),
    ],
)
def test_bad_studies(study, change, message):
    with pytest.raises(unroll.InputError, match=message):
        dataclasses.replace(study, **change)


def make_record(**change):
    base = dict(
        experiment="e", dataset="d", model="m", forget="f", forget_size=1, method="taylor",
        hyperparameters={"order": 2}, train_seed=0, method_seed=0, metric="tow", split=None,
        value=0.5,
    )  # fmt: skip
    return Record(**{**base, **change})


def test_records_survive_a_cut_last_line(tmp_path):
    path = tmp_path / "records.jsonl"
    written = [make_record(value=v) for v in (0.1, None, 0.3)]
    append_records(path, written)
    assert read_records(path) == written
    path.write_text(path.read_text()[:-20])
    assert read_records(path) == written[:2]
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(unroll.InputError, match=":1 is not a record"):
        read_records(path)


def test_records_refuse_nan():
    with pytest.raises(unroll.InputError, match="store None"):
        make_record(value=float("nan"))
