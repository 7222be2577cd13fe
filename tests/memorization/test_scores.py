"""Scores against known answers, and models on subsets: resumed, extended, spread over devices."""

import dataclasses
import re

import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unroll
from unroll.errors import DivergenceError, InputError
from unroll.memorization import subsets
from unroll.memorization.scores import (
    exact_scores,
    influence,
    influence_standard_errors,
    load_scores,
    memorization,
    released_scores,
    save_scores,
    scores_of,
    top_influences,
    top_pairs,
)
from unroll.memorization.subsets import (
    SubsetRecipe,
    ensemble_logits,
    models_left,
    outputs_of,
    subset_weights,
    train_on_subsets,
)
from unroll.training.devices import model_mesh

WRONG = 7
"""The mislabelled example of `mislabelled`."""


def mesh_of(devices):
    return model_mesh(jax.local_devices()[:devices])


@pytest.fixture(scope="module")
def mislabelled():
    """Separable blobs with one wrong label, and a model that can learn it by heart."""
    train, test = unroll.data.load(
        "blobs", num_train=40, num_test=20, num_features=30, num_classes=2, noise=0.4
    )
    train = unroll.data.mislabel(train, ids=[WRONG])
    spec = unroll.TrainSpec(
        unroll.models.build("mlp", num_classes=2, hidden=(32,)),
        optimizer=unroll.optax_call("adam", learning_rate=0.03),
    )
    return spec, train, test


def recipe_of(case, models=16, **changes):
    spec, train, _ = case
    fields = dict(models=models, epochs=12, batch_size=10, share=0.5, group_size=4)
    return SubsetRecipe(spec, train, **{**fields, **changes})


# Subsets


@settings(max_examples=10, deadline=None)
@given(
    models=st.integers(1, 9),
    count=st.integers(2, 30),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**32 - 1),
)
def test_subsets_have_the_asked_size_whatever_the_shape(models, count, share, seed):
    size = round(share * count)
    if not 0 < size < count:
        with pytest.raises(InputError, match="models with and without"):
            subset_weights(seed, models, count, share)
        return
    included = subset_weights(seed, models, count, share)
    assert included.shape == (models, count) and included.dtype == bool
    np.testing.assert_array_equal(included.sum(axis=1), size)


def test_a_row_depends_on_its_index_and_the_seed_only():
    many = subset_weights(3, 20, 50, 0.7)
    np.testing.assert_array_equal(subset_weights(3, 5, 50, 0.7), many[:5])
    np.testing.assert_array_equal(subset_weights(3, [11, 4], 50, 0.7), many[[11, 4]])
    assert (subset_weights(4, 20, 50, 0.7) != many).any(axis=1).all()
    assert len(np.unique(many, axis=0)) == 20


def test_every_example_is_as_likely_in_a_subset():
    included = subset_weights(0, 2000, 20, 0.7)
    # Five standard deviations of a mean of 2000 draws with probability 0.7.
    np.testing.assert_allclose(included.mean(axis=0), 0.7, atol=5 * np.sqrt(0.21 / 2000))


# Memorization


def test_a_table_of_its_examples_memorizes_what_is_unique():
    included = subset_weights(0, 60, 10, 0.7)
    estimate = memorization(included, included)
    np.testing.assert_array_equal(estimate.values, 1.0)
    np.testing.assert_array_equal(estimate.standard_errors, 0.0)
    np.testing.assert_array_equal(estimate.included + estimate.excluded, 60)


def test_a_copy_in_the_training_set_leaves_what_the_copy_does_not_explain():
    """Excluded, an example is right by its copy in 0.7 of the subsets: its score is 0.3."""
    included = subset_weights(0, 3000, 200, 0.7)
    correct = included.copy()
    correct[:, 0] = correct[:, 1] = included[:, 0] | included[:, 1]
    estimate = memorization(correct, included)
    # Four standard errors, themselves sqrt(0.21 / 900) for the 900 models without an example.
    np.testing.assert_allclose(estimate.standard_errors[:2], np.sqrt(0.21 / 900), rtol=0.1)
    np.testing.assert_allclose(estimate.values[:2], 0.3, atol=4 * np.sqrt(0.21 / 900))
    np.testing.assert_array_equal(estimate.values[2:], 1.0)


