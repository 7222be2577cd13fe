"""Curvature against dense Hessians in float64, and what must be refused."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import unroll
from unroll.training.step import initial_state
from unroll.unrolling import curvature, lanczos
from unroll.unrolling.curvature import Curvature, CurvatureBatch

SMALL = unroll.models.build("mlp", num_classes=3, hidden=(4,), activation="tanh")
SPEC = unroll.TrainSpec(SMALL, objective=unroll.Objective(l2=0.05, sd_gamma=0.3))
ROUNDING = 1e-12  # float64, sums of some dozens of terms of order 1


def double_params(spec, dataset, scale=1.0, seed=0):
    """Parameters in float64, moved away from the zeros of an initialised head."""
    state = initial_state(spec, jax.random.key(seed), jnp.asarray(dataset.inputs))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * (np.asarray(leaf) + 0.3 * rng.normal(size=leaf.shape))),
        state.params,
    )


@functools.partial(jax.jit, static_argnames=("spec",))
def dense_hessian(spec, params, inputs, labels, weights, divisor):
    """Hessian of the loss written out once more, by `jax.hessian` over the flat parameters."""
    flat, unravel = ravel_pytree(params)

    def loss(flat):
        params = unravel(flat)
        logits = spec.model.apply({"params": params}, inputs)
        losses = spec.objective.example_losses(logits, labels)
        return jnp.vdot(weights, losses) / divisor + spec.objective.penalty(params)

    return jax.hessian(loss)(flat)


class Dense:
    """A matrix as an operator."""

    def __init__(self, matrix):
        self.matrix = jnp.asarray(matrix)
        self.dimension, self.dtype = len(matrix), self.matrix.dtype

    def __call__(self, vector):
        return self.matrix @ vector


def symmetric(eigenvalues, seed=0):
    """A dense matrix with these eigenvalues, and its eigenvectors as columns."""
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=[len(eigenvalues)] * 2))
    return basis @ np.diag(eigenvalues) @ basis.T, basis


@pytest.mark.parametrize("chunk_size", [4, 64])
def test_product_equals_the_dense_hessian(blobs, chunk_size):
    """Weights, divisor and penalties included, whatever the chunks."""
    train, _ = blobs
    ids, rng = np.array([5, 2, 90, 33, 7, 8, 60, 41, 12, 13, 100]), np.random.default_rng(0)
    with jax.enable_x64(True):
        weights = rng.uniform(0.5, 2.0, len(ids))
        params = double_params(SPEC, train)
        batch = CurvatureBatch(train, ids, weights, divisor=4.0, chunk_size=chunk_size)
        hessian = dense_hessian(SPEC, params, train.inputs[ids], train.labels[ids], weights, 4.0)
        operator = Curvature(SPEC, params, batch)
        vector = rng.normal(size=operator.dimension)
        assert operator.dtype == np.float64
        np.testing.assert_allclose(
            operator(jnp.asarray(vector)), hessian @ vector, rtol=0, atol=ROUNDING
        )


def test_the_divisor_is_the_sum_of_the_weights_unless_given(blobs):
    train, _ = blobs
    assert CurvatureBatch(train, [1, 2, 3]).divisor == 3
    assert CurvatureBatch(train, [1, 2], weights=[0.5, 2.0]).divisor == 2.5
    assert CurvatureBatch(train, [1, 2], divisor=32).divisor == 32
    assert str(curvature.first_examples(train, 10)).startswith("ids 0 to 9 of blobs")


def test_product_of_trees(blobs, mlp_spec):
    train, _ = blobs
    with jax.enable_x64(True):
        params = double_params(mlp_spec, train)
        batch = curvature.first_examples(train, 20)
        vector = jax.tree.map(jnp.ones_like, params)
        flat = Curvature(mlp_spec, params, batch)(ravel_pytree(vector)[0])
        tree = curvature.hessian_vector_product(mlp_spec, params, batch, vector)
        chex.assert_trees_all_equal_shapes(tree, params)
        np.testing.assert_array_equal(ravel_pytree(tree)[0], flat)


def test_gauss_newton_of_a_linear_model_is_its_hessian(blobs):
    """The logits have no curvature there; an MLP's do, and what is left is never negative."""
    train, _ = blobs
    batch = curvature.first_examples(train, 30)
    linear = dataclasses.replace(SPEC, model=unroll.models.build("linear", num_classes=3))
    linear = dataclasses.replace(linear, objective=unroll.Objective(l2=0.05))
    with jax.enable_x64(True):
        params = double_params(linear, train)
        vector = jax.tree.map(
            lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params
        )
        chex.assert_trees_all_close(
            curvature.gauss_newton_product(linear, params, batch, vector),
            curvature.hessian_vector_product(linear, params, batch, vector),
            rtol=0,
            atol=ROUNDING,
        )
        bent = dataclasses.replace(SPEC, objective=unroll.Objective())
        params = double_params(bent, train, scale=2.0)

        def dense(kind):
            operator = Curvature(bent, params, batch, kind=kind)
            return np.stack([operator(row) for row in jnp.eye(operator.dimension)])

        gauss_newton, hessian = dense("gauss_newton"), dense("hessian")
        assert np.linalg.eigvalsh(gauss_newton)[0] > -ROUNDING
        assert np.linalg.eigvalsh(hessian)[0] < -1e-3


