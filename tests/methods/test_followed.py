"""The methods that follow the difference to the twin: exact limits, and their parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.methods.deltagrad import quasi_newton_product
from unroll.methods.sampled import inclusion_probabilities, systematic_sample
from unroll.methods.segments import krylov_functions
from unroll.unrolling import recorded
from unroll.unrolling.recorded import Layout, forgotten_slots, record_weights

FOLLOWING = ("sampled(examples=4)", "deltagrad()", "segments(examples=8)")


def relative_error(text, problem):
    twin = unroll.unlearn("retrain", problem)
    result = unroll.unlearn(text, problem)
    original = problem.run.state.params
    return unroll.relative_verification_error(result.params, twin.params, original)


@pytest.mark.parametrize("text", ["sampled(examples=16)", "deltagrad(period=1)"])
@pytest.mark.parametrize("l2", [0.0, 0.05])
def test_with_every_example_of_every_step_it_is_the_twin(blobs, mlp_spec, text, l2):
    """The recursion is exact; what is left is the rounding of another program."""
    spec = dataclasses.replace(mlp_spec, objective=unroll.Objective(l2=l2))
    schedule = unroll.data.make_schedule(0, len(blobs[0]), batch_size=16, epochs=3)
    run = unroll.train(spec, blobs[0], schedule)
    assert relative_error(text, unroll.Problem(run, np.array([3, 17, 40]))) < 1e-3


def test_more_examples_are_better(problem):
    errors = [relative_error(f"sampled(examples={count})", problem) for count in (2, 8, 14)]
    assert errors[0] > errors[1] > errors[2]


def test_a_forgotten_example_may_fill_several_slots_of_a_batch(blobs, mlp_spec):
    schedule = np.arange(48, dtype=np.int32).reshape(3, 16)
    schedule[1, :5] = 3
    run = unroll.train(mlp_spec, blobs[0], schedule)
    # The sample is the whole batch: the twin up to rounding.
    assert relative_error("sampled(examples=16)", unroll.Problem(run, np.array([3, 17]))) < 1e-3


LEAST_SQUARES = 24
"""Examples of the problem below, all in every batch; example 5 is forgotten."""


def least_squares(
    rate=0.01, weights=None, slots=LEAST_SQUARES, steps=60, num_classes=3, **objective
):
    """One matrix is the curvature of the whole run."""
    train, _ = unroll.data.load(
        "blobs", num_train=LEAST_SQUARES, num_test=8, num_features=3, num_classes=num_classes
    )
    spec = unroll.TrainSpec(
        unroll.models.build("linear", num_classes=num_classes),
        objective=unroll.Objective(loss="squared_error", **objective),
        optimizer=unroll.optax_call("sgd", learning_rate=rate),
    )
    schedule = np.full((steps, slots), -1, np.int32)
    schedule[:, :LEAST_SQUARES] = np.arange(LEAST_SQUARES)
    if "sd_decay" in objective:
        schedule[0, 5] = -1  # the first step still has the penalty
    return unroll.Problem(unroll.train(spec, train, schedule, weights=weights), np.array([5]))


def test_segments_are_exact_for_constant_curvature_and_small_steps():
    """Least squares on whole batches; exp(-x) is 1 - x for small x."""
    problem = least_squares(rate=0.002, num_classes=2)
    # Every segment takes its forgotten gradients at its middle; more segments are nearer.
    coarse = relative_error("segments(count=1, examples=24, rank=8)", problem)
    fine = relative_error("segments(count=15, examples=24, rank=8)", problem)
    assert fine < coarse / 2 and fine < 0.02


@pytest.mark.parametrize(
    "case",
    [
        dict(weights=np.full(LEAST_SQUARES, 2.0)),
        dict(weights=np.arange(LEAST_SQUARES) % 2),
        dict(l2=1.0),
        dict(l2=1.0, slots=2 * LEAST_SQUARES),
        dict(sd_gamma=3.0, sd_decay=1e6, sd_decay_every=1),
    ],
    ids=["heavy", "half of weight 0", "l2", "l2 and empty slots", "a penalty that is gone"],
)
def test_segments_have_the_curvature_of_the_run(case):
    """Weights, empty slots, the l2 penalty and the step of the objective all enter it."""
    error = relative_error("segments(count=30, examples=24, rank=8)", least_squares(**case))
    assert error < 0.05


def test_costs_are_counted():
    """24 of 48 slots are filled in each of 60 steps, one of them with the forgotten example."""
    problem = least_squares(slots=2 * LEAST_SQUARES)
    filled, uses = 60 * 24, 60
    # Exact are the steps 0, 1, 4, 8, ..., 56: curvature is positive, so none is added.
    found = unroll.unlearn("deltagrad(period=4, burn_in=2)", problem)
    assert found.info["exact_steps"] == 16
    assert found.example_gradients == 16 * 24 + uses
    assert found.info["preparation_example_gradients"] == filled
    found = unroll.unlearn("sampled(examples=6)", problem)
    assert found.example_gradients == 60 * 6 + uses
    assert found.info["preparation_example_gradients"] == filled * 4 / 3 + 60 * 6
    # A segment takes one forgotten gradient, and 3 products of 8 examples for each function.
    found = unroll.unlearn("segments(count=5, examples=8, rank=3)", problem)
    assert found.example_gradients == pytest.approx(5 * (1 + 2 * 3 * 8 * 4 / 3))


def test_deltagrad_is_good_between_its_exact_steps(blobs, mlp_spec):
    """On full batches a secant pair speaks for the next steps."""
    run = unroll.train(mlp_spec, blobs[0], np.tile(np.arange(120, dtype=np.int32), (60, 1)))
    problem = unroll.Problem(run, np.array([3, 17]))
    # Measured 0.079; 0.57 with no curvature between, 0.96 with the pairs exchanged.
    assert relative_error("deltagrad(period=4)", problem) < 0.2


def test_deltagrad_takes_steps_of_learning_rate_zero(blobs, mlp_spec):
    """A warm-up begins with one, and a decay to zero ends with some: there the run rests."""
    rate = unroll.optax_call("warmup_cosine_decay_schedule", 0.0, 0.1, 2, 6)
    spec = dataclasses.replace(mlp_spec, optimizer=unroll.optax_call("sgd", rate))
    schedule = unroll.data.make_schedule(0, len(blobs[0]), batch_size=16, epochs=1)
    problem = unroll.Problem(unroll.train(spec, blobs[0], schedule), schedule[2, :3])
    # Rounding of weights that move by some 1e-2.
    assert relative_error("deltagrad(period=1)", problem) < 1e-3
    # Exact are 0 and 6 by their number, and 7 since the run rests at 6, which gives no pair.
    assert unroll.unlearn("deltagrad(period=6, burn_in=1)", problem).info["exact_steps"] == 3


def test_inclusion_probabilities():
    scores = jnp.asarray([8.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(
        inclusion_probabilities(scores, 2), [1, 0.25, 0.25, 0.25, 0.25, 0], rtol=1e-6
    )
    np.testing.assert_allclose(inclusion_probabilities(scores, 5), [1, 1, 1, 1, 1, 0])
    np.testing.assert_allclose(inclusion_probabilities(scores, 6), [1, 1, 1, 1, 1, 0])


def test_a_systematic_sample_has_these_probabilities():
    q = inclusion_probabilities(jnp.asarray([4.0, 1.0, 1.0, 2.0]), 2)
    uniform = (jnp.arange(400) + 0.5) / 400  # a grid stands for all draws
    positions = jax.vmap(lambda u: systematic_sample(q, u, 2))(uniform)
    found = [(positions == index).any(axis=1).mean() for index in range(4)]
    np.testing.assert_allclose(found, q, atol=1 / 400)
    assert ((positions < 4).sum(axis=1) == 2).all()


def test_the_quasi_newton_product_meets_the_secant_equation_and_a_quadratic():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        root = rng.normal(size=(4, 4))
        hessian = root @ root.T + np.eye(4)
        s = jnp.asarray(rng.normal(size=(4, 4)))
        y = s @ hessian
        newest = quasi_newton_product(s[2:], y[2:], s[3])
        np.testing.assert_allclose(newest, y[3], rtol=1e-10)
        # Pairs along conjugate directions determine a quadratic.
        _, vectors = np.linalg.eigh(hessian)
        conjugate = jnp.asarray(vectors.T)
        vector = jnp.asarray(rng.normal(size=4))
        found = quasi_newton_product(conjugate, conjugate @ hessian, vector)
        np.testing.assert_allclose(found, hessian @ vector, rtol=1e-9)
        padded = [jnp.concatenate([jnp.zeros((2, 4)), pairs[3:]]) for pairs in (s, y)]
        np.testing.assert_allclose(quasi_newton_product(*padded, s[3]), y[3], rtol=1e-10)
        nothing = quasi_newton_product(jnp.zeros((2, 4)), jnp.zeros((2, 4)), vector)
        np.testing.assert_array_equal(nothing, 0)


def test_krylov_functions_equal_those_of_the_dense_matrix():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        root = rng.normal(size=(6, 6))
        matrix, start = root @ root.T / 6, jnp.asarray(rng.normal(size=6))
        values, vectors = np.linalg.eigh(matrix)
        functions = [lambda x: jnp.exp(-x), lambda x: x**2]
        found = krylov_functions(lambda v: matrix @ v, start, 6, functions)
        for f, result in zip(functions, found, strict=True):
            dense = (vectors * f(values)) @ vectors.T @ start
            np.testing.assert_allclose(result, dense, rtol=1e-8, atol=1e-10)
        early = krylov_functions(lambda v: 2.0 * v, start, 4, [lambda x: x])[0]
        np.testing.assert_allclose(early, 2 * start, rtol=1e-12)
        np.testing.assert_array_equal(krylov_functions(lambda v: v, 0 * start, 3, functions)[0], 0)


def test_the_record_is_the_run(recorded_run):
    record = record_weights(recorded_run, "this")
    assert len(record.weights) == recorded_run.steps + 1
    for step in recorded_run.snapshots:
        kept = record.unflatten(record.weights[step])
        expected = recorded_run.snapshots[step].params
        # Another program than the run's: equal up to rounding.
        assert tree.distance(tree.to_host(kept), expected) < 1e-5 * tree.norm(expected)
    assert Layout.of(recorded_run.state.params) == record.unflatten


def test_forgotten_slots():
    schedule = np.array([[4, 1, 2], [0, 3, -1], [2, 4, 1]], np.int32)
    slots = forgotten_slots(schedule, np.array([2]))
    np.testing.assert_array_equal(slots, [[2], [-1], [2]])
    both = forgotten_slots(schedule[[0, 2]], np.array([2, 4]))
    np.testing.assert_array_equal(both, [[4, 2], [2, 4]])
    assert forgotten_slots(schedule, np.array([], int)).shape == (3, 1)


@pytest.mark.parametrize("text", FOLLOWING)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(optimizer=unroll.optax_call("sgd", 0.1, momentum=0.9)), "plain sgd"),
        (dict(optimizer=unroll.optax_call("adam", 0.01)), "plain sgd"),
        (dict(denominator="renormalise"), "denominator='batch'"),
    ],
)
def test_what_the_recursion_does_not_cover_is_refused(blobs, mlp_spec, text, change, words):
    spec = dataclasses.replace(mlp_spec, **change)
    schedule = unroll.data.make_schedule(0, len(blobs[0]), batch_size=16, epochs=1)
    problem = unroll.Problem(unroll.train(spec, blobs[0], schedule), np.array([3]))
    with pytest.raises(unroll.InputError, match=words):
        unroll.unlearn(text, problem)


def test_a_record_that_does_not_fit_is_refused_before_any_work(problem, monkeypatch):
    monkeypatch.setattr(recorded, "MEMORY_LIMIT", 1000)
    with pytest.raises(unroll.InputError, match="keeps the weights of 24 steps.*use replay"):
        unroll.unlearn("deltagrad()", problem)


def test_more_examples_than_the_batch_holds_are_refused(problem):
    with pytest.raises(unroll.InputError, match="batch of 16"):
        unroll.unlearn("sampled(examples=17)", problem)
