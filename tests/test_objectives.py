"""Objectives: the penalties against their formulas, gamma decay, losses by hand, bad options."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import unroll
from unroll.objectives import (
    Objective,
    cross_entropy,
    losses_at,
    sd_penalty,
    softmax_hessian_penalty,
    squared_error,
)
from unroll.training import loop
from unroll.training.step import initial_state
from unroll.unrolling.taylor import advance_taylor, zeros_like_state

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


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_reference_norm_is_the_unbiased_one_over_the_classes(classes):
    logits = np.random.default_rng(classes).normal(size=(3, classes)).astype(np.float32)
    np.testing.assert_allclose(
        sd_penalty(logits, "reference"), sd_penalty(logits, "unbiased") / classes, rtol=1e-6
    )
    # So the reference code's gamma is the population form's times C, up to sqrt(C / (C - 1)).
    losses = [
        Objective(sd_gamma=gamma, sd_norm=norm).example_losses(logits, np.zeros(3, int))
        for gamma, norm in (
            (classes * np.sqrt((classes - 1) / classes), "reference"),
            (1.0, "population"),
        )
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


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


def test_softmax_hessian_penalty_is_the_trace_of_the_dense_hessian():
    with jax.enable_x64(True):
        logits = jnp.asarray(LOGITS, jnp.float64)
        traces = [
            np.trace(jax.hessian(lambda z, y=y: cross_entropy(z[None], y[None])[0])(z))
            for z, y in zip(logits, LABELS, strict=True)
        ]
        np.testing.assert_allclose(softmax_hessian_penalty(logits), traces, rtol=1e-12)
        assert traces[1] == pytest.approx(1 - 1 / 4)  # equal logits: the largest there is
        losses = Objective(hessian_gamma=0.5).example_losses(logits, LABELS)
        np.testing.assert_allclose(losses, cross_entropy(logits, LABELS) + 0.5 * np.array(traces))


def test_gamma_decays_at_the_boundaries():
    """Divided at every fourth step, that step included."""
    spread = np.std(LOGITS, axis=1)
    objective = Objective(sd_gamma=0.8, sd_decay=2.0, sd_decay_every=4)
    at = jax.jit(lambda step: objective.example_losses(LOGITS, LABELS, step))
    plain = Objective().example_losses(LOGITS, LABELS)
    for step, gamma in ((0, 0.8), (3, 0.8), (4, 0.4), (7, 0.4), (8, 0.2), (40, 0.8 / 2**10)):
        expected = plain + gamma * spread
        np.testing.assert_allclose(at(jnp.asarray(step)), expected, rtol=1e-6)
        np.testing.assert_allclose(losses_at(objective, LOGITS, LABELS, step), expected, rtol=1e-6)
    # Far beyond what float32 can hold the weight is 0, not NaN.
    np.testing.assert_allclose(at(jnp.asarray(4000)), plain, rtol=1e-6)
    # Where no step is known, that of step 0.
    np.testing.assert_array_equal(
        losses_at(objective, LOGITS, LABELS), objective.example_losses(LOGITS, LABELS, 0)
    )


@dataclasses.dataclass(frozen=True)
class TwoMethods:
    """An objective that knows of no steps."""

    def example_losses(self, logits, labels):
        return cross_entropy(logits, labels)

    def penalty(self, params):
        del params
        return jnp.zeros(())


def test_an_objective_of_two_methods_is_enough(blobs):
    train, _ = blobs
    model = unroll.models.build("linear", num_classes=3)
    schedule = unroll.data.make_schedule(0, len(train), 24, 1)
    own, plain = (
        unroll.train(unroll.TrainSpec(model, objective), train, schedule)
        for objective in (TwoMethods(), Objective())
    )
    assert unroll.tree.same_bits(own.state, plain.state)


class TestDecayingRun:
    """A run whose gamma halves every two steps, in each form of the loop."""

    decaying = Objective(sd_gamma=4.0, sd_decay=2.0, sd_decay_every=2)
    steps = 6

    def case(self, blobs, objective):
        model = unroll.models.build("mlp", num_classes=3, hidden=(8,))
        spec = unroll.TrainSpec(model, objective)
        train, _ = blobs
        schedule = unroll.data.make_schedule(0, len(train), 24, 2)[: self.steps]
        return spec, train, schedule

    def test_compiled_loop_and_stepwise_follow_the_segments(self, blobs):
        """Each stretch of two steps equals a stretch with that gamma held."""
        spec, train, schedule = self.case(blobs, self.decaying)
        run = unroll.train(spec, train, schedule, record=unroll.Record(every=2))
        stepwise = unroll.train(spec, train, schedule, mode="stepwise")
        assert unroll.tree.same_bits(run.state, stepwise.state)
        for start, gamma in ((0, 4.0), (2, 2.0), (4, 1.0)):
            held = dataclasses.replace(spec, objective=Objective(sd_gamma=gamma))
            arguments = (train, run.snapshots[start], schedule[: start + 2], run.weights, run.key)
            state = unroll.training.run.fit(held, *arguments, start=start)
            chex.assert_trees_all_close(state, run.snapshots[start + 2], atol=1e-6)
        held = dataclasses.replace(spec, objective=Objective(sd_gamma=4.0))
        undecayed = unroll.train(held, train, schedule)
        assert unroll.tree.distance(undecayed.state.params, run.state.params) > 1e-3

    def test_derivatives_of_the_run(self, blobs):
        """Taylor's first coefficient and reverse mode agree with finite differences, float64."""
        with jax.enable_x64(True):
            spec, train, schedule = self.case(blobs, self.decaying)
            examples = loop.device_examples(train)
            examples = examples._replace(inputs=jnp.asarray(examples.inputs, jnp.float64))
            state = initial_state(spec, jax.random.key(0), examples.inputs)
            state = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), state)
            direction = jnp.zeros(len(train)).at[schedule[0, :3]].set(-1.0)
            ones, key = jnp.ones(len(train)), jax.random.key(0)

            @jax.jit
            def trained(weights):
                return loop.scan_steps(spec, state, examples, weights, key, schedule)[0].params

            def total(weights):
                return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(trained(weights)))

            h = 1e-4  # central differences: h^2 against rounding of 1e-15/h
            expected = jax.tree.map(
                lambda a, b: (a - b) / (2 * h),
                trained(ones + h * direction),
                trained(ones - h * direction),
            )
            coefficients = [jax.tree.map(np.array, state), zeros_like_state(state)]
            arguments = (examples, ones, direction, key, jnp.asarray(schedule))
            series = advance_taylor(spec, coefficients, *arguments, 0, self.steps)
            chex.assert_trees_all_close(series[1].params, expected, atol=1e-7)
            forward = jax.jvp(total, (ones,), (direction,))[1]
            np.testing.assert_allclose(jax.grad(total)(ones) @ direction, forward, rtol=1e-10)


