"""SISA as a row of a study: exact, judged against itself, with words where nothing compares."""

import dataclasses

import jax
import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.deletion import sisa_method as module
from unroll.deletion.aggregated import aggregated_spec, aggregated_variables, log_scores
from unroll.deletion.aggregation import AGGREGATIONS, aggregate
from unroll.deletion.sisa import train_sisa
from unroll.deletion.sisa_method import matching_plan, sisa_method
from unroll.errors import InputError
from unroll.evaluation.study import Study, apply_method, run_study
from unroll.report import markdown_report, summarize
from unroll.report.summary import Interval, Missing
from unroll.training.predict import predict

FORGET = np.array([2, 30, 31])


@pytest.fixture(scope="module")
def result(problem):
    return unroll.unlearn(sisa_method(3, 2), problem)


def test_one_shard_of_one_slice_is_the_single_model_with_the_same_seeds(recorded_run):
    run, plan = recorded_run, matching_plan(recorded_run, 1, 1)
    system = train_sisa(plan)
    seed = int(plan.seeds[0, 1])
    schedule = unroll.data.make_schedule(seed, len(run.dataset), batch_size=16, epochs=3)
    options = dict(seed=seed, initial=plan.initial(0))
    single = unroll.train(run.spec, run.dataset, schedule, **options)
    assert plan.spec == run.spec and schedule.shape == run.schedule.shape
    assert tree.same_bits(system.constituents[0].state, single.state)
    params, model_state = aggregated_variables(system)
    for aggregation in ("mean_logits", "mean_probability"):
        spec = aggregated_spec(run.spec, aggregation)
        scores = predict(spec, params, model_state, run.dataset)
        logits = predict(run.spec, single.state.params, single.state.model_state, run.dataset)
        if aggregation == "mean_probability":
            logits = np.asarray(jax.nn.log_softmax(logits))
        # One model: the same numbers but for the order of float32 sums.
        np.testing.assert_allclose(scores, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_log_scores_are_the_logarithms_of_the_aggregated_scores(aggregation):
    logits = np.random.default_rng(0).normal(size=(5, 40, 4)).astype(np.float32) * 4
    expected = aggregate(logits, aggregation)
    found = np.asarray(log_scores(jax.numpy.asarray(logits), aggregation))
    if aggregation != "mean_logits":
        expected = np.log(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)  # float32 against float64


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_log_scores_stay_finite_where_probabilities_underflow(aggregation):
    logits = np.array([[[500.0, -500.0, 0.0]], [[300.0, -500.0, 0.0]]], np.float32)
    found = np.asarray(log_scores(jax.numpy.asarray(logits), aggregation))
    assert np.isfinite(found).all() and found.argmax() == 0


@pytest.mark.parametrize("normalization", [pytest.param("group", marks=pytest.mark.slow), "batch"])
def test_convolutional_constituents_predict_as_the_system_does(images, normalization):
    spec = unroll.TrainSpec(
        unroll.models.build("cnn", num_classes=3, channels=(4,), normalization=normalization)
    )
    schedule = unroll.data.make_schedule(0, 64, batch_size=16, epochs=1)
    system = train_sisa(matching_plan(unroll.train(spec, images[0], schedule), 2, 1))
    variables = aggregated_variables(system)
    found = predict(aggregated_spec(spec, "mean_logits"), *variables, images[1])
    expected = system.predict(images[1], "mean_logits")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)  # the order of float32 sums


def test_the_deletion_has_the_bits_of_a_system_trained_from_scratch(result, problem):
    plan = matching_plan(problem.run, 3, 2)
    scratch = train_sisa(plan, removed=problem.forget)
    assert tree.same_bits((result.params, result.model_state), aggregated_variables(scratch))
    assert tree.same_bits(result.own.twin, aggregated_variables(scratch))
    assert tree.same_bits(result.own.original, aggregated_variables(train_sisa(plan)))
    assert not tree.same_bits(result.own.original[0], result.params)
    assert result.info["exact"] is True


def test_cost_is_that_of_the_request_and_preparation_is_said_beside_it(result, problem):
    plan = matching_plan(problem.run, 3, 2)
    system = train_sisa(plan)
    _, cost = system.delete(problem.forget)
    assert result.example_gradients == cost.example_gradients < problem.run.example_gradients
    assert result.info["preparation_gradients"] == round(plan.passes * 120) == 3 * 120
    assert result.info["stored_bytes"] == system.state_bytes > 0
    assert "1.00 trainings of the single model (360 example gradients)" in result.info["warning"]


def test_a_difference_from_scratch_would_be_found(problem, monkeypatch):
    """Not assumed to be zero: another system in the place of the one from scratch."""
    original = module.train_sisa

    def other(plan, *, removed, **options):
        return original(plan, removed=[] if len(removed) else removed, **options)

    monkeypatch.setattr(module, "train_sisa", other)
    found = unroll.unlearn(sisa_method(3, 2), problem)
    assert found.info["exact"] is False and not tree.same_bits(found.own.twin[0], found.params)


def test_a_store_keeps_stages_and_the_hash_of_the_training_from_scratch(
    problem, result, tmp_path, monkeypatch
):
    stored = dataclasses.replace(problem, store=unroll.Store(tmp_path))
    first = unroll.unlearn(sisa_method(3, 2), stored)
    calls, original = [], module.train_sisa

    def counted(plan, **options):
        calls.append(options)
        return original(plan, **options)

    monkeypatch.setattr(module, "train_sisa", counted)
    again = unroll.unlearn(sisa_method(3, 2), stored)
    assert len(calls) == 1  # the system before, read back
    for found in (first, again):
        assert tree.same_bits((found.params, *found.own.twin), (result.params, *result.own.twin))
        assert found.info["exact"] is True
        assert found.example_gradients == result.example_gradients


