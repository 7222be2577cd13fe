"""The singular-value penalty: known Hessians, its gradient, and what a run must keep with it."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import unroll
from unroll import tree
from unroll.objectives import (
    Objective,
    normalized,
    power_iterations,
    random_direction,
)
from unroll.training import loop
from unroll.training.step import (
    Examples,
    data_loss,
    gather,
    initial_state,
    start_state,
    train_step,
)
from unroll.types import TrainState
from unroll.unrolling.taylor import advance_taylor, zeros_like_state

NUM, DIM, CLASSES = 12, 4, 3
EVERYTHING = np.arange(NUM)


class Network(nn.Module):
    """A tanh layer of 5 units, or a linear map for `hidden=0`."""

    hidden: int = 5

    @nn.compact
    def __call__(self, x):
        if self.hidden:
            x = jnp.tanh(nn.Dense(self.hidden, param_dtype=x.dtype)(x))
        return nn.Dense(CLASSES, param_dtype=x.dtype)(x)


def make_case(hidden=5, rate=0.2, **objective):
    spec = unroll.TrainSpec(
        Network(hidden), Objective(**objective), unroll.optax_call("sgd", learning_rate=rate)
    )
    rng = np.random.default_rng(3)
    examples = Examples(
        jnp.asarray(rng.normal(size=(NUM, DIM))), jnp.asarray(rng.integers(0, CLASSES, NUM))
    )
    return spec, examples, initial_state(spec, jax.random.key(0), examples.inputs)


def flat_loss(spec, examples, params, weights=None, slots=EVERYTHING):
    """The data term of a batch as a function of the flat parameters, and where it is taken."""
    weights = jnp.ones(NUM) if weights is None else weights
    batch = gather(spec, examples, weights, jax.random.key(0), jnp.asarray(0), slots)
    flat, unravel = ravel_pytree(params)
    return lambda x: data_loss(spec, unravel(x), {}, batch), flat


@jax.jit(static_argnames=("spec",))
def dense_hessian(spec, examples, params):
    loss, flat = flat_loss(spec, examples, params)
    return jax.hessian(lambda x: loss(x)[0])(flat)


def top_magnitude(hessian):
    return np.abs(np.linalg.eigvalsh(hessian)).max()


def steps_of(spec, state, examples, count, slots=EVERYTHING, weights=None):
    weights = jnp.ones(NUM) if weights is None else weights
    schedule = jnp.tile(jnp.asarray(slots), (count, 1))
    return jax.jit(loop.scan_steps, static_argnames=("spec",))(
        spec, state, examples, weights, jax.random.key(0), schedule
    )


@pytest.mark.parametrize("eigenvalues", [(3.0, -1.0, 0.5), (-3.0, 2.0, 1.0)])
def test_value_converges_to_the_largest_magnitude_of_a_quadratic(eigenvalues):
    """Also where the largest is negative; a constant Hessian adds nothing to the gradient."""
    with jax.enable_x64(True):
        basis = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
        hessian = jnp.asarray(basis @ np.diag(eigenvalues) @ basis.T)

        def loss(params):
            return 0.5 * params["w"] @ hessian @ params["w"], {}

        objective = Objective(singular_gamma=0.1)
        params = {"w": jnp.array([1.0, -2.0, 0.5])}
        state = objective.initial_state(jax.random.key(1), params)
        assert tree.norm(state) == pytest.approx(1)
        errors = []
        iterate = jax.jit(lambda v: objective.value_and_gradient(loss, params, v))
        for _ in range(60):
            value, gradient, _, state = iterate(state)
            errors.append(abs((value - loss(params)[0]) / 0.1 - 3.0))
            np.testing.assert_allclose(gradient["w"], hessian @ params["w"], rtol=1e-12)
        # The error falls by the squared ratio of the two largest magnitudes at each step: 4/9.
        assert errors[10] < 0.1 and errors[-1] < 1e-12
        np.testing.assert_allclose(
            np.abs(state["w"]), np.abs(basis[:, 0]), atol=1e-8
        )  # up to its sign


def test_value_converges_along_the_steps_of_a_least_squares_fit():
    """The Hessian of least squares is that of the inputs, whatever the parameters."""
    with jax.enable_x64(True):
        spec, examples, state = make_case(0, loss="squared_error", singular_gamma=0.5)
        hessian = dense_hessian(spec, examples, state.params)
        ones = np.concatenate([examples.inputs, np.ones((NUM, 1))], axis=1)
        assert top_magnitude(hessian) == pytest.approx(np.linalg.norm(ones, 2) ** 2 / NUM)
        _, losses = steps_of(spec, state, examples, 120)
        plain = dataclasses.replace(spec, objective=Objective(loss="squared_error"))
        start = start_state(plain, jax.random.key(0), state.params)
        _, without = steps_of(plain, start, examples, 120)
        penalties = (losses - without) / 0.5
        assert penalties[0] < 0.9 * top_magnitude(hessian)
        np.testing.assert_allclose(penalties[-1], top_magnitude(hessian), rtol=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradient_equals_finite_differences_of_the_top_eigenvalue(sign):
    """At a converged v; with weights of -1 the largest magnitude belongs to a negative one."""
    with jax.enable_x64(True):
        spec, examples, state = make_case(singular_gamma=1.0)
        loss, flat = flat_loss(spec, examples, state.params, weights=sign * jnp.ones(NUM))
        hessian = jax.jit(jax.hessian(lambda x: loss(x)[0]))
        eigenvalues, vectors = np.linalg.eigh(hessian(flat))
        top = np.abs(eigenvalues).argmax()
        assert np.sign(eigenvalues[top]) == sign
        penalised = jax.jit(lambda v: spec.objective.value_and_gradient(loss, flat, v))
        value, gradient, _, _ = penalised(jnp.asarray(vectors[:, top]))
        np.testing.assert_allclose(value - loss(flat)[0], abs(eigenvalues[top]), rtol=1e-10)
        h = 1e-5  # central differences: h^2 against rounding of 1e-15/h

        def total(x):
            return float(loss(x)[0]) + top_magnitude(hessian(x))

        expected = [
            (total(flat + h * e) - total(flat - h * e)) / (2 * h) for e in np.eye(len(flat))
        ]
        np.testing.assert_allclose(gradient, expected, atol=1e-8)
        plain = jax.jit(jax.grad(lambda x: loss(x)[0]))(flat)
        assert np.abs(gradient - plain).max() > 1e-2  # the penalty is a part of it


def test_each_iteration_is_a_power_iteration():
    """`singular_iterations=3` is two more of them before the one that comes with the gradient."""
    with jax.enable_x64(True):
        spec, examples, state = make_case(singular_gamma=1.0, singular_iterations=3)
        loss, flat = flat_loss(spec, examples, state.params)
        vector = ravel_pytree(state.objective_state)[0]
        hessian = dense_hessian(spec, examples, state.params)
        once = dataclasses.replace(spec.objective, singular_iterations=1)
        prepared = jax.jit(lambda v: power_iterations(loss, flat, v, 2))(vector)
        expected = hessian @ hessian @ vector
        np.testing.assert_allclose(prepared, expected / np.linalg.norm(expected), atol=1e-12)
        chex.assert_trees_all_close(
            jax.jit(lambda v: spec.objective.value_and_gradient(loss, flat, v))(vector),
            jax.jit(lambda v: once.value_and_gradient(loss, flat, v))(prepared),
            rtol=1e-12,
        )


def test_a_run_with_the_penalty_ends_with_less_curvature():
    """Measured densely after 300 full-batch steps; both runs fit better than chance."""
    tops, fits = [], []
    with jax.enable_x64(True):
        for gamma in (0.0, 0.1):
            spec, examples, state = make_case(rate=0.1, singular_gamma=gamma)
            state, _ = steps_of(spec, state, examples, 300)
            plain = dataclasses.replace(spec, objective=Objective())
            tops.append(top_magnitude(dense_hessian(plain, examples, state.params)))
            loss, flat = flat_loss(plain, examples, state.params)
            fits.append(float(loss(flat)[0]))
    assert tops[1] < 0.7 * tops[0]
    assert max(fits) < 0.8 * np.log(CLASSES)


def test_a_removed_example_leaves_no_trace():
    """Weight 0 equals an empty slot, in the parameters and in the vector, bit for bit."""
    spec, examples, state = make_case(singular_gamma=0.3, singular_iterations=2)
    weights = jnp.ones(NUM).at[7].set(0.0)
    key, step = jax.random.key(0), jnp.asarray(0)
    jitted = jax.jit(train_step, static_argnames=("spec",))
    arguments = (spec, state, examples, weights, key, step)
    with_zero, _ = jitted(*arguments, np.array([3, 7, 5]))
    absent, _ = jitted(*arguments, np.array([3, -1, 5]))
    present, _ = jitted(spec, state, examples, jnp.ones(NUM), key, step, np.array([3, 7, 5]))
    assert tree.same_bits(tree.to_host(with_zero), tree.to_host(absent))
    assert tree.distance(with_zero.objective_state, present.objective_state) > 1e-3


def test_a_batch_without_weight_changes_nothing():
    """Its Hessian is 0: the vector stays, and so do the derivatives in the state."""
    spec, examples, state = make_case(singular_gamma=0.3)

    @jax.jit
    def after(state):
        return train_step(
            spec,
            state,
            examples,
            jnp.zeros(NUM),
            jax.random.key(0),
            jnp.asarray(0),
            np.arange(4),
        )[0]

    chex.assert_trees_all_equal(after(state), state)
    # A moved vector moves the vector after the step by as much.
    moved = jax.tree.map(jnp.zeros_like, state)._replace(objective_state=state.objective_state)
    chex.assert_trees_all_equal(jax.jvp(after, (state,), (moved,))[1], moved)


# Derivatives of whole runs: v is a part of the state, and depends on the example weights.


def test_derivatives_of_a_run_equal_finite_differences():
    """Taylor's first coefficient, of the vector too, and reverse mode through the scan."""
    with jax.enable_x64(True):
        spec, examples, _ = make_case(singular_gamma=0.4, l2=0.01)
        spec = dataclasses.replace(
            spec, optimizer=unroll.optax_call("sgd", learning_rate=0.1, momentum=0.5)
        )
        state = initial_state(spec, jax.random.key(0), examples.inputs)
        schedule = jnp.asarray(unroll.data.make_schedule(0, NUM, 4, 2))
        direction = jnp.zeros(NUM).at[jnp.array([2, 9])].set(-1.0)
        ones, key = jnp.ones(NUM), jax.random.key(0)

        def trained(weights):
            return loop.scan_steps(spec, state, examples, weights, key, schedule)[0]

        h = 1e-4  # central differences: h^2 against rounding of 1e-15/h
        final = jax.jit(trained)
        expected = jax.tree.map(
            lambda a, b: (a - b) / (2 * h),
            final(ones + h * direction),
            final(ones - h * direction),
        )
        coefficients = [jax.tree.map(np.array, state), zeros_like_state(state)]
        series = advance_taylor(
            spec, coefficients, examples, ones, direction, key, schedule, 0, len(schedule)
        )
        chex.assert_trees_all_close(series[1].params, expected.params, atol=1e-7)
        chex.assert_trees_all_close(series[1].objective_state, expected.objective_state, atol=1e-7)
        assert tree.norm(expected.objective_state) > 0.01

        probe = jnp.sin(jnp.arange(tree.flatten(expected.params).size))
        gradient = jax.jit(jax.grad(lambda w: probe @ ravel_pytree(trained(w).params)[0]))(ones)
        slope = probe @ ravel_pytree(expected.params)[0]
        np.testing.assert_allclose(gradient @ direction, slope, atol=1e-7)
        assert np.all(gradient != 0)


