"""A-posteriori estimates and resummation, on series whose sums are known."""

import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.types import TrainState
from unroll.unrolling.truncation import (
    correction_norm,
    estimated_relative_error,
    resum,
    resummation_weights,
    rounding_floor,
    term_norms,
)


def _geometric(matrix, start, order):
    """c_0 = 1 and c_k = A^(k-1) c_1, whose sum is c_0 + (I - A)^-1 c_1 even where it diverges."""
    terms = [np.ones(len(start)), np.asarray(start, float)]
    while len(terms) <= order:
        terms.append(matrix @ terms[-1])
    limit = terms[0] + np.linalg.solve(np.eye(len(start)) - matrix, terms[1])
    return [TrainState({"w": term}, np.int32(7), {}) for term in terms], limit


@pytest.mark.parametrize("ratio", [0.3, -0.9, -2.0, 3.0])
def test_one_geometric_series_is_summed_exactly_from_two_terms(ratio):
    coefficients, limit = _geometric(np.diag([ratio, ratio]), [1.0, 2.0], order=2)
    found = resum(coefficients)
    np.testing.assert_allclose(found.params["w"], limit, rtol=1e-9)
    assert found.opt_state == 7


def test_two_geometric_series_need_three_terms():
    coefficients, limit = _geometric(np.diag([-1.5, 0.5]), [1.0, 2.0], order=3)
    np.testing.assert_allclose(resum(coefficients).params["w"], limit, rtol=1e-7)
    plain = sum(c.params["w"] for c in coefficients)
    assert np.linalg.norm(plain - limit) > 0.5


def test_a_convergent_series_is_not_spoiled():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(6, 6)) * 0.05
    coefficients, limit = _geometric(matrix, rng.normal(size=6), order=4)
    plain = sum(c.params["w"] for c in coefficients)
    error = np.linalg.norm(resum(coefficients).params["w"] - limit)
    assert error < 2 * np.linalg.norm(plain - limit)


def test_the_estimate_is_the_error_of_a_geometric_series():
    coefficients, limit = _geometric(np.diag([0.2, 0.2]), [3.0, 4.0], order=3)
    truth = np.linalg.norm(limit - coefficients[0].params["w"])
    for order in (1, 2):
        partial = sum(c.params["w"] for c in coefficients[: order + 1])
        error = np.linalg.norm(partial - limit) / truth
        estimate = estimated_relative_error(term_norms(coefficients), truth, order)
        assert estimate == pytest.approx(error, rel=1e-9)
    assert estimated_relative_error(term_norms(coefficients), truth, 0) == 1.0
    # The correction misses what the three terms leave out: 0.2^3 of it.
    assert correction_norm(coefficients) == pytest.approx(truth * (1 - 0.2**3))


def test_a_divergent_series_is_said_to_diverge():
    coefficients, _ = _geometric(np.diag([2.0]), [1.0], order=3)
    norms = term_norms(coefficients)
    assert estimated_relative_error(norms, norms[0], 2) >= 1


@pytest.mark.parametrize(
    ("norms", "floor", "expected"),
    [
        ([1.0, 0.01, 0.02], 0.0, 1.0),  # small, but growing: nothing bounds what is left out
        ([1.0, 0.01, 0.01], 0.0, 1.0),
        ([1.0, 2.0, 4.0], 0.0, 4.0),
        ([1.0, 0.0, 0.01], 0.0, 1.0),
        ([1.0, 0.0, 0.0], 0.0, 0.0),  # the series has ended: a polynomial
        ([1.0, 1e-5, 2e-5], 1e-3, np.hypot(2e-5, 1e-3)),  # rounding, which grows by chance
    ],
)
def test_terms_that_do_not_fall(norms, floor, expected):
    assert estimated_relative_error(norms, 1.0, 2, floor) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda c: estimated_relative_error(term_norms(c), 1.0, 2), "one order more"),
        (lambda c: estimated_relative_error(term_norms(c), 0.0, 1), "nothing was forgotten"),
        (lambda c: resummation_weights(c[:2]), "order 2"),
    ],
)
def test_bad_input(action, words):
    coefficients, _ = _geometric(np.diag([0.5]), [1.0], order=2)
    with pytest.raises(unroll.InputError, match=words):
        action(coefficients)


def test_nothing_to_resum_changes_nothing():
    coefficients = [TrainState({"w": np.full(2, v)}, (), {}) for v in (1.0, 0.0, 0.0)]
    assert tree.same_bits(resum(coefficients).params, coefficients[0].params)


def test_rounding_floor_is_the_distance_of_two_roundings():
    """Updates in float32, once as one difference and once as two: the same sum, other rounding."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=20_000).astype(np.float32)
    one, two = start.copy(), start.copy()
    for _ in range(50):
        update = rng.normal(size=start.size).astype(np.float32) * np.float32(1e-3)
        jitter = rng.normal(size=start.size).astype(np.float32) * np.float32(1e-7)
        one = one + update
        two = (two + (update + jitter)) - jitter
    distance = np.linalg.norm((one - two).astype(np.float64))
    # The second run rounds twice a step: three roundings of variance s^2 / 12 instead of two.
    expected = rounding_floor({"w": one}, 50) * np.sqrt(3 / 2)
    assert distance == pytest.approx(expected, rel=0.1)
