"""Proxies of memorization: known answers of each, their directions, and one wrong label."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy

import unroll
from unroll.memorization import gradient_norms
from unroll.memorization.gradient_norms import metagradient_self_influence
from unroll.memorization.holdout import symmetric_divergence
from unroll.memorization.learning_events import forgetting_counts
from unroll.memorization.loss_curvature import input_curvature
from unroll.memorization.proxies import PROXIES, Proxy, Subject, proxy
from unroll.memorization.subject import Measurement
from unroll.training.events import Events, collect, train_with_events
from unroll.training.spec import apply_model
from unroll.types import TrainState

WRONG = 17
OPTIONS = {
    "el2n": "el2n(epochs=2, seeds=2)",
    "grand": "grand(epochs=2, seeds=2)",
    "holdout_retraining": "holdout_retraining(epochs=4, batch_size=16)",
}


@pytest.fixture(scope="module")
def subject():
    """A run on blobs far apart, in which one example has a wrong label.

    The blobs and the example are chosen so that the wrong label is in doubt during the training:
    max confidence, entropy and curvature know no label, and find nothing where a model is sure.
    """
    sizes = dict(num_train=90, num_test=60, num_features=6, num_classes=3)
    train, test = unroll.data.load("blobs", noise=0.4, **sizes)
    train = unroll.data.mislabel(train, ids=[WRONG])
    spec = unroll.TrainSpec(
        unroll.models.build("mlp", num_classes=3, hidden=(64,), activation="gelu"),
        optimizer=unroll.optax_call("sgd", learning_rate=0.03, momentum=0.9),
    )
    schedule = unroll.data.make_schedule(0, len(train), batch_size=15, epochs=10)
    run, events = train_with_events(spec, train, schedule, record=unroll.Record(every=6))
    return Subject(run, events, test)


@pytest.mark.parametrize("name", PROXIES)
def test_a_wrong_label_is_ranked_top(subject, name):
    result = proxy(OPTIONS.get(name, name))(subject)
    assert result.raw.shape == (90,) and result.raw.dtype == np.float64
    others = np.delete(result.scores, WRONG)
    assert result.scores[WRONG] > others.max()
    assert result.seconds >= 0 and result.name == str(proxy(OPTIONS.get(name, name)))


def test_directions_turn_scores_round(subject):
    signs = {name: make().direction for name, make in PROXIES.items()}
    assert {name for name, sign in signs.items() if sign == -1} == {
        "confidence",
        "max_confidence",
        "binary_accuracy",
    }
    for name in ("confidence", "entropy"):
        result = proxy(name)(subject)
        np.testing.assert_array_equal(result.scores, signs[name] * result.raw)
        turned = dataclasses.replace(result, direction=-result.direction)
        np.testing.assert_array_equal(np.argsort(turned.scores), np.argsort(result.scores)[::-1])


def test_learning_events_keep_their_bounds(subject):
    values = {name: proxy(name)(subject).raw for name in ("confidence", "entropy")}
    assert (0 <= values["confidence"]).all() and (values["confidence"] <= 1).all()
    assert (0 <= values["entropy"]).all() and (values["entropy"] <= np.log(3)).all()


def test_costs_count_a_forward_pass_as_a_third(subject):
    run = subject.run
    assert run.example_gradients == 900 and len(run.snapshots) == 11
    expected = {
        "confidence": 0,
        "forgetting_events": 0,
        "el2n(epochs=2, seeds=2)": 2 * (180 + 90 / 3),
        "grand(epochs=2, seeds=2)": 2 * (180 + 90),
        "holdout_retraining(epochs=4, batch_size=16)": 4 * 60 + 2 * 90 / 3,
        "loss_curvature": 10 * 2 * 90 * 2 / 3,
        "loss_curvature(final=True)": 2 * 90 * 2 / 3,
        "self_influence": 900,  # each stretch is an epoch, in which all are used
    }
    for text, cost in expected.items():
        assert proxy(text)(subject).example_gradients == pytest.approx(cost), text


def test_what_was_never_learned_counts_as_forgotten_at_every_visit():
    correct = np.array([[0, 1, 1], [0, 0, 1], [0, 1, 1]], np.float32)  # visits by examples
    outputs = np.repeat(correct[:, :, None], 4, axis=2)
    events = collect(np.tile(np.arange(3, dtype=np.int32), (3, 1)), outputs, 3)
    np.testing.assert_array_equal(events.forgetting, [0, 1, 0])
    np.testing.assert_array_equal(forgetting_counts(events), [3, 1, 0])


# EL2N, GraNd and self-influence.


def loss_gradients(run, state):
    """Squared norm of each example's gradient by plain autodiff, one example after the other."""

    @jax.jit
    def square(params, example, label):
        def loss(params):
            logits, _ = apply_model(run.spec, params, {}, example[None], train=False)
            return run.spec.objective.example_losses(logits, label[None])[0]

        return sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(jax.grad(loss)(params)))

    data = run.dataset
    pairs = zip(data.inputs, data.labels, strict=True)
    return np.array([square(state.params, *pair) for pair in pairs])