class Masked(nn.Module):
    """A linear map behind dropout."""

    @nn.compact
    def __call__(self, x, train=False, example_keys=None):
        return nn.Dense(3)(unroll.models.layers.ExampleDropout(0.5)(x, train, example_keys))


def test_dropout_is_one_fixed_draw(blobs):
    """For each example, in whatever chunk it is and for both products."""
    train, _ = blobs
    spec = unroll.TrainSpec(Masked())
    state = initial_state(spec, jax.random.key(0), jnp.asarray(train.inputs))
    whole, chunked = (CurvatureBatch(train, np.arange(30), chunk_size=size) for size in (30, 7))
    hessian = Curvature(spec, state.params, whole)
    vector = lanczos.random_vector(hessian, 0)
    expected = hessian(vector)
    np.testing.assert_array_equal(hessian(vector), expected)
    # float32 sums in another order; other masks would change them by some tens of percent.
    close = functools.partial(np.testing.assert_allclose, desired=expected, rtol=1e-4, atol=1e-6)
    close(Curvature(spec, state.params, chunked)(vector))
    # The model is linear, so with the same masks its Gauss-Newton product is its Hessian's.
    close(Curvature(spec, state.params, whole, kind="gauss_newton")(vector))


def test_an_objective_that_decays_is_measured_at_its_step(blobs, mlp_spec):
    """From step 10 on the SD penalty has half its weight, under the same program."""
    train, _ = blobs
    batch = curvature.first_examples(train, 30)
    specs = [
        dataclasses.replace(mlp_spec, objective=unroll.Objective(sd_gamma=gamma, **decay))
        for gamma, decay in [(0.4, dict(sd_decay=2.0, sd_decay_every=10)), (0.2, {})]
    ]
    state = initial_state(mlp_spec, jax.random.key(1), jnp.asarray(train.inputs))
    params = jax.tree.map(lambda leaf: leaf + 0.1, state.params)
    vector = jax.tree.map(jnp.ones_like, params)
    # The Gauss-Newton product writes the loss out; the Hessian takes that of training.
    product = curvature.gauss_newton_product
    early, late = (product(specs[0], params, batch, vector, step=step) for step in (0, 10))
    half = product(specs[1], params, batch, vector)
    chex.assert_trees_all_close(late, half, rtol=1e-5, atol=1e-6)
    assert unroll.tree.distance(early, late) > 1e-2 * unroll.tree.norm(late)


@dataclasses.dataclass(frozen=True)
class Upside:
    """A loss upside down: its curvature is mostly negative."""

    def example_losses(self, logits, labels):
        return -unroll.objectives.cross_entropy(logits, labels)

    def penalty(self, params):
        del params
        return jnp.zeros(())


@pytest.mark.parametrize("algorithm", ["lanczos", "power"])
@pytest.mark.parametrize("objective", [SPEC.objective, Upside()])
def test_largest_eigenvalue_equals_the_dense_one(blobs, objective, algorithm):
    """Of either sign; sigma is its magnitude, and the residual is what it says."""
    train, _ = blobs
    spec = dataclasses.replace(SPEC, objective=objective)
    with jax.enable_x64(True):
        params = double_params(spec, train)
        batch = curvature.first_examples(train, 40)
        hessian = dense_hessian(
            spec, params, train.inputs[:40], train.labels[:40], np.ones(40), 40.0
        )
        values = np.linalg.eigvalsh(hessian)
        expected = values[np.argmax(np.abs(values))]
        found = curvature.largest_eigenvalue(
            spec, params, batch, algorithm=algorithm, tolerance=1e-6, iterations=2000
        )
        # The error is at most residual^2 / gap; 1e-6 squared, with room for a gap of 1e-3.
        np.testing.assert_allclose(found.value, expected, rtol=1e-8)
        assert found.sigma == abs(found.value) and found.converged
        assert (found.value < 0) == isinstance(objective, Upside)
        vector = np.asarray(found.vector)
        residual = np.linalg.norm(hessian @ vector - found.value * vector)
        np.testing.assert_allclose(found.residual, residual, rtol=1e-4, atol=1e-12)
        assert residual <= 1e-6 * found.sigma
        np.testing.assert_allclose(np.linalg.norm(vector), 1.0, rtol=1e-12)


