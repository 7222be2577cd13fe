"""Privacy risk scores: known values, and the mistakes that are easily made with them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import unroll
from unroll.metrics.privacy_risk import (
    RiskHistograms,
    mean_privacy_risk,
    modified_entropy,
    risk_distribution,
    risk_histograms,
)


def shadow(seed, num, confidence, classes=3):
    """Logits that favour the label by about `confidence`."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, num)
    logits = rng.normal(size=(num, classes)) + confidence * np.eye(classes)[labels]
    return logits, labels


MEMBERS, NONMEMBERS = shadow(0, 600, 6.0), shadow(1, 500, 2.0)


@pytest.fixture(scope="module")
def histograms():
    return risk_histograms(*MEMBERS, *NONMEMBERS)


def test_modified_entropy_of_known_probabilities():
    p = np.array([0.7, 0.2, 0.1])
    expected = -0.3 * np.log(0.7) - 0.2 * np.log(0.8) - 0.1 * np.log(0.9)
    assert modified_entropy(np.log([p]), [0])[0] == pytest.approx(expected)
    expected = -0.9 * np.log(0.1) - 0.7 * np.log(0.3) - 0.2 * np.log(0.8)
    assert modified_entropy(np.log([p]), [2])[0] == pytest.approx(expected)
    # A constant added to the logits changes nothing.
    assert modified_entropy(np.log([p]) + 50, [2])[0] == pytest.approx(expected)


