"""Proxies against exact scores: precision by hand, the ceiling by simulation, rows and costs."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import binomtest

import unroll
from unroll.evaluation.score_proxies import (
    Comparison,
    ScoreProxyRow,
    ceiling,
    compare,
    events_overhead,
    half_scores,
    precision_at_top,
    top_membership,
    wilson_interval,
)
from unroll.memorization.scores import MemorizationScores, scores_of
from unroll.memorization.subject import Subject
from unroll.memorization.subsets import SubsetRecipe, train_on_subsets
from unroll.metrics.correlation import spearman
from unroll.training.events import train_with_events


def test_membership_shares_ties_at_the_limit():
    scores = np.array([3.0, 1.0, 1.0, 0.0, 1.0, 2.0])
    np.testing.assert_array_equal(top_membership(scores, 2), [1, 0, 0, 0, 0, 1])
    np.testing.assert_allclose(top_membership(scores, 3), [1, 1 / 3, 1 / 3, 0, 1 / 3, 1])
    np.testing.assert_array_equal(top_membership(scores, 6), 1)
    with pytest.raises(unroll.InputError, match="top 0 of 6"):
        top_membership(scores, 0)


def test_precision_by_hand():
    exact = np.arange(20.0)
    same = precision_at_top(exact, exact, 0.1)
    assert (same.value, same.count) == (1, 2)
    half = precision_at_top(np.where(exact == 19, -1, exact), exact, 0.1)  # finds 18, not 19
    assert half.value == 0.5 and half.low < 0.5 < half.high
    assert precision_at_top(-exact, exact, 0.1).value == 0
    assert precision_at_top(exact, exact, 0.06).count == 2  # 1.2 examples, rounded up
    # A constant proxy finds its share of the top, whatever the order of the examples.
    assert precision_at_top(np.zeros(20), exact, 0.1).value == pytest.approx(0.1)
    order = np.random.default_rng(0).permutation(20)
    ties = np.round(exact / 3)
    moved = precision_at_top(ties[order], exact[order], 0.25)
    assert moved == precision_at_top(ties, exact, 0.25)


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (3, 10), (10, 10), (75, 150)])
def test_wilson_agrees_with_scipy(successes, count):
    theirs = binomtest(successes, count).proportion_ci(0.9, "wilson")
    found = wilson_interval(successes / count, count, 0.9)
    np.testing.assert_allclose(found, theirs, atol=1e-12)


def test_precision_refuses_what_is_no_pair_of_scores():
    for first, second, share, message in (
        (np.ones(3), np.ones(4), 0.1, "two vectors of one"),
        (np.array([np.nan, 1]), np.ones(2), 0.1, "not finite"),
        (np.ones(3), np.ones(3), 0.0, "share=0.0"),
    ):
        with pytest.raises(unroll.InputError, match=message):
            precision_at_top(first, second, share)


def test_ceiling_is_what_noiseless_scores_reach():
    """Gaussian scores with as much noise in each half as signal."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=20000)
    halves = tuple(truth + rng.normal(size=20000) for _ in range(2))
    reached = spearman(truth, (halves[0] + halves[1]) / 2).value
    # The formula is for linear correlations; ranks of Gaussians are lower by up to 2%.
    assert ceiling(halves) == pytest.approx(reached, abs=0.02)
    assert ceiling((truth, truth)) == 1
    assert ceiling((truth, -truth)) is None and ceiling((truth, np.zeros(20000))) is None


@pytest.fixture(scope="module")
def problem():
    sizes = dict(num_train=60, num_test=60, num_features=6, num_classes=3)
    train, test = unroll.data.load("blobs", noise=1.2, **sizes)
    spec = unroll.TrainSpec(
        unroll.models.build("mlp", num_classes=3, hidden=(32,)),
        optimizer=unroll.optax_call("sgd", learning_rate=0.3),
    )
    found = train_on_subsets(SubsetRecipe(spec, train, 40, 6, 12, share=0.5))
    schedule = unroll.data.make_schedule(0, len(train), 12, 6)
    return found, Subject(*train_with_events(spec, train, schedule, seed=4), test)