@pytest.fixture(scope="module")
def records(blobs, mlp_spec):
    train, test = blobs
    study = Study(
        name="blobs",
        train=train,
        test=test,
        spec=mlp_spec,
        forget=FORGET,
        forget_description="ids",
        model_name="mlp",
        methods=("taylor(order=1)", sisa_method(2, 1), sisa_method(3, 5)),
        epochs=2,
        batch_size=16,
        train_seeds=(0, 1),
        independents=2,
        record_every=4,
    )
    return [record for batch in run_study(study) for record in batch]


def sisa_row(records, shards):
    (row,) = [r for r in summarize(records) if r.hyperparameters.get("shards") == shards]
    return row


def test_the_row_is_judged_against_itself_and_says_so(records):
    row = sisa_row(records, 2)
    error = row.relative_error
    assert (error.mean, error.count) == (0.0, 2)
    assert "trained from scratch without the forget set" in error.note
    for metric in ("accuracy_gap", "loss_gap", "js_divergence", "activation_distance_l2"):
        own, single = row.get(metric, "test", "twin"), row.get(metric, "test", "independent")
        assert own.mean == 0 and "not with `retrain`" in own.note
        assert single.mean != 0 and "to independent single models" in single.note
    assert row.get("tow", None, "twin").mean == 1
    assert 0 < row.cost_ratio_gradients.mean <= 1
    assert 0 < row.get("accuracy", "test").mean <= 1
    assert "MiB are kept" in row.get("accuracy", "test").note
    assert isinstance(row.get("mia", "forget"), Interval)


def test_what_does_not_apply_says_why_and_nothing_is_silently_missing(records):
    row = sisa_row(records, 2)
    for metric in ("verification_error", "no_unlearning_distance"):
        value = row.get(metric, None, "twin")
        assert isinstance(value, Missing)
        assert value.note.startswith("not applicable: SISA (2 shards of 1 slices) has other param")
    # Two epochs are too few for five slices: a row without values, each with the reason.
    error = sisa_row(records, 3).relative_error
    assert isinstance(error, Missing) and "leave a slice without one" in error.note
    own = [record for record in records if record.method == "sisa"]
    assert all(record.note for record in own if record.value is None)
    assert "not applicable: SISA" in markdown_report(records, "title")
    (taylor,) = [r for r in summarize(records) if r.method == "taylor"]
    assert isinstance(taylor.get("verification_error", None, "twin"), Interval)
    assert taylor.relative_error.note is None


def test_a_shard_that_cannot_be_trained_is_a_row_with_a_reason(blobs, mlp_spec):
    schedule = unroll.data.make_schedule(0, 120, batch_size=16, epochs=1)
    run = unroll.train(mlp_spec, blobs[0], schedule)
    ids = np.flatnonzero(matching_plan(run, 40, 1).assignment.shard == 7)
    with pytest.raises(InputError, match="no example of shard 7 is left; give fewer shards"):
        unroll.unlearn(sisa_method(40, 1), unroll.Problem(run, ids))


def test_what_compares_with_models_of_the_run_refuses_it_before_any_work(problem):
    with pytest.raises(InputError, match="sisa.* makes a model of its own kind"):
        apply_method(sisa_method(2, 1), 0, problem, None, None)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (unroll.optax_call("sgd", 0.1), unroll.optax_call("sgd", 0.1)),
        (
            unroll.optax_call("sgd", unroll.optax_call("cosine_decay_schedule", 0.1, 100)),
            {"decay_steps": 25, "init_value": 0.1},
        ),
        (
            unroll.optax_call(
                "sgd",
                learning_rate=unroll.optax_call(
                    "linear_schedule", init_value=0.1, end_value=0.0, transition_steps=40
                ),
            ),
            {"transition_steps": 10, "transition_begin": 0},
        ),
        # A warmup that takes nearly all of a run must leave the decay a step.
        (
            unroll.optax_call(
                "sgd",
                unroll.optax_call("warmup_cosine_decay_schedule", 0.0, 0.1, 14, 15),
            ),
            {"warmup_steps": 4, "decay_steps": 5},
        ),
    ],
)
def test_learning_rate_schedules_are_stretched_to_a_constituent(optimizer, expected):
    found = module._stretched(optimizer, 0.25)
    if isinstance(expected, dict):
        rate = found.bound()["learning_rate"]
        arguments = rate.bound()
        assert {name: arguments[name] for name in expected} == expected
        found.build()
    else:
        assert found == expected


def test_mistakes(problem, recorded_run, blobs, mlp_spec):
    with pytest.raises(InputError, match="shards"):
        sisa_method(0)
    with pytest.raises(InputError, match="unknown aggregation 'mean'"):
        sisa_method(aggregation="mean")
    weights = np.full(120, 0.5, np.float32)
    weighted = dataclasses.replace(recorded_run, weights=weights)
    with pytest.raises(InputError, match="present or absent only"):
        matching_plan(weighted, 2, 1)
    with pytest.raises(InputError, match="started from a given state"):
        matching_plan(dataclasses.replace(recorded_run, initial="0" * 64), 2, 1)
    with pytest.raises(InputError, match="leave a slice without one"):
        unroll.unlearn(sisa_method(2, 40), problem)
    rate = unroll.optax_call("piecewise_constant_schedule", 0.1)
    with pytest.raises(InputError, match="no length that could be changed"):
        module._stretched(unroll.optax_call("sgd", rate), 0.5)