@pytest.mark.parametrize("soft", [False, True])
def test_standard_errors_are_those_of_a_bootstrap(soft):
    generator = np.random.default_rng(0)
    included = subset_weights(1, 120, 3, 0.7)
    chance = np.where(included, 0.9, 0.4)
    correct = generator.random(chance.shape) < chance
    if soft:
        correct = np.clip(chance + generator.normal(scale=0.2, size=chance.shape), 0, 1)
    estimate = memorization(correct, included)
    draws = []
    for _ in range(2000):
        rows = generator.integers(0, 120, 120)
        draws.append(memorization(correct[rows], included[rows]).values)
    # 2000 draws fix a standard deviation to 2%; a bootstrap's is smaller by about 1/(2 * 36).
    np.testing.assert_allclose(estimate.standard_errors, np.std(draws, axis=0), rtol=0.08)


def test_the_squared_standard_error_has_no_bias():
    """Over many repetitions its mean is the variance of the scores."""
    generator = np.random.default_rng(0)
    included = np.tile(np.arange(8)[:, None] < 5, (1, 40000))
    correct = generator.random(included.shape) < np.where(included, 0.8, 0.3)
    estimate = memorization(correct, included)
    # 40000 repetitions fix a variance to sqrt(2 / 40000), 0.7%.
    exact = 0.16 / 5 + 0.21 / 3
    assert np.mean(estimate.standard_errors**2) == pytest.approx(exact, rel=0.03)
    assert np.var(estimate.values) == pytest.approx(exact, rel=0.03)


def test_too_few_models_are_refused():
    included = np.ones((4, 3), bool)
    included[:2, :2] = False
    with pytest.raises(InputError, match=r"example 2 is in 4 of 4 subsets \(1 such"):
        memorization(np.ones((4, 3)), included)
    with pytest.raises(InputError, match="not finite"):
        memorization(np.full((4, 2), np.nan), included[:, :2])
    with pytest.raises(InputError, match="same models and examples"):
        memorization(np.ones((4, 2)), included)


# Influence