def test_gradient_of_l2_is_lambda_times_the_weights():
    """The reference code's weight decay had none: it added a detached norm."""
    params = {"a": jnp.array([3.0, -1.0]), "b": jnp.array([[4.0]])}
    gradient = jax.grad(Objective(l2=0.1).penalty)(params)
    chex.assert_trees_all_close(gradient, jax.tree.map(lambda leaf: 0.1 * leaf, params))


def test_l2_is_half_the_squared_norm():
    params = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    assert Objective(l2=0.1).penalty(params) == pytest.approx(0.05 * 25)
    assert Objective().penalty(params) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(loss="hinge"), "unknown loss"),
        (dict(sd_norm="code"), "unknown sd_norm"),
        (dict(l2=-1.0), "l2 must not be negative"),
        (dict(sd_gamma=float("nan")), "sd_gamma must not be negative, and finite; got nan"),
        (dict(hessian_gamma=float("inf")), "hessian_gamma must not"),
        (dict(singular_gamma="0.1"), "singular_gamma must not"),
        (dict(sd_decay=0.0, sd_decay_every=5), "sd_decay must be a finite number above 0"),
        (dict(sd_decay=2.0), "needs sd_decay_every"),
        (dict(sd_decay=2.0, sd_decay_every=1.5), "sd_decay_every must be a whole number"),
        (dict(singular_iterations=0), "singular_iterations must be a whole number, 1 or more"),
        (dict(hessian_gamma=1.0, loss="squared_error"), "set loss='cross_entropy'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(unroll.InputError, match=message):
        Objective(**options)


@pytest.mark.parametrize("options", [dict(sd_gamma=1.0), dict(l2=0.05), dict(hessian_gamma=2.0)])
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
        measure = sd_penalty if "sd_gamma" in options else softmax_hessian_penalty
        spec = unroll.TrainSpec(model)
        left = [
            float(measure(unroll.predict(spec, params, {}, train)).mean())
            for params in (plain, penalised)
        ]
        assert left[1] < 0.5 * left[0]
