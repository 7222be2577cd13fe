"""Metrics against values worked out by hand or by another library."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from sklearn.metrics import log_loss

import unroll
from unroll.errors import InputError
from unroll.metrics.divergence import activation_distance, js_divergence
from unroll.metrics.membership import confidence_attack, loss_attack_auc
from unroll.metrics.outputs import accuracy, loss, output_entropy, true_class_probability
from unroll.metrics.tow import tow, tow_mia


def random_logits(seed, num=40, classes=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, classes)).astype(np.float32), rng.integers(0, classes, num)


def test_js_divergence_of_a_known_pair():
    p, q = np.log([[0.7, 0.2, 0.1]]), np.log([[0.2, 0.3, 0.5]])
    assert js_divergence(p, q) == pytest.approx(0.151358, abs=1e-6)
    assert js_divergence(p, q) == pytest.approx(jensenshannon(np.exp(p[0]), np.exp(q[0])) ** 2)


@given(st.integers(0, 1000))
def test_js_divergence_is_symmetric_bounded_and_zero_on_itself(seed):
    p, q = random_logits(seed)[0], 30 * random_logits(seed + 1)[0]
    assert js_divergence(p, p) == 0
    assert js_divergence(p, q) == pytest.approx(js_divergence(q, p))
    assert 0 <= js_divergence(p, q) <= np.log(2)


def test_js_divergence_of_disjoint_outputs_is_its_maximum():
    assert js_divergence([[1000.0, 0.0]], [[0.0, 1000.0]]) == pytest.approx(np.log(2))


def test_activation_distance_of_known_pairs():
    p, q = np.log([[0.7, 0.2, 0.1]]), np.log([[0.2, 0.3, 0.5]])
    assert activation_distance(p, q) == pytest.approx(np.sqrt(0.25 + 0.01 + 0.16))
    assert activation_distance(p, p) == 0
    # The largest there is, and a mean over examples.
    far = np.array([[1000.0, 0.0], [0.0, 0.0]]), np.array([[0.0, 1000.0], [0.0, 0.0]])
    assert activation_distance(*far) == pytest.approx(np.sqrt(2) / 2)


def test_loss_and_accuracy():
    logits, labels = random_logits(0)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert loss(logits, labels) == pytest.approx(log_loss(labels, probabilities), rel=1e-6)
    assert accuracy(np.eye(4)[labels], labels) == 1.0
    assert accuracy(-np.eye(4)[labels], labels) == 0.0
    np.testing.assert_allclose(
        true_class_probability(logits, labels), probabilities[np.arange(40), labels], rtol=1e-6
    )


def test_entropy_of_known_outputs():
    """A fair choice, a certain one with a probability of exactly 0, and another library."""
    assert output_entropy(np.zeros((1, 5))) == pytest.approx(np.log(5))
    assert output_entropy(np.array([[1e4, 0.0]])) == 0.0
    logits, _ = random_logits(0)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(output_entropy(logits), entropy(probabilities, axis=1), rtol=1e-6)


def test_loss_of_extreme_logits_is_finite():
    assert loss(np.array([[1e4, 0.0]]), np.array([1])) == pytest.approx(1e4)


def test_tow():
    oracle = dict(forget=0.5, retain=0.9, test=0.8)
    assert tow(oracle, oracle) == 1.0
    assert tow(dict(forget=0.7, retain=1.0, test=0.8), oracle) == pytest.approx(0.8 * 0.9)


def test_tow_mia_takes_the_attack_for_the_forget_accuracy():
    oracle = dict(retain=0.99, test=0.9)
    assert tow_mia(oracle, 0.3, oracle, 0.3) == 1.0
    assert tow_mia(dict(retain=0.89, test=0.9), 0.1, oracle, 0.3) == pytest.approx(0.8 * 0.9)


def confident_and_unsure(count=60):
    labels = np.arange(count) % 3
    return (5 * np.eye(3)[labels], labels), (np.zeros((count, 3)), labels)


def test_confidence_attack_tells_members_from_others():
    members, outsiders = confident_and_unsure()
    assert confidence_attack(members, outsiders, members) == (0.0, 1.0)
    assert confidence_attack(members, outsiders, outsiders) == (1.0, 1.0)


def test_confidence_attack_knows_nothing_of_equals():
    """Members and others from one distribution: right as often as wrong, up to 1000 coin tosses."""
    logits, labels = random_logits(3, num=4000)
    first, second = ((logits[rows], labels[rows]) for rows in np.split(np.arange(4000), 2))
    assert confidence_attack(first, second, first).accuracy == pytest.approx(0.5, abs=0.05)


def test_confidence_attack_wants_as_many_of_either_kind():
    members, outsiders = confident_and_unsure()
    with pytest.raises(InputError, match="60 members and 0 non-members"):
        confidence_attack(members, tuple(part[:0] for part in outsiders), members)


def test_membership_attack_finds_members_and_nothing_in_noise():
    confident, labels = 5 * np.eye(3)[[0, 1, 2] * 30], np.array([0, 1, 2] * 30)
    unsure = np.zeros((90, 3))
    assert loss_attack_auc(confident, labels, unsure, labels) == 1.0
    assert loss_attack_auc(unsure, labels, confident, labels) == 0.0
    assert loss_attack_auc(unsure, labels, unsure, labels) == 0.5


@given(st.integers(0, 1000))
def test_verification_error_is_the_norm_of_the_flat_difference(seed):
    rng = np.random.default_rng(seed)
    first, second = (
        {"a": rng.normal(size=(3, 2)), "b": {"c": rng.normal(size=4)}} for _ in range(2)
    )
    flat = np.concatenate([(first["a"] - second["a"]).ravel(), first["b"]["c"] - second["b"]["c"]])
    assert unroll.verification_error(first, second) == pytest.approx(np.linalg.norm(flat))


def test_relative_verification_error_has_its_fixed_points():
    twin, original = {"w": np.zeros(3)}, {"w": np.ones(3)}
    assert unroll.relative_verification_error(original, twin, original) == 1.0
    assert unroll.relative_verification_error(twin, twin, original) == 0.0
    with pytest.raises(unroll.InputError, match="nothing was forgotten"):
        unroll.relative_verification_error(twin, twin, twin)


@pytest.mark.parametrize("other", [{"w": np.zeros(4)}, {"v": np.zeros(3)}])
def test_models_of_other_shapes_are_refused(other):
    with pytest.raises(unroll.InputError, match="one specification"):
        unroll.verification_error({"w": np.zeros(3)}, other)