def test_equal_magnitudes_of_both_signs():
    """Lanczos separates 2 and -2; power iteration cannot, and says that it did not converge."""
    with jax.enable_x64(True):
        operator = Dense(symmetric([2.0, -2.0, 1.0, 0.5, 0.1, -0.7, 0.2, 0.3])[0])
        found = lanczos.largest_eigenpair(operator)
        # Residual^2 over the gap of 1: (1e-3 * 2)^2.
        np.testing.assert_allclose(found.sigma, 2.0, atol=4e-6)
        assert found.converged
        assert not lanczos.power_iteration(operator).converged


def test_too_few_iterations_are_said():
    with jax.enable_x64(True):
        operator = Dense(symmetric(np.linspace(1, 2, 60))[0])
        found = lanczos.largest_eigenpair(operator, iterations=3, tolerance=1e-6)
        assert not found.converged and found.residual > 1e-6 * found.sigma
        assert found.products == 4


def test_a_warm_start_saves_products_and_does_not_stick():
    """Near the vector it is quick; on a smaller eigenvalue's vector it still finds the largest."""
    with jax.enable_x64(True):
        eigenvalues = np.concatenate([np.linspace(-1, 1, 80), [1.3, -1.5]])
        matrix, basis = symmetric(eigenvalues)
        operator = Dense(matrix)
        cold = lanczos.largest_eigenpair(operator, tolerance=1e-4)
        nearby = basis[:, -1] + 0.01 * basis[:, 3]
        warm = lanczos.largest_eigenpair(operator, tolerance=1e-4, start=nearby)
        stuck = lanczos.largest_eigenpair(operator, tolerance=1e-4, start=basis[:, -2])
        for found in (cold, warm, stuck):
            np.testing.assert_allclose(found.value, -1.5, rtol=1e-6)
        assert warm.products < cold.products


def test_no_curvature_is_zero_and_not_an_error():
    with jax.enable_x64(True):
        operator = Dense(np.zeros([5, 5]))
        for algorithm in (lanczos.largest_eigenpair, lanczos.power_iteration):
            found = algorithm(operator)
            assert found.value == 0 and found.residual == 0 and found.converged
        density = lanczos.spectral_density(operator, probes=2)
        assert density.trace == 0 and np.isfinite(density.density).all()


def test_basis_stays_orthonormal_in_float32():
    """With reorthogonalisation, also long after the outer eigenvalues have converged."""
    matrix, _ = symmetric(np.concatenate([[50.0, 20.0], np.linspace(0, 1, 78)]))
    operator = Dense(matrix.astype(np.float32))
    found = lanczos.lanczos(operator, lanczos.random_vector(operator, 0), 40)
    gram = np.asarray(found.basis @ found.basis.T)
    # Rounding of 80 terms in float32 is about 1e-6.
    np.testing.assert_allclose(gram, np.eye(40), atol=1e-5)
    assert found.eigen()[0][-1] == pytest.approx(50.0, rel=1e-5)
    assert np.sum(found.eigen()[0] > 10) == 2


def test_spectral_density_against_dense_eigenvalues(blobs):
    """Quadrature of k nodes gives the first 2k - 1 moments of each probe to rounding."""
    train, _ = blobs
    with jax.enable_x64(True):
        params = double_params(SPEC, train)
        batch = curvature.first_examples(train, 40)
        hessian = dense_hessian(
            SPEC, params, train.inputs[:40], train.labels[:40], np.ones(40), 40.0
        )
        density = curvature.spectral_density(SPEC, params, batch, probes=30, iterations=8, seed=3)
        operator = Curvature(SPEC, params, batch)
        probe = np.array(lanczos.random_vector(operator, 3, 0))
        probe /= np.linalg.norm(probe)
        for power in range(6):
            exact = probe @ np.linalg.matrix_power(hessian, power) @ probe
            row = (density.weights[0] * density.nodes[0] ** power).sum()
            np.testing.assert_allclose(row, exact, rtol=1e-9)
        values = np.linalg.eigvalsh(hessian)
        for power in (1, 2, 3):
            estimate, error = density.moment(power)
            # Four standard errors: a chance of 1 in 10,000, and the seed is fixed.
            assert abs(estimate - (values**power).sum()) < 4 * error
        assert density.trace == density.moment(1)[0]
        np.testing.assert_allclose(density.weights.sum(axis=1), 1.0, rtol=1e-10)
        assert np.trapezoid(density.density, density.grid) == pytest.approx(1.0, abs=1e-5)
        assert density.grid[0] < values[0] and density.grid[-1] > values[-1]
        assert density.dimension == len(values) and density.products == 30 * 8