def test_halves_have_all_models_once(problem):
    found, _ = problem
    first, second = half_scores(found)
    assert first.shape == second.shape == (60,) and not np.array_equal(first, second)
    again = half_scores(found)
    np.testing.assert_array_equal(first, again[0])
    assert spearman(first, second).value > 0
    recipe = dataclasses.replace(found.recipe, models=14)
    outputs = dataclasses.replace(found.train, correct=found.train.correct[:14])
    assert half_scores(dataclasses.replace(found, recipe=recipe, train=outputs)) is None


def test_rows_have_agreement_and_costs(problem):
    found, subject = problem
    comparison = Comparison(scores_of(found), half_scores(found), shares=(0.1, 0.25))
    texts = ("confidence", "holdout_retraining(epochs=2)", "self_influence", "loss_curvature")
    seen = []
    rows = dict(
        (row.proxy.partition("(")[0], (row, values))
        for row, values in compare(
            comparison,
            subject,
            texts,
            model="mlp",
            test_accuracy=0.5,
            events_seconds=100.0,
            progress=lambda *p: seen.append(p),
        )
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    exact_cost = found.recipe.example_gradients
    assert exact_cost == 40 * 6 * 30
    row, values = rows["confidence"]
    np.testing.assert_array_equal(values, -subject.events.confidence)
    assert row.spearman == spearman(values, comparison.scores.values).value > 0.2
    assert row.spearman_low < row.spearman < row.spearman_high
    assert row.precision["0.1"] == precision_at_top(values, comparison.scores.values, 0.1).value
    assert set(row.precision) == set(row.precision_low) == {"0.1", "0.25"}
    assert row.example_gradients == 0 and row.seconds >= 100
    assert row.training_cost_gradients == 360 / exact_cost
    assert (row.seed, row.models, row.examples, row.direction) == (4, 40, 60, -1)
    holdout = rows["holdout_retraining"][0]
    assert holdout.cost_gradients == pytest.approx((2 * 60 + 40) / exact_cost)
    assert holdout.seconds < 100 and 0 < holdout.ceiling <= 1


def test_a_proxy_that_does_not_fit_is_a_row_that_says_why(problem):
    found, subject = problem
    spec = dataclasses.replace(subject.run.spec, optimizer=unroll.optax_call("adam", 0.01))
    other = Subject(dataclasses.replace(subject.run, spec=spec))
    ((row, values),) = compare(Comparison(scores_of(found)), other, ["self_influence"], model="m")
    assert values is None and row.spearman is None and "sgd" in row.note
    assert row == ScoreProxyRow(**dataclasses.asdict(row))


def test_mistakes_show_before_any_work(problem):
    found, subject = problem
    comparison = Comparison(scores_of(found))
    for texts, message in (
        (["grand(seeds=1, epochs=1)", "luck"], "unknown proxy"),
        (["grand(seeds=1, epochs=1)", "entropy"], "needs events"),
    ):
        with pytest.raises(unroll.InputError, match=message):
            next(compare(comparison, Subject(subject.run), texts, model="m"))
    labels = (comparison.scores.labels + 1) % 3
    turned = dataclasses.replace(comparison.scores, labels=labels)
    with pytest.raises(unroll.InputError, match="another training set"):
        next(compare(Comparison(turned), subject, ["entropy"], model="m"))
    released = MemorizationScores(np.zeros(60), None, None, None, labels, {"source": "released"})
    with pytest.raises(unroll.InputError, match="do not say their"):
        Comparison(released)


def test_the_overhead_of_events_is_a_number_of_seconds(problem):
    run = problem[1].run
    found = events_overhead(run.spec, run.dataset, run.schedule, rounds=1)
    # A run of 30 small steps: whatever the machine does beside it, it is far below this.
    assert abs(found) < 5