def test_el2n_and_grand_are_means_over_short_runs_of_other_seeds(subject):
    run = subject.run
    early = [gradient_norms._early_run(subject, 2, index, None) for index in range(2)]
    assert len({run.seed, *(each.seed for each in early)}) == 3
    assert all(each.example_gradients == 180 for each in early)
    naive = np.mean([np.sqrt(loss_gradients(each, each.state)) for each in early], axis=0)
    np.testing.assert_allclose(proxy("grand(epochs=2, seeds=2)")(subject).raw, naive, rtol=1e-4)
    errors = []
    for each in early:
        logits = unroll.predict(run.spec, each.state.params, {}, run.dataset)
        onehot = jax.nn.one_hot(run.dataset.labels, 3)
        errors.append(np.linalg.norm(jax.nn.softmax(logits) - onehot, axis=1))
    # Softmax in float32 here and in float64 there.
    found = proxy("el2n(epochs=2, seeds=2)")(subject).raw
    np.testing.assert_allclose(found, np.mean(errors, axis=0), rtol=1e-5, atol=1e-6)


def test_error_norm_by_hand():
    logits = np.array([[0.0, 0.0], [1000.0, -1000.0], [1000.0, -1000.0]])
    found = gradient_norms.error_norms(logits, np.array([0, 0, 1]))
    np.testing.assert_allclose(found, [np.sqrt(0.5), 0, np.sqrt(2)], atol=1e-12)


def test_self_influence_is_the_sum_over_uses(subject):
    """A gradient of step t acts in the T - t steps left: 0.03 (1 + 0.9 + ... + 0.9^(T - t - 1))."""
    run, expected = subject.run, np.zeros(90)
    squares = {begin: loss_gradients(run, run.snapshots[begin]) for begin in range(0, 60, 6)}
    for step, slots in enumerate(run.schedule):
        expected[slots] += 0.3 * (1 - 0.9 ** (60 - step)) / 15 * squares[step - step % 6][slots]
    np.testing.assert_allclose(proxy("self_influence")(subject).raw, expected, rtol=1e-4)


def test_metagradient_self_influence_is_the_derivative_in_the_own_weight(subject):
    run = subject.run
    found = metagradient_self_influence(run, [3, WRONG, 40], group_size=2)
    assert found.raw.shape == (3,) and found.raw[1] == found.raw.max() > 0
    assert found.example_gradients > 2 * 3 * run.example_gradients
    # A central difference of two retrainings, whose weights differ by 0.02.
    losses = []
    for change in (-0.01, 0.01):
        weights = run.weights.copy()
        weights[WRONG] += change
        again = unroll.train(run.spec, run.dataset, run.schedule, weights=weights)
        logits = unroll.predict(run.spec, again.state.params, {}, run.dataset)
        losses.append(-jax.nn.log_softmax(logits)[WRONG, run.dataset.labels[WRONG]])
    # Rounding of float32 losses over a difference of 0.02, and the third derivative.
    assert found.raw[1] == pytest.approx(float(losses[0] - losses[1]) / 0.02, rel=0.05)


# Holdout retraining.


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.1, 3.0, 300.0]))
def test_divergence_is_that_of_scipy_and_never_negative(seed, scale):
    rng = np.random.default_rng(seed)
    first, second = scale * rng.normal(size=(2, 5, 4))
    found = symmetric_divergence(first, second)
    assert np.isfinite(found).all() and (found >= 0).all()
    np.testing.assert_array_equal(symmetric_divergence(first, first), 0)
    np.testing.assert_allclose(symmetric_divergence(second, first), found)
    if scale < 100:  # beyond, scipy divides by a probability of 0
        p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (first, second))
        both = scipy_entropy(p, q, axis=1) + scipy_entropy(q, p, axis=1)
        np.testing.assert_allclose(found, both / 2, rtol=1e-6, atol=1e-12)


def test_holdout_retraining_of_a_model_that_stays_is_zero(subject):
    moved = proxy("holdout_retraining(learning_rate=1e-30, epochs=1)")(subject)
    np.testing.assert_array_equal(moved.raw, 0)
    assert (proxy("holdout_retraining(epochs=1)")(subject).raw > 0).all()


# Loss curvature.


