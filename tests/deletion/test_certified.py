"""Certified removal: the bound holds, the budget runs down, and what is not covered is refused."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit

from unroll.deletion.certified import (
    Certificate,
    FrozenFeatures,
    MustRetrain,
    train_certified,
    unit_rows,
)
from unroll.deletion.gaussian_mechanism import gaussian_delta, gaussian_sigma
from unroll.deletion.residual_bounds import LOSSES, newton_steps, worst_case_bound
from unroll.errors import DivergenceError, InputError

GUARANTEE = dict(epsilon=1.0, delta=1e-4)


def draw(seed, count=40, size=4, classes=2):
    random = np.random.default_rng(seed)
    features = unit_rows(random.normal(size=(count, size)) * random.uniform(0.1, 3.0))
    labels = random.integers(0, classes, count)
    labels[:classes] = np.arange(classes)
    return features, labels


def trained(seed=0, *, l2=0.02, sigma=50.0, **options):
    shape = {name: options.pop(name) for name in ("count", "size", "classes") if name in options}
    features, labels = draw(seed, **shape)
    options = {**GUARANTEE, **options}
    return train_certified(
        features, labels, l2=l2, sigma=sigma, key=jax.random.key(seed), **options
    )


def without_end(model):
    """The model with a budget that no removal exhausts."""
    return dataclasses.replace(model, settings=dataclasses.replace(model.settings, sigma=1e12))


def gradient(model, k, weights):
    """Of classifier k at the remaining rows, written out once more."""
    settings, rows = model.settings, np.flatnonzero(model.present)
    features, signs = model.features[rows], model.signs[rows, k]
    margins = signs * (features @ weights)
    slopes = margins - 1 if settings.loss == "squared" else -expit(-margins)
    total = (slopes * signs) @ features
    return total + settings.l2 * len(rows) * weights + model.perturbation[:, k]


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_derivatives_of_the_losses(loss):
    """Central differences of slope and value; |loss'''| stays below both constants."""
    at, step = np.linspace(-6, 6, 2001), 1e-5
    given_loss = LOSSES[loss]
    value = (lambda t: np.logaddexp(0, -t)) if loss == "logistic" else (lambda t: (1 - t) ** 2 / 2)
    # Differences of order step^2 and of rounding over the step.
    slope = (value(at + step) - value(at - step)) / (2 * step)
    np.testing.assert_allclose(given_loss.slope(at), slope, atol=1e-9)
    curvature = (given_loss.slope(at + step) - given_loss.slope(at - step)) / (2 * step)
    np.testing.assert_allclose(given_loss.curvature(at), curvature, atol=1e-9)
    third = (given_loss.curvature(at + step) - given_loss.curvature(at - step)) / (2 * step)
    assert np.abs(third).max() <= given_loss.lipschitz["integral"] + 1e-9
    if loss == "logistic":  # the better constant is reached, on a grid of steps of 0.006
        assert np.abs(third).max() == pytest.approx(1 / (6 * math.sqrt(3)), rel=1e-4)
        assert given_loss.lipschitz["paper"] == 0.25


def test_training_finds_the_perturbed_optimum():
    model = trained(3, classes=3, sigma=2.0)
    for k in range(3):
        rows = model.signs[:, k]

        def objective(weights, rows=rows, k=k):
            fit = np.logaddexp(0, -rows * (model.features @ weights)).sum()
            return fit + 0.01 * 40 * weights @ weights + model.perturbation[:, k] @ weights

        found = minimize(objective, np.zeros(5), method="BFGS", options={"gtol": 1e-7})
        # The optimiser's tolerance over the curvature, which is at least l2 n = 0.8.
        np.testing.assert_allclose(model.weights[:, k], found.x, atol=1e-6)
        assert np.linalg.norm(gradient(model, k, model.weights[:, k])) < 1e-10
    assert model.true_residual() <= model.residual_bound < 1e-9
    assert model.weights.dtype == np.float64 and model.perturbation.dtype == np.float64


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(12, 60),
    size=st.integers(1, 8),
    classes=st.integers(2, 4),
    l2=st.floats(1e-3, 1.0),
    sigma=st.sampled_from([0.01, 1.0, 10.0]),
    bound=st.sampled_from(["paper", "integral"]),
    requests=st.lists(st.integers(1, 3), min_size=1, max_size=4),
)
def test_the_true_residual_stays_below_the_bound(
    seed, count, size, classes, l2, sigma, bound, requests
):
    """Over sequences of removals, of one example and of several, for each form of the bound."""
    shape = dict(count=count, size=size, classes=classes)
    model = without_end(trained(seed, l2=l2, sigma=sigma, bound=bound, **shape))
    ids = np.random.default_rng(seed).permutation(count)
    for number in requests:
        gone, ids = ids[:number], ids[number:]
        before = model
        model, answer = model.remove(gone)
        assert isinstance(answer, Certificate)
        residuals = [
            np.linalg.norm(gradient(model, k, model.weights[:, k]))
            for k in range(model.weights.shape[1])
        ]
        # Per classifier and in all; 1e-11 is what sums of 60 terms and b of 10 can lose.
        assert (residuals <= model.residuals + 1e-11).all()
        assert model.true_residual() == pytest.approx(np.linalg.norm(residuals), abs=1e-11)
        assert answer.residual_bound == model.residual_bound
        assert model.residual_bound <= before.residual_bound + answer.step_bound * (1 + 1e-12)
        # And so the optimum under the same b is where the distance bound says.
        distance = np.linalg.norm(model.weights - model.optimum())
        assert distance <= model.distance_bound * (1 + 1e-9) + 1e-9


def test_the_integral_form_is_smaller_and_both_hold_where_the_residual_is_large():
    """Twenty of forty at once: the nonlinear part dominates rounding by far."""
    bounds = {}
    for bound in ("paper", "integral"):
        model = without_end(trained(1, l2=1e-3, sigma=1.0, bound=bound))
        model, answer = model.remove(np.arange(20))
        bounds[bound] = answer.step_bound
        assert 1e-3 < model.true_residual() < answer.step_bound
    assert bounds["integral"] < bounds["paper"] / 5


@pytest.mark.parametrize("count", [1, 9])
def test_the_integral_form_is_reached(count):
    """Equal rows of norm 1 in one dimension, where |loss'''| is largest: nothing is given away."""
    margin = math.log((1 + 1 / math.sqrt(3)) / (1 - 1 / math.sqrt(3)))
    features, margins = np.ones((count, 1)), np.full((count, 1), margin)
    loss, ridge, pull = LOSSES["logistic"], 0.1, np.array([[-1e-3]])
    step, bound = newton_steps(loss, "integral", features, margins, ridge, pull)
    after = loss.slope(margins + step[0, 0]).sum() - loss.slope(margins).sum()
    left = abs(after + ridge * step[0, 0] - pull[0, 0])
    # A step of 0.01 at most, over which the third derivative changes by some 1e-4 of itself.
    assert 0.99 * bound[0] < left < bound[0]
    wider = newton_steps(loss, "paper", features, margins, ridge, pull)[1]
    assert wider[0] == pytest.approx(bound[0] * 2 * 0.25 * 6 * math.sqrt(3), rel=1e-6)


def test_the_worst_case_bound_is_theorem_1_and_lies_above_the_others():
    assert worst_case_bound(0.1, 101) == pytest.approx(4 * 0.25 / (0.1**2 * 100), rel=1e-12)
    model = without_end(trained(5, sigma=1.0, l2=0.1, bound="paper"))
    size = float(np.linalg.norm(model.perturbation))
    _, answer = model.remove([2])
    assert answer.step_bound < worst_case_bound(0.1, 40, perturbation=size)


def test_on_a_quadratic_removal_is_retraining():
    """Ridge regression on signs: w = (X'X + l2 n I)^-1 (X'y - b), before and after."""
    model = trained(2, loss="squared", sigma=1.0, classes=3)
    for gone in ([4], [7, 9, 11], [0, 30]):
        model, answer = model.remove(gone)
        rows = np.flatnonzero(model.present)
        features = model.features[rows]
        matrix = features.T @ features + 0.02 * len(rows) * np.eye(5)
        expected = np.linalg.solve(matrix, features.T @ model.signs[rows] - model.perturbation)
        # Rounding of sums of 40 numbers, over a smallest eigenvalue of 0.7.
        np.testing.assert_allclose(model.weights, expected, rtol=0, atol=1e-12)
        assert answer.residual_bound < 1e-11
    assert model.count == 34 and answer.removals == 3 and answer.removed == 6


def test_the_budget_runs_down_and_forces_a_retrain():
    model = trained(0, count=400, sigma=0.02)
    certificates, ids = [], iter(range(2, 40))
    while True:
        asked = next(ids)
        following, answer = model.remove([asked])
        if isinstance(answer, MustRetrain):
            break
        model = following
        certificates.append(answer)
        assert answer.remaining == answer.budget - answer.residual_bound >= 0
    assert len(certificates) >= 2
    bounds = [certificate.residual_bound for certificate in certificates]
    assert bounds == sorted(bounds) and answer.residual_bound > answer.budget > bounds[-1]
    assert following is model and model.present[asked] and answer.ids == (asked,)
    fresh, certificate = model.retrain(answer.ids)
    assert not fresh.present[asked] and fresh.count == model.count - 1
    assert certificate.removals == 0 and certificate.residual_bound < 1e-8
    assert np.abs(fresh.perturbation - model.perturbation).min() > 0
    assert isinstance(fresh.remove([39])[1], Certificate)


def test_what_was_removed_is_nowhere_in_the_model():
    model, _ = without_end(trained(4)).remove([8, 3])
    assert not model.features[[3, 8]].any() and not model.signs[[3, 8]].any()
    # A model whose removed rows were others from the start ends at the same bits.
    features, labels = draw(4)
    other = without_end(trained(4))
    assert np.array_equal(model.weights, other.remove([3, 8])[0].weights)
    assert not np.array_equal(model.weights, other.weights)
    assert np.array_equal(other.features, features) and labels.shape == (40,)


def test_retraining_is_training_on_what_remains():
    model, _ = trained(6, classes=3).retrain([1, 5])
    for k in range(3):
        assert np.linalg.norm(gradient(model, k, model.weights[:, k])) < 1e-9
    again, _ = trained(6, classes=3).retrain([1, 5])
    assert np.array_equal(model.weights, again.weights)


def test_prediction():
    model = trained(0, sigma=0.01)
    both = np.stack([model.weights[:, 0], -model.weights[:, 0]])
    assert model.predict(both).tolist() == [1, 0]
    many = trained(0, classes=3, sigma=0.01)
    features, labels = draw(0, classes=3)
    assert many.decisions(features).shape == (40, 3)
    assert np.mean(many.predict(features) == labels) > 1 / 3


def test_budgets():
    """sigma epsilon / c as in Theorem 3, and the shift whose delta is the one asked for."""
    paper = trained(sigma=2.0, calibration="paper").settings.budget
    assert paper == pytest.approx(2.0 / math.sqrt(2 * math.log(1.5 / 1e-4)), rel=1e-12)
    analytic = trained(sigma=2.0).settings.budget
    assert gaussian_delta(1.0, analytic, 2.0) == pytest.approx(1e-4, rel=1e-6)
    assert analytic > paper
    # The figures of the literature at delta = 1e-5, to their three digits.
    for epsilon, expected in ((0.1, 30.8), (1.0, 3.73), (8.0, 0.600)):
        assert gaussian_sigma(epsilon, 1e-5) == pytest.approx(expected, rel=2e-3)
    assert gaussian_sigma(1.0, 1e-5, 0.0) == 0 and gaussian_delta(1.0, 0.0, 1.0) == 0


def test_features_of_an_extractor_that_was_trained_on_the_request_are_refused():
    features, labels = draw(0)
    given_features = FrozenFeatures(features, "a network", np.array([4, 5]))
    model = train_certified(
        given_features, labels, l2=0.02, sigma=50.0, key=jax.random.key(0), **GUARANTEE
    )
    with pytest.raises(InputError, match="trained on example 5: no certificate covers"):
        model.remove([6, 5])
    with pytest.raises(InputError, match="trained on example 4"):
        model.retrain([4])
    assert isinstance(model.remove([6])[1], Certificate)


def test_rows_are_scaled_each_by_itself():
    inputs = np.random.default_rng(0).normal(size=(5, 2, 3))
    rows = unit_rows(inputs)
    assert rows.shape == (5, 7) and rows.dtype == np.float64
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-15)
    np.testing.assert_array_equal(unit_rows(inputs[2:3])[0], rows[2])
    assert not unit_rows(np.zeros((1, 3)), constant=False).any()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([40], "40"),
        ([3, 3], "each id once"),
        ([], "at least one"),
        ([7], "example 7 was removed before"),
        (np.delete(np.arange(40), 7), "nothing would remain"),
    ],
)
def test_bad_requests(ids, message):
    model, _ = trained().remove([7])
    with pytest.raises(InputError, match=message):
        model.remove(ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(l2=0.0), "l2 must be"),
        (dict(sigma=-1.0), "sigma must be"),
        (dict(epsilon=0.0), "epsilon must be"),
        (dict(delta=1.0), "delta below 1"),
        (dict(loss="hinge"), "unknown loss"),
        (dict(bound="tight"), "unknown bound"),
        (dict(calibration="classic"), "unknown calibration"),
        (dict(calibration="paper", epsilon=2.0), "up to 1"),
        (dict(features=2 * np.eye(3)), "norm 2; .*unit_rows"),
        (dict(features=np.full((3, 2), np.nan)), "finite"),
        (dict(labels=np.zeros(3, int)), "two classes"),
        (dict(labels=np.array([0.0, 1.0, 0.0])), "one integer"),
    ],
)
def test_bad_training(changes, message):
    arguments = dict(features=np.eye(3), labels=np.array([0, 1, 0]), l2=0.1, sigma=1.0)
    arguments |= {"key": jax.random.key(0), **GUARANTEE, **changes}
    with pytest.raises(InputError, match=message):
        train_certified(arguments.pop("features"), arguments.pop("labels"), **arguments)


def test_training_that_cannot_reach_the_budget_is_no_model():
    with pytest.raises(DivergenceError, match="thousandth of the budget"):
        trained(sigma=1e-15)
