"""Random labels: what is drawn, and the step that is taken with it."""

import jax
import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.training.further import further_sgd
from unroll.training.relabelling import random_labels

RATE, KEY = 0.3, 6


def drawn(problem, draw=0):
    """The labels that the method draws for the forget set with the key `KEY`."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(KEY), 3), draw)
    return random_labels(key, problem.forget, problem.forget_data.labels, 3)


def relabelled(problem, draw=0):
    labels = problem.run.dataset.labels.copy()
    labels[problem.forget] = drawn(problem, draw)
    return labels


def test_a_label_is_never_its_own_and_the_others_are_equally_likely():
    labels = np.arange(6000, dtype=np.int32) % 4
    found = random_labels(jax.random.key(0), np.arange(6000), labels, 4)
    assert found.dtype == np.int32 and found.min() == 0 and found.max() == 3
    assert not (found == labels).any()
    for shift in (1, 2, 3):
        share = ((found - labels) % 4 == shift).mean()
        assert abs(share - 1 / 3) < 5 * np.sqrt(2 / 9 / 6000)  # five standard errors


def test_a_label_depends_on_key_and_id_alone():
    key, labels = jax.random.key(1), np.zeros(50, np.int32)
    whole = random_labels(key, np.arange(50), labels, 7)
    some = np.array([31, 4, 8])
    np.testing.assert_array_equal(random_labels(key, some, labels[some], 7), whole[some])
    assert (random_labels(jax.random.key(2), np.arange(50), labels, 7) != whole).any()


def test_with_two_classes_it_is_the_other_one_and_with_one_there_is_none():
    labels = np.array([0, 1, 1], np.int32)
    found = random_labels(jax.random.key(0), np.arange(3), labels, 2)
    np.testing.assert_array_equal(found, 1 - labels)
    with pytest.raises(unroll.InputError, match="two classes"):
        random_labels(jax.random.key(0), np.arange(3), np.zeros(3, np.int32), 1)


@pytest.mark.parametrize("retain", [True, False])
def test_one_full_batch_step_in_closed_form(logistic, retain):
    """Retained examples have the run's weights, forgotten ones count once."""
    problem, closed = logistic
    ids = np.arange(120) if retain else problem.forget
    weights = np.asarray(problem.run.weights, np.float64)
    weights[problem.forget] = 1.0
    gradient = closed.gradient(ids, relabelled(problem)[ids], weights[ids])
    result = unroll.methods.random_label(RATE, epochs=1, batch_size=500, retain=retain)(
        jax.random.key(KEY), problem
    )
    for found, expected in zip(
        closed.of(result.params), closed.stepped(gradient, RATE), strict=True
    ):
        # The same sums of 120 numbers in float64.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
    assert result.example_gradients == len(ids)


def test_the_labels_stay_or_are_redrawn(logistic):
    """Two full-batch steps, with the same labels twice or with new ones."""
    problem, closed = logistic
    ids, ones = problem.forget, np.ones(4)
    assert (drawn(problem, 0) != drawn(problem, 1)).any()
    for redraw in (False, True):
        at = None
        for epoch in range(2):
            labels = drawn(problem, epoch if redraw else 0)
            at = closed.stepped(closed.gradient(ids, labels, ones, at), RATE, at)
        method = unroll.methods.random_label(RATE, epochs=2, retain=False, redraw=redraw)
        result = method(jax.random.key(KEY), problem)
        np.testing.assert_allclose(closed.of(result.params)[0], at[0], rtol=0, atol=1e-13)


def test_it_is_training_on_the_relabelled_data(problem):
    """The library's own loop on the training set with other labels, over several batches."""
    run = problem.run
    data = unroll.data.Dataset("relabelled", run.dataset.inputs, relabelled(problem), 3)
    key = jax.random.key(KEY)
    expected = further_sgd(
        run.spec, run.state, data, 1.0, key, learning_rate=RATE, epochs=2, batch_size=16
    )
    result = unroll.methods.random_label(RATE, epochs=2, batch_size=16)(key, problem)
    # Sixteen steps in float32 by two programs.
    assert tree.distance(result.params, expected.params) < 1e-5


def test_it_unlearns_and_keeps_the_rest(recorded_run):
    problem = unroll.Problem(recorded_run, np.arange(0, 30, 3))
    result = unroll.unlearn("random_label(epochs=60, learning_rate=0.3, batch_size=30)", problem)

    def accuracy(params, data):
        logits = unroll.predict(recorded_run.spec, params, {}, data)
        return np.mean(logits.argmax(axis=1) == data.labels)

    start = recorded_run.state.params
    assert accuracy(start, problem.forget_data) - accuracy(result.params, problem.forget_data) > 0.3
    assert accuracy(result.params, problem.retain_data) > 0.8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("random_label(epochs=0)", "epochs must be"),
        ("random_label(learning_rate=-1)", "learning_rate must be"),
        ("random_label(batch_size=2.5)", "batch_size must be"),
        ("random_label(retain=1)", "retain is True or False"),
        ("random_label(redraw='yes')", "redraw is True or False"),
        ("random_label(projection='most')", "unknown rank rule"),
    ],
)
def test_bad_hyperparameters(text, message):
    with pytest.raises(unroll.InputError, match=message):
        unroll.methods.method(text)
