"""Entanglement score: two clusters with a known one, what it does not depend on, features."""

import numpy as np
import pytest

import unroll
from unroll.metrics.entanglement import (
    distances_to_centroid,
    entangled_groups,
    entanglement_score,
    penultimate_features,
)


def clusters(distance=3.0, spread=0.7, dimensions=4):
    """Two clusters of the same variance `spread ** 2` in every dimension, exactly."""
    corners = np.concatenate([np.eye(dimensions), -np.eye(dimensions)])
    corners *= spread * np.sqrt(dimensions)
    away = np.zeros(dimensions)
    away[0] = distance
    return corners, corners + away


def test_two_clusters_have_the_known_score():
    """2 d s^2 / (L^2 / 4)."""
    retained, forgotten = clusters(distance=3.0, spread=0.7, dimensions=4)
    assert np.allclose(retained.var(axis=0), 0.7**2)
    assert entanglement_score(retained, forgotten) == pytest.approx(2 * 4 * 0.7**2 / (3.0**2 / 4))


def test_moving_turning_and_scaling_change_nothing():
    draw = np.random.default_rng(0)
    retained, forgotten = draw.normal(size=(50, 6)), draw.normal(0.3, 2.0, size=(20, 6))
    turn, _ = np.linalg.qr(draw.normal(size=(6, 6)))
    expected = entanglement_score(retained, forgotten)
    for change in (lambda x: x + 5.0, lambda x: x @ turn, lambda x: 7.0 * x):
        assert entanglement_score(change(retained), change(forgotten)) == pytest.approx(expected)
    assert entanglement_score(forgotten, retained) == pytest.approx(expected)


def test_further_apart_is_less_entangled():
    scores = [entanglement_score(*clusters(distance)) for distance in (1.0, 2.0, 4.0)]
    assert scores == pytest.approx([scores[0], scores[0] / 4, scores[0] / 16])


def test_groups_are_the_least_the_middle_and_the_most_entangled():
    features = np.random.default_rng(1).gamma(2.0, size=(100, 3))
    groups = entangled_groups(features, 12)
    order = np.argsort(distances_to_centroid(features))
    cut = [np.sort(order[begin : begin + 12]) for begin in range(0, 96, 12)]
    scores = sorted(
        entanglement_score(np.delete(features, ids, axis=0), features[ids]) for ids in cut
    )
    assert [score for _, score in groups] == [scores[0], scores[4], scores[7]]
    for ids, score in groups:
        assert any(np.array_equal(ids, each) for each in cut)
        rest = np.delete(features, ids, axis=0)
        assert score == entanglement_score(rest, features[ids])


def test_features_give_the_logits_back(images, blobs, recorded_run):
    """They are what the last layer is given: its kernel and bias make the logits of them."""
    train, _ = images
    spec = unroll.TrainSpec(unroll.models.build("vgg_small", num_classes=3, width=0.125))
    schedule = unroll.data.make_schedule(0, len(train), batch_size=32, epochs=1)
    run = unroll.train(spec, train, schedule)
    for trained in (run, recorded_run):
        state, data = trained.state, trained.dataset
        features = penultimate_features(
            trained.spec, state.params, state.model_state, data, batch_size=50
        )
        head = state.params["head"]["dense"]
        logits = unroll.predict(trained.spec, state.params, state.model_state, data)
        # Sums of at most 16 products of order 1, each rounded at 1e-7.
        np.testing.assert_allclose(features @ head["kernel"] + head["bias"], logits, atol=1e-4)


def test_mistakes():
    features = np.random.default_rng(0).normal(size=(10, 3))
    with pytest.raises(unroll.InputError, match=r"\[n, d\]"):
        entanglement_score(features, features[:, :2])
    with pytest.raises(unroll.InputError, match="same mean"):
        entanglement_score(features, features)
    with pytest.raises(unroll.InputError, match="three or more"):
        entangled_groups(features, 4)