class Affine(nn.Module):
    classes: int = 3

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes, param_dtype=x.dtype)(x)


@dataclasses.dataclass(frozen=True)
class LinearLoss:
    """Linear in the logits, so in the inputs of an affine model."""

    def example_losses(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]

    def penalty(self, params: Any) -> jax.Array:
        return jnp.zeros(())


def affine_problem(objective, count=11):
    rng = np.random.default_rng(0)
    data = unroll.data.Dataset(
        "points", rng.normal(size=(count, 4)).astype(np.float32), np.arange(count) % 3, 3
    )
    params = {"Dense_0": {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)}}
    params = jax.tree.map(np.float32, params)
    return unroll.TrainSpec(Affine(), objective), TrainState(params, (), {}), data


def test_curvature_of_a_quadratic_loss_is_exact():
    """L = ||x W + b - y||^2 / 2 has H = W W^T, and z has entries +- h / 2 in four dimensions."""
    spec, state, data = affine_problem(unroll.Objective(loss="squared_error"))
    kernel, bias = state.params["Dense_0"]["kernel"], state.params["Dense_0"]["bias"]
    residual = data.inputs @ kernel + bias - np.eye(3)[data.labels]
    z = 0.5 * np.sign(residual @ kernel.T) / 2
    expected = np.linalg.norm(z @ (kernel @ kernel.T), axis=1)
    for batch_size in (3, 11, 500):
        found = input_curvature(spec, state, data, h=0.5, batch_size=batch_size)
        np.testing.assert_allclose(found, expected, rtol=1e-5)  # float32


def test_curvature_of_a_linear_loss_is_zero():
    spec, state, data = affine_problem(LinearLoss())
    np.testing.assert_array_equal(input_curvature(spec, state, data, h=0.5), 0)


def test_curvature_where_the_slope_vanishes_is_zero():
    spec, state, data = affine_problem(unroll.Objective())
    flat = TrainState(jax.tree.map(np.zeros_like, state.params), (), {})
    np.testing.assert_array_equal(input_curvature(spec, flat, data), 0)


def test_curvature_is_averaged_over_the_states_after_the_first(subject):
    run = subject.run
    parts = [input_curvature(run.spec, run.snapshots[t], run.dataset) for t in run.snapshots if t]
    found = proxy("loss_curvature")(subject)
    assert found.info == {"states": 10}
    np.testing.assert_allclose(found.raw, np.mean(parts, axis=0), rtol=1e-12)
    final = proxy("loss_curvature(final=True)")(subject).raw
    np.testing.assert_array_equal(final, parts[-1])


# What cannot work.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("luck", "unknown proxy 'luck'"),
        ("el2n(steps=3)", "unknown option 'steps'"),
        ("el2n(seeds=0)", "seeds must be a whole number"),
        ("holdout_retraining(learning_rate=-1)", "learning_rate must be a number above 0"),
        ("loss_curvature(h=0)", "h must be a number above 0"),
    ],
)
def test_unknown_names_and_options_are_refused(text, message):
    with pytest.raises(unroll.InputError, match=message):
        proxy(text)


def test_what_is_missing_or_does_not_fit_is_refused(subject, blobs):
    bare = Subject(subject.run)
    with pytest.raises(unroll.InputError, match="entropy needs events: train with"):
        proxy("entropy")(bare)
    with pytest.raises(unroll.InputError, match="needs held_out: give"):
        proxy("holdout_retraining")(bare)
    short = Events(*[np.zeros(3)] * 6, np.zeros((3, 4)))
    with pytest.raises(unroll.InputError, match="events of 3 examples"):
        Subject(subject.run, short)
    with pytest.raises(unroll.InputError, match="give examples of the same task"):
        Subject(subject.run, held_out=unroll.data.load("random_images", num_train=8)[0])
    spec = dataclasses.replace(subject.run.spec, optimizer=unroll.optax_call("adam", 0.01))
    with pytest.raises(unroll.InputError, match="optimiser|sgd"):
        proxy("self_influence")(Subject(dataclasses.replace(subject.run, spec=spec)))
    tokens = unroll.data.Dataset("words", np.ones((4, 3), np.int32), np.zeros(4, int), 2)
    with pytest.raises(unroll.InputError, match="words holds int32"):
        input_curvature(spec, subject.run.state, tokens)


def test_a_value_that_is_not_finite_names_its_example(subject):
    broken = Proxy(
        "broken", {}, 1, frozenset(), lambda *_: Measurement(np.array([0, np.nan, 1.0]), 0)
    )
    with pytest.raises(unroll.DivergenceError, match="broken of example 1 is not finite"):
        broken(subject)