@settings(max_examples=25, deadline=None)
@given(tests=st.integers(1, 300), count=st.integers(2, 12), soft=st.booleans())
def test_influence_is_the_loop_over_pairs(tests, count, soft):
    generator = np.random.default_rng(tests * count)
    included = np.zeros((9, count), bool)
    for column in included.T:
        column[generator.permutation(9)[: generator.integers(2, 8)]] = True
    correct = generator.random((9, tests)) if soft else generator.random((9, tests)) < 0.6
    found, errors = influence(correct, included), influence_standard_errors(correct, included)
    assert found.shape == errors.shape == (tests, count) and found.dtype == np.float32
    for test in {0, tests // 2, tests - 1}:
        for train in range(count):
            inside = correct[included[:, train], test].astype(float)
            outside = correct[~included[:, train], test].astype(float)
            # float32 sums of 9 terms below 1; the root of a rounding of 1e-7 is 3e-4.
            assert found[test, train] == pytest.approx(inside.mean() - outside.mean(), abs=1e-6)
            variance = inside.var(ddof=1) / len(inside) + outside.var(ddof=1) / len(outside)
            assert errors[test, train] == pytest.approx(np.sqrt(variance), abs=1e-3)


def test_the_influence_of_the_training_set_on_itself_has_the_scores_on_its_diagonal():
    included = subset_weights(0, 40, 12, 0.7)
    correct = np.random.default_rng(0).random((40, 12))
    estimate = memorization(correct, included)
    # float32 against float64.
    np.testing.assert_allclose(np.diag(influence(correct, included)), estimate.values, atol=1e-6)
    errors = np.diag(influence_standard_errors(correct, included))
    np.testing.assert_allclose(errors, estimate.standard_errors, rtol=1e-4)


def test_top_influences_are_in_order_and_ties_go_to_the_lower_id():
    influences = np.array([[0.1, 0.5, 0.5, -1.0], [0.0, 0.7, 0.2, 0.0], [0.0, 0.0, 0.6, 0.0]])
    assert [pair.train for pair in top_influences(influences, 0, 3)] == [1, 2, 0]
    assert top_pairs(influences, 5) == [(1, 1, 0.7), (2, 2, 0.6)]


def test_outputs_are_correctness_and_the_probability_of_the_true_class():
    logits = np.log(np.array([[[0.7, 0.3], [0.2, 0.8]], [[0.4, 0.6], [0.5, 0.5]]])) + 80
    outputs = outputs_of(logits.astype(np.float32), np.array([0, 1]))
    np.testing.assert_array_equal(outputs.correct, [[True, True], [False, False]])
    # float32 at logits near 80 has a spacing of 8e-6.
    np.testing.assert_allclose(outputs.probability, [[0.7, 0.8], [0.4, 0.5]], atol=1e-5)
    with pytest.raises(InputError, match="accuracy or probability"):
        outputs.measured("loss")


# Models


@pytest.mark.parametrize("measure", ["accuracy", "probability"])
def test_a_wrong_label_among_separable_points_is_the_most_memorized(mislabelled, measure):
    spec, train, test = mislabelled
    scores = exact_scores(
        spec, train, models=32, epochs=30, batch_size=14, test=test, measure=measure
    )
    assert scores.values.argmax() == WRONG
    assert scores.values[WRONG] > 0.5 and np.median(scores.values) < 0.05
    np.testing.assert_array_equal(scores.labels, train.labels)
    assert scores.info["accuracy_included"] > scores.info["accuracy_excluded"] > 0.9
    assert scores.info["accuracy_test"] > 0.9
    assert scores.info["example_gradients"] == 32 * 30 * 28 and scores.info["seconds"] > 0


def test_each_model_is_a_run_on_its_own_examples(mislabelled):
    recipe = recipe_of(mislabelled)
    schedules = recipe.schedules([3, 8])
    assert schedules.shape == (2, recipe.steps, 10) and recipe.steps == 24
    for model, schedule in zip([3, 8], schedules, strict=True):
        np.testing.assert_array_equal(np.unique(schedule), np.flatnonzero(recipe.included[model]))
    assert len(set(recipe.training_seeds(range(16)))) == 16


def test_predictions_are_those_of_the_single_models_on_any_number_of_devices(mislabelled):
    spec, train, test = mislabelled
    schedule = unroll.data.make_schedule(0, len(train), 20, 2)
    ensemble = unroll.train_ensemble(spec, train, schedule, seeds=(0, 1, 2), mode="sequential")
    singles = [
        unroll.predict(spec, state.params, state.model_state, test)
        for state in map(ensemble.member, range(3))
    ]
    for devices in (1, 2, 4):
        logits = ensemble_logits(ensemble, test, mesh_of(devices))
        # One program for all devices may sum in another order than `predict`.
        np.testing.assert_allclose(logits, singles, rtol=1e-5, atol=1e-5)


def test_predictions_in_parts_are_those_in_one(mislabelled, monkeypatch):
    spec, train, _ = mislabelled
    schedule = unroll.data.make_schedule(0, len(train), 20, 1)
    ensemble = unroll.train_ensemble(spec, train, schedule, seeds=(0, 1), mode="sequential")
    whole = ensemble_logits(ensemble, train, mesh_of(1))
    monkeypatch.setattr(subsets, "_PREDICTED_AT_ONCE", 17)
    # 17 does not divide 40; another size of batch is another program.
    np.testing.assert_allclose(ensemble_logits(ensemble, train, mesh_of(1)), whole, atol=1e-5)


class Killed(Exception):
    pass


def killed_after(models, recipe):
    def progress(done, total):
        assert total == recipe.models * recipe.steps
        if done > models * recipe.steps:
            raise Killed

    return progress


def same_outputs(first, second):
    for one, other in zip((first.train, first.test), (second.train, second.test), strict=True):
        chex.assert_trees_all_equal(dataclasses.astuple(one), dataclasses.astuple(other))


def counting(monkeypatch):
    """The ensembles that are trained from here on, as lists of seeds."""
    trained, original = [], subsets.train_ensemble

    def train_ensemble(*arguments, seeds, **options):
        trained.append(seeds)
        return original(*arguments, seeds=seeds, **options)

    monkeypatch.setattr(subsets, "train_ensemble", train_ensemble)
    return trained


def test_a_killed_ensemble_goes_on_and_a_finished_one_is_read_back(
    mislabelled, tmp_path, monkeypatch
):
    recipe, test, mesh = recipe_of(mislabelled), mislabelled[2], mesh_of(1)
    undisturbed = train_on_subsets(recipe, test, mesh=mesh)
    store = unroll.Store(tmp_path)
    assert models_left(recipe, test, store=store, mesh=mesh) == 16
    with pytest.raises(Killed):
        train_on_subsets(recipe, test, store=store, mesh=mesh, progress=killed_after(4, recipe))
    assert models_left(recipe, test, store=store, mesh=mesh) == 12
    trained, reports = counting(monkeypatch), []
    again = train_on_subsets(
        recipe, test, store=store, mesh=mesh, progress=lambda *report: reports.append(report)
    )
    assert [len(seeds) for seeds in trained] == [4, 4, 4]
    assert reports[0] == (4 * recipe.steps, 16 * recipe.steps)
    assert reports[-1] == (16 * recipe.steps, 16 * recipe.steps)
    same_outputs(again, undisturbed)
    # No weights are left, in what a kill left behind either.
    assert not list(tmp_path.glob("unfinished-*"))
    trained.clear()
    third = train_on_subsets(recipe, test, store=store, mesh=mesh)
    same_outputs(third, undisturbed)
    assert not trained and third.seconds == pytest.approx(again.seconds)


def test_more_models_go_on_from_fewer_and_a_test_set_is_not_needed_again(
    mislabelled, tmp_path, monkeypatch
):
    store, test, mesh = unroll.Store(tmp_path), mislabelled[2], mesh_of(1)
    few = train_on_subsets(recipe_of(mislabelled, 14), test, store=store, mesh=mesh)
    trained = counting(monkeypatch)
    many = train_on_subsets(recipe_of(mislabelled, 20), store=store, mesh=mesh)
    # Of 14 models two were alone in a fourth group, which now has four.
    assert [len(seeds) for seeds in trained] == [4, 4]
    assert many.test is None
    np.testing.assert_array_equal(many.train.probability[:12], few.train.probability[:12])
    np.testing.assert_array_equal(many.recipe.included[:14], few.recipe.included)


def test_two_devices_give_the_same_models_up_to_rounding(mislabelled):
    recipe = recipe_of(mislabelled, epochs=2)
    one, two = (train_on_subsets(recipe, mesh=mesh_of(devices)) for devices in (1, 2))
    # Sums of another order over 4 steps.
    np.testing.assert_allclose(one.train.probability, two.train.probability, atol=1e-4)


def test_a_model_that_diverges_is_named(mislabelled):
    spec = dataclasses.replace(
        mislabelled[0], optimizer=unroll.optax_call("sgd", learning_rate=1e30)
    )
    with pytest.raises(DivergenceError) as caught:
        train_on_subsets(recipe_of((spec, *mislabelled[1:])), mesh=mesh_of(1))
    assert re.match(r"model \d+ on its subset: training diverged", str(caught.value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(models=0), "models must be"),
        (dict(models=3), "train more models"),
        (dict(share=1.0), "models with and without"),
        (dict(share=-1), "share must be"),
        (dict(epochs=0), "epochs must be"),
        (dict(measure="loss"), "accuracy or probability"),
    ],
)
def test_mistakes_cost_no_training(mislabelled, monkeypatch, changes, message):
    trained = counting(monkeypatch)
    fields = dict(models=16, epochs=2, batch_size=10, share=0.5)
    with pytest.raises(InputError, match=message):
        exact_scores(mislabelled[0], mislabelled[1], **{**fields, **changes})
    assert not trained


