"""Correlations against scipy.stats and against simulation."""

import numpy as np
import pytest
from scipy import stats

import unroll
from unroll.metrics.correlation import Correlation, pearson, spearman


def pairs(seed, count, slope=1.0, ties=False):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=count)
    second = slope * first + rng.normal(size=count)
    return (np.round(first), np.round(second)) if ties else (first, second)


TABLE = {
    "related": pairs(0, 30),
    "opposed": pairs(1, 12, slope=-2.0),
    "unrelated": pairs(2, 50, slope=0.0),
    "with ties": pairs(3, 40, ties=True),
    "few": pairs(4, 5),
    "far from 0": tuple(1e6 + v for v in pairs(5, 20)),
    "tiny": tuple(1e-200 * v for v in pairs(6, 20)),
    "skewed": tuple(np.exp(5 * v) for v in pairs(7, 20)),
}


@pytest.mark.parametrize("name", TABLE)
def test_agrees_with_scipy(name):
    first, second = TABLE[name]
    ours, ranks = pearson(first, second), spearman(first, second)
    if name != "tiny":  # whose squares underflow there
        theirs = stats.pearsonr(first, second)
        low, high = theirs.confidence_interval(0.95)
        # "far from 0" loses six digits to the mean in either library.
        assert [ours.value, ours.low, ours.high] == pytest.approx(
            [theirs.statistic, low, high], abs=1e-9
        )
    assert ranks.value == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
    assert ours.count == ranks.count == len(first)
    assert ours.note is None and ranks.note is None


def test_scale_does_not_matter():
    first, second = TABLE["related"]
    expected = pearson(first, second).value
    for factor in (1e-200, 1e200, -1.0):
        sign = np.sign(factor)
        assert pearson(factor * first, second).value == pytest.approx(sign * expected)


def test_spearman_interval_by_hand():
    """r = 1 - 6 * 6 / (7 * 48), z = 1.435840, standard error sqrt((1 + r^2 / 2) / 4) = 0.591311."""
    found = spearman(np.arange(7), np.array([2, 1, 4, 3, 6, 5, 7]))
    assert found.value == pytest.approx(1 - 36 / 336)
    assert [found.low, found.high] == pytest.approx([0.270025, 0.988913], abs=1e-6)


@pytest.mark.parametrize(("method", "least"), [(pearson, 0.94), (spearman, 0.93)])
def test_intervals_cover_the_truth(method, least):
    """Of 2000 samples of 20 normal pairs; three standard errors of the count are 0.015."""
    rho = 0.6
    rng = np.random.default_rng(0)
    truth = rho if method is pearson else 6 / np.pi * np.arcsin(rho / 2)
    inside = 0
    for _ in range(2000):
        first, noise = rng.normal(size=(2, 20))
        found = method(first, rho * first + np.sqrt(1 - rho**2) * noise)
        inside += found.low <= truth <= found.high
    assert least <= inside / 2000 <= 0.97


@pytest.mark.parametrize("method", [pearson, spearman])
@pytest.mark.parametrize(
    ("first", "second", "note"),
    [
        ([1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0], "constant"),
        ([1.0, 2.0, 3.0, 4.0], [0.1 + 0.2, 0.3, 0.3, 0.3], "constant"),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], "constant"),
        ([1.0, 2.0], [1.0, 2.0], "fewer than 3"),
        ([], [], "fewer than 3"),
    ],
)
def test_undefined_is_none_with_a_note(method, first, second, note):
    found = method(np.array(first), np.array(second))
    assert found.value is None and found.low is None and note in found.note


@pytest.mark.parametrize("method", [pearson, spearman])
def test_a_value_without_an_interval_says_so(method):
    perfect = method(np.arange(5.0), -2 * np.arange(5.0))
    assert perfect == Correlation(-1.0, None, None, 5, perfect.note)
    assert "perfect" in perfect.note
    three = method(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]))
    assert three.value == pytest.approx(0.5) and "4 pairs" in three.note


@pytest.mark.parametrize("method", [pearson, spearman])
@pytest.mark.parametrize(
    ("first", "second", "options", "message"),
    [
        ([1.0, np.nan, 2.0], [1.0, 2.0, 3.0], {}, "not finite"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], {}, "one length"),
        ([[1.0, 2.0]], [[1.0, 2.0]], {}, "one length"),
        ([1.0, 2.0, 4.0], [1.0, 2.0, 3.0], {"confidence": 95}, "confidence"),
    ],
)
def test_bad_input(method, first, second, options, message):
    with pytest.raises(unroll.InputError, match=message):
        method(np.array(first), np.array(second), **options)