def test_spectral_density_with_all_iterations_is_the_smoothed_spectrum():
    """With as many nodes as eigenvalues the nodes are the eigenvalues."""
    with jax.enable_x64(True):
        eigenvalues = np.array([-1.0, 0.0, 0.5, 2.0])
        operator = Dense(symmetric(eigenvalues)[0])
        density = lanczos.spectral_density(operator, probes=400, iterations=9, bandwidth=0.1)
        np.testing.assert_allclose(density.nodes[0], eigenvalues, atol=1e-10)
        expected = lanczos.smooth(eigenvalues[None], np.full([1, 4], 0.25), density.grid, 0.1)
        # 400 probes: a weight of 1/4 is known to 0.2 / sqrt(400) = 0.01, its peak to 4% of 1.
        np.testing.assert_allclose(density.density, expected, atol=0.15)
        assert expected.max() > 0.9


def test_the_value_is_known_before_its_vector():
    """Its error is of second order in the residual: fewer products for the same tolerance."""
    eigenvalues = np.append(np.linspace(-1.0, 6.0, 60), 10.0)
    with jax.enable_x64(True):
        operator = Dense(symmetric(eigenvalues)[0])
        by_value, by_residual = (
            lanczos.largest_eigenpair(operator, tolerance=1e-4, criterion=criterion)
            for criterion in ("value", "residual")
        )
        assert by_value.converged and by_residual.converged
        assert by_value.value == pytest.approx(10.0, rel=1e-4)
        assert by_value.products < by_residual.products
        assert by_value.residual > 1e-4 * by_value.value > by_residual.residual
        product = operator(by_value.vector) - by_value.value * by_value.vector
        assert float(jnp.linalg.norm(product)) == pytest.approx(by_value.residual, rel=1e-6)
        stopped = lanczos.largest_eigenpair(operator, iterations=4, criterion="value")
        assert not stopped.converged


def test_unknown_criteria_are_refused(blobs, mlp_spec, recorded_run):
    batch, params = curvature.first_examples(blobs[0], 20), recorded_run.state.params
    measure = functools.partial(curvature.largest_eigenvalue, mlp_spec, params, batch)
    with pytest.raises(unroll.InputError, match="unknown criterion 'vector'"):
        measure(criterion="vector")
    with pytest.raises(unroll.InputError, match="power iteration stops by its residual"):
        measure(algorithm="power", criterion="value")


def test_compiled_once_for_other_parameters_and_batches(blobs, mlp_spec):
    train, _ = blobs
    measure = curvature.largest_eigenvalue
    runs = [
        (seed, CurvatureBatch(train, ids, weights))
        for seed, ids, weights in [
            (0, np.arange(48), None),
            (1, np.arange(50, 98), np.linspace(0, 1, 48)),
        ]
    ]
    sizes = []
    for seed, batch in runs:
        state = initial_state(mlp_spec, jax.random.key(seed), jnp.asarray(train.inputs))
        measure(mlp_spec, state.params, batch, iterations=8)
        sizes.append(curvature._apply._cache_size())
    assert sizes[0] == sizes[1]


class Normalised(nn.Module):
    """Batch normalisation and dropout: what training has and a loss formula does not."""

    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train=False, example_keys=None, example_weights=None):
        x = nn.Dense(5)(x)
        x = unroll.models.layers.BatchNorm()(x, train, example_weights)
        x = unroll.models.layers.ExampleDropout(self.dropout)(jnp.tanh(x), train, example_keys)
        return nn.Dense(3)(x)