@given(st.integers(0, 1000), st.floats(0.1, 30))
def test_modified_entropy_agrees_with_the_formula(seed, scale):
    rng = np.random.default_rng(seed)
    logits, labels = scale * rng.normal(size=(20, 4)), rng.integers(0, 4, 20)
    values = modified_entropy(logits, labels)
    wide = logits.astype(np.longdouble)
    p = np.exp(wide - wide.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    own = np.eye(4, dtype=bool)[labels]
    with np.errstate(all="ignore"):
        terms = np.where(own, -(1 - p) * np.log(p), -p * np.log1p(-p))
    safe = np.isfinite(terms).all(axis=1) & (p.max(axis=1) < 1 - 1e-9)
    # 1 - p loses up to nine of the eighteen digits of the reference.
    np.testing.assert_allclose(values[safe], terms.sum(axis=1)[safe].astype(float), rtol=1e-6)
    assert (values >= 0).all()


def test_certain_models_need_no_clamp():
    """The exact limits for a gap of 1000: 0 for the right label, twice the gap for a wrong one."""
    logits = np.array([[1000.0, 0.0]])
    assert modified_entropy(logits, [0])[0] == 0.0
    assert modified_entropy(logits, [1])[0] == pytest.approx(2000.0)


def test_logits_are_converted_and_probabilities_refused():
    logits, labels = MEMBERS
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    own = np.eye(3, dtype=bool)[labels]
    by_hand = np.where(own, -(1 - p) * np.log(p), -p * np.log(1 - p)).sum(axis=1)
    np.testing.assert_allclose(modified_entropy(logits, labels), by_hand, rtol=1e-9)
    with pytest.raises(unroll.InputError, match="probabilities; give the logits"):
        modified_entropy(p, labels)
    with pytest.raises(unroll.InputError, match="probabilities"):
        modified_entropy(p.astype(np.float32), labels)


def test_histograms_have_common_edges_and_sum_to_one(histograms):
    member, nonmember = modified_entropy(*MEMBERS), modified_entropy(*NONMEMBERS)
    for c in range(3):
        both = np.concatenate([member[MEMBERS[1] == c], nonmember[NONMEMBERS[1] == c]])
        edges = histograms.edges[c]
        np.testing.assert_allclose(edges, np.linspace(both.min(), both.max(), 11))
        for values, labels, shares in (
            (member, MEMBERS[1], histograms.member),
            (nonmember, NONMEMBERS[1], histograms.nonmember),
        ):
            counts, _ = np.histogram(values[labels == c], bins=edges)
            np.testing.assert_allclose(shares[c], counts / counts.sum())


def test_equal_shadow_distributions_say_nothing():
    """With edges of their own, two histograms of one distribution would give other scores."""
    same = risk_histograms(*MEMBERS, *MEMBERS)
    scores = same.scores(*NONMEMBERS)
    np.testing.assert_array_equal(scores, 0.5)


def test_members_score_higher_and_all_scores_are_probabilities(histograms):
    member, nonmember = (histograms.scores(*shadow(7, 400, c)) for c in (6.0, 2.0))
    assert member.mean() > 0.55 and nonmember.mean() < 0.45
    for scores in (member, nonmember):
        assert ((scores >= 0) & (scores <= 1)).all()
    logits, labels = shadow(8, 128, 6.0)
    mean = mean_privacy_risk(histograms, logits, labels)
    assert mean == histograms.scores(logits, labels).mean()


def test_scores_are_the_posterior_share_of_members():
    """Among shadow examples at even odds, those of score r are members with frequency r."""
    histograms = risk_histograms(*MEMBERS, *NONMEMBERS)
    scores = [histograms.scores(*side) for side in (MEMBERS, NONMEMBERS)]
    labels = [MEMBERS[1], NONMEMBERS[1]]
    for c in range(3):
        for r in np.unique(scores[0][labels[0] == c]):
            shares = [np.mean(s[own == c] == r) for s, own in zip(scores, labels, strict=True)]
            assert shares[0] / sum(shares) == pytest.approx(r)


def test_empty_bins_and_values_outside_the_range():
    edges = np.array([[0.0, 1.0, 2.0, 3.0, 4.0]] * 2)
    member = np.array([[0.5, 0.0, 0.5, 0.0]] * 2)
    nonmember = np.array([[0.25, 0.0, 0.0, 0.75]] * 2)
    histograms = RiskHistograms(edges, member, nonmember)

    def logits_of(value):
        """Two logits whose modified entropy is the value, by bisection over their gap."""
        low, high = -50.0, 50.0
        for _ in range(200):
            middle = (low + high) / 2
            entropy = modified_entropy(np.array([[middle, 0.0]]), [0])[0]
            low, high = (middle, high) if entropy > value else (low, middle)
        return [middle, 0.0]

    logits = np.array([logits_of(v) for v in (0.5, 1.5, 2.5, 3.5, 9.0)])
    with np.errstate(all="raise"):  # an empty bin must not become 0/0
        scores = histograms.scores(logits, np.zeros(5, int))
    np.testing.assert_allclose(scores, [0.5 / 0.75, 0.5, 1.0, 0.0, 0.0])


def test_one_value_only_is_one_bin():
    logits, labels = np.zeros((6, 3)), np.array([0, 1, 2] * 2)
    histograms = risk_histograms(logits, labels, logits, labels)
    np.testing.assert_array_equal(histograms.scores(logits, labels), 0.5)


def test_log_spacing_resolves_small_values():
    """Confident members and non-members differ by orders of magnitude, all near 0."""
    members, nonmembers = shadow(2, 600, 20.0), shadow(3, 600, 12.0)
    outlier = (np.array([[-20.0, 20.0, 0.0]]), np.array([0]))
    nonmembers = tuple(np.concatenate(pair) for pair in zip(nonmembers, outlier, strict=True))
    means = {
        spacing: risk_histograms(*members, *nonmembers, spacing=spacing).scores(*members).mean()
        for spacing in ("linear", "log")
    }
    assert means["log"] > 0.9 > 0.8 > means["linear"]
    certain = (np.array([[1000.0, 0.0, 0.0]]), np.array([0]))
    assert np.isfinite(risk_histograms(*certain, *certain, spacing="log").scores(*certain)).all()


def test_risks_of_one_are_counted():
    np.testing.assert_allclose(
        risk_distribution(np.array([0.0, 0.05, 0.9, 0.95, 1.0])),
        [0.4, 0, 0, 0, 0, 0, 0, 0, 0, 0.6],
    )
    with pytest.raises(unroll.InputError, match="at least one score"):
        risk_distribution(np.array([]))
    with pytest.raises(unroll.InputError, match=r"in \[0, 1\]"):
        risk_distribution(np.array([1.2]))


def test_classes_without_shadow_examples_are_named():
    logits, labels = MEMBERS
    few = labels != 2
    histograms = risk_histograms(logits[few], labels[few], *NONMEMBERS)
    with pytest.raises(unroll.InputError, match="class 2 has no shadow members"):
        histograms.scores(logits, labels)
    assert np.isfinite(histograms.scores(logits[few], labels[few])).all()
    histograms = risk_histograms(*NONMEMBERS, logits[few], labels[few])
    with pytest.raises(unroll.InputError, match="class 2 has no shadow non-members"):
        histograms.scores(logits, labels)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.full((2, 3), np.nan), [0, 1], "not finite"),
        (np.zeros((2, 3)), [0], "do not fit"),
        (np.zeros(3), [0, 1, 2], "do not fit"),
        (np.zeros((2, 3)), [0, 3], "labels must lie"),
        (np.zeros((2, 3)), [0, -1], "labels must lie"),
    ],
)
def test_bad_logits(logits, labels, message):
    with pytest.raises(unroll.InputError, match=message):
        modified_entropy(logits, np.array(labels))


def test_bad_settings(histograms):
    with pytest.raises(unroll.InputError, match="bins must be"):
        risk_histograms(*MEMBERS, *NONMEMBERS, bins=0)
    with pytest.raises(unroll.InputError, match="spacing"):
        risk_histograms(*MEMBERS, *NONMEMBERS, spacing="cubic")
    with pytest.raises(unroll.InputError, match="numbers of classes"):
        risk_histograms(*MEMBERS, *shadow(1, 10, 2.0, classes=4))
    with pytest.raises(unroll.InputError, match="4 logits, but the shadow models have 3"):
        histograms.scores(*shadow(1, 10, 2.0, classes=4))
    with pytest.raises(unroll.InputError, match="empty"):
        mean_privacy_risk(histograms, np.zeros((0, 3)), np.zeros(0, int))