# Files


@pytest.fixture(scope="module")
def scores(mislabelled):
    return scores_of(train_on_subsets(recipe_of(mislabelled, epochs=1), mesh=mesh_of(1)))


def test_scores_survive_a_file(scores, tmp_path):
    path = tmp_path / "scores.npz"
    save_scores(path, scores)
    again = load_scores(path, scores.labels)
    for field in dataclasses.fields(scores):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(scores, field.name))
    assert again.info == scores.info and again.info["models"] == 16
    with np.load(path) as file:
        names = {"memorization", "standard_error", "included", "excluded", "labels", "info"}
        assert set(file.files) == names
    assert [each.name for each in tmp_path.iterdir()] == ["scores.npz"]


def test_scores_of_other_labels_are_refused(scores, tmp_path):
    save_scores(tmp_path / "scores.npz", scores)
    other = scores.labels.copy()
    other[5] = 1 - other[5]
    with pytest.raises(InputError, match=r"example 5 has label . there and . here \(1 differ"):
        load_scores(tmp_path / "scores.npz", other)
    with pytest.raises(InputError, match="40 examples, the labels of 39"):
        load_scores(tmp_path / "scores.npz", other[:-1])
    with pytest.raises(InputError, match="no file"):
        load_scores(tmp_path / "none.npz", other)
    (tmp_path / "text.npz").write_text("scores")
    with pytest.raises(InputError, match="not an npz file"):
        load_scores(tmp_path / "text.npz", other)