def test_training_form_is_measured_and_nothing_is_changed(blobs):
    """Weighted batch statistics, of which an example of weight 0 is no part; running ones stay."""
    train, _ = blobs
    spec = unroll.TrainSpec(Normalised())
    state = initial_state(spec, jax.random.key(0), jnp.asarray(train.inputs))
    before = unroll.tree.content_hash(state)
    moved = jax.tree.map(lambda leaf: leaf + 5.0, state.model_state)
    some = CurvatureBatch(train, np.arange(24))
    weights = np.append(np.ones(24), np.zeros(8))
    padded = CurvatureBatch(train, np.arange(32), weights)
    vector = lanczos.random_vector(Curvature(spec, state.params, some), 0)
    measured = [
        Curvature(spec, state.params, batch, model_state=other)(vector)
        for batch, other in [(some, state.model_state), (some, moved), (padded, moved)]
    ]
    # float32 sums in another order.
    np.testing.assert_allclose(measured[1], measured[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(measured[2], measured[0], rtol=1e-5, atol=1e-5)
    assert unroll.tree.content_hash(state) == before


def test_images_in_uint8_through_a_network_with_convolutions():
    """Preprocessing and convolutions inside the scan over chunks, against one chunk."""
    train, _ = unroll.data.load("random_images", num_train=20, num_test=4, size=8)
    spec = unroll.TrainSpec(
        unroll.models.build("cnn", num_classes=4, channels=(4,)),
        preprocess=unroll.Normalize(train.mean, train.std),
    )
    state = initial_state(spec, jax.random.key(0), jnp.asarray(train.inputs))
    whole, chunked = (
        curvature.largest_eigenvalue(
            spec, state.params, curvature.first_examples(train, 20, chunk_size=size), iterations=12
        )
        for size in (20, 6)
    )
    assert whole.sigma > 0
    np.testing.assert_allclose(chunked.value, whole.value, rtol=1e-3)


def test_curvature_that_is_not_finite_is_an_error(blobs, mlp_spec):
    train, _ = blobs
    batch = curvature.first_examples(train, 8)
    state = initial_state(mlp_spec, jax.random.key(0), jnp.asarray(train.inputs))
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), state.params)
    with pytest.raises(unroll.InputError, match="not finite"):
        curvature.largest_eigenvalue(mlp_spec, broken, batch)
    huge = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e30), state.params)
    with pytest.raises(unroll.DivergenceError, match="not finite"):
        curvature.largest_eigenvalue(mlp_spec, huge, batch)
    with pytest.raises(unroll.DivergenceError, match="not finite"):
        lanczos.power_iteration(Dense(np.full([3, 3], np.inf)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(ids=[]), "at least one"),
        (dict(ids=[1, 1]), "each id once"),
        (dict(ids=[500]), "out of range"),
        (dict(ids=[1, 2], weights=[1.0]), "one finite number"),
        (dict(ids=[1, 2], weights=[1.0, np.nan]), "one finite number"),
        (dict(ids=[1, 2], weights=[1.0, -1.0]), "divided by 0"),
        (dict(ids=[1], divisor=np.inf), "divided by inf"),
        (dict(ids=[1], chunk_size=0), "chunk_size"),
    ],
)
def test_bad_batches_are_refused(blobs, options, message):
    with pytest.raises(unroll.InputError, match=message):
        CurvatureBatch(blobs[0], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kind="fisher"), "unknown curvature"),
        (dict(algorithm="qr"), "unknown algorithm"),
        (dict(tolerance=0.0), "tolerance"),
        (dict(iterations=0), "iterations"),
        (dict(start=np.zeros(163, np.float32)), "zero or not finite"),
        (dict(start=np.ones(3, np.float32)), "flat vector"),
    ],
)
def test_bad_requests_are_refused(recorded_run, options, message):
    batch = curvature.first_examples(recorded_run.dataset, 8)
    with pytest.raises(unroll.InputError, match=message):
        curvature.largest_eigenvalue(recorded_run.spec, recorded_run.state.params, batch, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(probes=0), "probes"),
        (dict(bandwidth=-1.0), "bandwidth"),
        (dict(grid=[1.0, 0.0]), "ascending"),
    ],
)
def test_bad_densities_are_refused(options, message):
    with pytest.raises(unroll.InputError, match=message):
        lanczos.spectral_density(Dense(np.eye(3)), **options)


def test_a_vector_of_another_shape_is_refused(recorded_run):
    batch = curvature.first_examples(recorded_run.dataset, 8)
    params = recorded_run.state.params
    with pytest.raises(unroll.InputError, match="shapes of the parameters"):
        curvature.hessian_vector_product(recorded_run.spec, params, batch, {"a": np.ones(3)})