# What the library promises for every run.


@pytest.fixture(scope="module")
def spec():
    return unroll.TrainSpec(
        unroll.models.build("mlp", num_classes=3, hidden=(8,)),
        Objective(singular_gamma=0.05, singular_iterations=2),
    )


@pytest.fixture(scope="module")
def run(spec, blobs):
    schedule = unroll.data.make_schedule(1, len(blobs[0]), batch_size=24, epochs=2)
    return unroll.train(spec, blobs[0], schedule, record=unroll.Record(every=3))


def test_the_three_loops_give_the_same_bits(spec, blobs, run):
    train = blobs[0]
    stepwise = unroll.train(spec, train, run.schedule, mode="stepwise")
    assert tree.same_bits(stepwise.state, run.state)
    scanned, _ = jax.jit(loop.scan_steps, static_argnames=("spec",))(
        spec,
        initial_state(spec, run.key, train.inputs),
        loop.device_examples(train),
        jnp.asarray(run.weights),
        run.key,
        run.schedule,
    )
    assert tree.same_bits(tree.to_host(scanned), run.state)


def test_twin_starts_from_the_same_vector_and_replay_finds_it(run):
    problem = unroll.Problem(run, run.schedule[4, :3])
    twin = unroll.train(run.spec, run.dataset, run.schedule, weights=problem.twin_weights)
    assert tree.same_bits(twin.snapshots[0], run.snapshots[0])
    assert tree.norm(run.snapshots[0].objective_state) == pytest.approx(1, rel=1e-6)
    assert not tree.same_bits(twin.state.objective_state, run.state.objective_state)
    replayed = unroll.unlearn("replay", problem)
    assert tree.same_bits(replayed.params, twin.state.params)
    order_one = unroll.unlearn("taylor(order=1)", problem).params
    relative = unroll.relative_verification_error(order_one, twin.state.params, run.state.params)
    assert relative < 0.2


