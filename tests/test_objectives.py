"""Objectives: the SD penalty in its three forms, losses by hand, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import unroll
from unroll.objectives import Objective, sd_penalty, squared_error

LOGITS = jnp.array([[1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 0.0, 0.0], [-1.0, 1.0, -1.0, 1.0]])
LABELS = jnp.array([3, 0, 1])


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("population", np.std(LOGITS, axis=1)),
        ("unbiased", np.std(LOGITS, axis=1, ddof=1)),
        ("reference", np.std(LOGITS, axis=1, ddof=1) / 4),
    ],
)
def test_sd_penalty_is_the_standard_deviation_over_classes(norm, expected):
    np.testing.assert_allclose(sd_penalty(LOGITS, norm), expected, rtol=1e-6)


@given(st.floats(-100, 100), st.integers(0, 100))
def test_sd_penalty_ignores_a_constant(shift, seed):
    logits = np.random.default_rng(seed).normal(size=(3, 5)).astype(np.float32)
    # Adding 100 to numbers near 1 costs about 1e-5 of them in float32.
    np.testing.assert_allclose(
        sd_penalty(logits + np.float32(shift)), sd_penalty(logits), rtol=1e-3
    )


@pytest.mark.parametrize("norm", ["population", "unbiased", "reference"])
def test_sd_penalty_has_finite_derivatives_at_equal_logits(norm):
    """A zero-initialised head gives equal logits, where the root has no derivative."""

    def total(logits):
        return sd_penalty(logits, norm).sum()

    gradient = jax.grad(total)(LOGITS)
    assert np.isfinite(gradient).all() and not gradient[1].any() and gradient[0].any()
    curvature = jax.jvp(jax.grad(total), (LOGITS,), (jnp.ones_like(LOGITS),))[1]
    assert np.isfinite(curvature).all()


def test_losses_by_hand():
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    expected = -np.log(probabilities[np.arange(3), LABELS])
    np.testing.assert_allclose(Objective().example_losses(LOGITS, LABELS), expected, rtol=1e-5)
    squares = 0.5 * ((LOGITS - np.eye(4)[LABELS]) ** 2).sum(axis=1)
    np.testing.assert_allclose(squared_error(LOGITS, LABELS), squares, rtol=1e-6)
    penalised = Objective(sd_gamma=0.5).example_losses(LOGITS, LABELS)
    np.testing.assert_allclose(penalised, expected + 0.5 * np.std(LOGITS, axis=1), rtol=1e-5)


def test_l2_is_half_the_squared_norm():
    params = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    assert Objective(l2=0.1).penalty(params) == pytest.approx(0.05 * 25)
    assert Objective().penalty(params) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(loss="hinge"), "unknown loss"),
        (dict(sd_norm="code"), "unknown sd_norm"),
        (dict(l2=-1.0), "must not be negative"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(unroll.InputError, match=message):
        Objective(**options)


@pytest.mark.parametrize("options", [dict(sd_gamma=1.0), dict(l2=0.05)])
def test_penalties_reach_the_trained_model(blobs, options):
    """Training with a penalty ends with less of what it penalises."""
    train, _ = blobs
    model = unroll.models.build("mlp", num_classes=3, hidden=(16,))
    schedule = unroll.data.make_schedule(0, len(train), 24, 10)
    plain, penalised = (
        unroll.train(unroll.TrainSpec(model, objective), train, schedule).state.params
        for objective in (Objective(), Objective(**options))
    )
    if "l2" in options:
        assert unroll.tree.norm(penalised) < 0.95 * unroll.tree.norm(plain)
    else:
        spec = unroll.TrainSpec(model)
        spread = [
            float(sd_penalty(unroll.predict(spec, params, {}, train)).mean())
            for params in (plain, penalised)
        ]
        assert spread[1] < 0.5 * spread[0]