def test_released_scores_are_checked_against_the_order_of_the_labels(tmp_path):
    labels, values = np.array([3, 1, 4, 1, 5]), np.linspace(0, 1, 5)
    path = tmp_path / "cifar100_infl_matrix.npz"
    np.savez(path, tr_mem=values, tr_labels=labels, tt_labels=labels[:2])
    found = released_scores(path, labels)
    np.testing.assert_array_equal(found.values, values)
    assert found.standard_errors is None and found.info["checked"]
    ids = np.array([4, 0])
    np.testing.assert_array_equal(released_scores(path, labels[ids], ids).values, values[ids])
    with pytest.raises(InputError, match="example 0 has label 3 there and 1 here"):
        released_scores(path, labels[[1, 0, 2, 3, 4]])
    with pytest.raises(InputError, match="give ids"):
        released_scores(path, labels[:3])
    save_scores(tmp_path / "again.npz", found)
    np.testing.assert_array_equal(load_scores(tmp_path / "again.npz", labels).values, values)


def test_released_scores_without_labels_need_a_word_for_them(tmp_path):
    labels, values = np.array([3, 1, 4]), np.array([0.1, 0.2, 0.3])
    path = tmp_path / "estimates_results_woShuffle.npz"
    np.savez(path, memorization=values, influence=np.eye(3))
    with pytest.raises(InputError, match="unchecked=True"):
        released_scores(path, labels)
    found = released_scores(path, labels, unchecked=True)
    np.testing.assert_array_equal(found.values, values)
    assert not found.info["checked"]
    with pytest.raises(InputError, match="expected mem, there are memorization, influence"):
        released_scores(path, labels, key="mem")
    np.savez(path, memorization=np.array([0.1, np.nan, 0.3]))
    with pytest.raises(InputError, match="example 1 is not finite"):
        released_scores(path, labels, unchecked=True)