def test_another_seed_has_another_vector(spec, blobs):
    vectors = [
        initial_state(spec, jax.random.key(seed), blobs[0].inputs).objective_state
        for seed in (0, 1)
    ]
    assert tree.distance(*vectors) > 0.5


def test_the_store_keeps_the_vector(spec, blobs, run, tmp_path):
    """A run killed in the middle goes on with the same bits, and is read back with its vector."""
    store = unroll.Store(tmp_path, progress_seconds=0.0)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unroll.train(spec, blobs[0], run.schedule, store=store, progress=stop)
    for _ in range(2):
        again = unroll.train(spec, blobs[0], run.schedule, store=store)
        assert tree.same_bits(again.state, run.state)
        assert tree.same_bits(again.snapshots[0], run.snapshots[0])


def test_ensembles_and_predictions(spec, blobs, run):
    train, test = blobs
    ensemble = unroll.train_ensemble(spec, train, run.schedule, seeds=(0, 1), mode="batched")
    # Batched models are summed in another order.
    chex.assert_trees_all_close(ensemble.member(0), run.state, atol=1e-4)
    assert unroll.predict(spec, run.state.params, run.state.model_state, test).shape == (60, 3)


def test_convolutions_and_running_statistics(images):
    """Third derivatives of convolutions, max pooling and weighted batch statistics are finite."""
    model = unroll.models.build(
        "cnn", num_classes=3, channels=(4,), normalization="batch", pool="max"
    )
    spec = unroll.TrainSpec(model, Objective(singular_gamma=0.01))
    schedule = unroll.data.make_schedule(1, 64, batch_size=32, epochs=2)
    run = unroll.train(spec, images[0], schedule)
    first = run.snapshots[0]
    chex.assert_trees_all_equal_shapes_and_dtypes(run.state, first)
    assert np.isfinite(run.losses).all() and tree.is_finite(run.state)
    assert not tree.same_bits(run.state.model_state, first.model_state)
    assert tree.distance(run.state.objective_state, first.objective_state) > 0.1


def test_a_state_without_a_vector_is_refused_and_start_state_gives_one(spec, blobs, run):
    train = blobs[0]
    plain = unroll.train(dataclasses.replace(spec, objective=Objective()), train, run.schedule[:2])
    assert plain.state.objective_state == ()
    bare = TrainState(plain.state.params, plain.state.opt_state, {})
    with pytest.raises(unroll.InputError, match="start_state"):
        unroll.training.run.fit(spec, train, bare, run.schedule, run.weights, run.key)
    start = start_state(spec, run.key, plain.state.params)
    tuned = unroll.train(spec, train, run.schedule, initial=start)
    assert tree.same_bits(tuned.snapshots[0], tree.to_host(start))


def test_normalized_of_zero_is_the_other_one():
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.zeros((2, 1))}
    unit = normalized(params, params)
    np.testing.assert_allclose(unit["a"], [0.6, 0.8], rtol=1e-6)
    zero = jax.tree.map(jnp.zeros_like, params)
    chex.assert_trees_all_equal(normalized(zero, unit), unit)
    drawn = random_direction(jax.random.key(0), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(drawn, params)
    assert tree.norm(drawn) == pytest.approx(1, rel=1e-6)
