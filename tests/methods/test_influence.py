"""Influence unlearning: exact where theory says so, and the defect of the published recursion."""

import dataclasses
import sys

import jax
import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.methods.influence import (
    Point,
    batches,
    influence,
    mean_gradient_change,
)
from unroll.methods.influence import _example_gradients as example_gradients
from unroll.training import memory


@dataclasses.dataclass(frozen=True)
class Concave(unroll.Objective):
    """Cross-entropy minus 50 ||w||^2."""

    def penalty(self, params):
        return -50 * sum((leaf**2).sum() for leaf in jax.tree.leaves(params))


def flat(layer):
    """Kernel and bias of `Logistic` in the order of `ravel_pytree`: bias first."""
    return np.concatenate([np.ravel(layer[1]), np.ravel(layer[0])])


def least_squares(problem, l2):
    """The optimum on the given ids: mean of half squared distances + l2/2 |w|^2, dense."""

    def solve(ids):
        data = problem.run.dataset
        inputs = np.hstack([data.inputs[ids].astype(np.float64), np.ones((len(ids), 1))])
        targets = np.eye(3)[data.labels[ids]]
        matrix = inputs.T @ inputs / len(ids) + l2 * np.eye(inputs.shape[1])
        both = np.linalg.solve(matrix, inputs.T @ targets / len(ids))
        return both[:-1], both[-1]

    return solve


def replaced(problem, kernel, bias, **spec):
    """The problem with these parameters as the original model's, and weights of 1."""
    run = problem.run
    params = jax.tree.map(lambda leaf: kernel if leaf.ndim == 2 else bias, run.state.params)
    run = dataclasses.replace(
        run,
        spec=dataclasses.replace(run.spec, **spec),
        weights=np.ones(120, np.float32),
        state=run.state._replace(params=params),
    )
    return dataclasses.replace(problem, run=run)


@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_one_step_lands_at_the_retrained_optimum_of_least_squares(logistic, curvature, l2):
    problem, closed = logistic
    solve = least_squares(problem, l2)
    objective = unroll.Objective(loss="squared_error", l2=l2)
    problem = replaced(problem, *solve(np.arange(120)), objective=objective)
    method = influence(damping=0, curvature=curvature, tolerance=1e-13, batch_size=50)
    result = method(jax.random.key(0), problem)
    start, expected = closed.of(problem.run.state.params), solve(problem.retain)
    found = closed.of(result.params)
    # Conjugate gradients in float64, a condition number of a few hundred.
    np.testing.assert_allclose(flat(found), flat(expected), rtol=0, atol=1e-10)
    assert np.abs(flat(expected) - flat(start)).max() > 1e-3
    assert result.info["relative_residual"] < 1e-12 and "warning" not in result.info


def dense(problem, closed):
    """v and the empirical Fisher matrix in numpy."""
    labels = problem.run.dataset.labels

    def gradient(ids):
        return flat(closed.gradient(ids, labels[ids], np.ones(len(ids))))  # a mean

    vector = gradient(np.arange(120)) - gradient(problem.retain)
    each = np.stack([gradient(np.array([example])) for example in problem.retain])
    return vector, each


@pytest.fixture
def weighted_as_one(logistic):
    problem, closed = logistic
    return replaced(problem, closed.kernel, closed.bias), closed


def change(closed, result):
    return flat(closed.of(result.params)) - flat((closed.kernel, closed.bias))


def test_v_is_the_change_of_the_mean_gradient(weighted_as_one):
    problem, closed = weighted_as_one
    run = problem.run
    for size in (7, 500):
        found = mean_gradient_change(
            run.spec,
            run.state,
            problem.forget_data,
            problem.retain_data,
            np.ones(116, np.float32),
            size,
        )
        # Sums of 120 numbers in float64.
        np.testing.assert_allclose(found, dense(problem, closed)[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("damping", [1.0, 0.01])
def test_the_exact_solver_agrees_with_the_dense_damped_inverse(weighted_as_one, damping):
    problem, closed = weighted_as_one
    vector, each = dense(problem, closed)
    fisher = each.T @ each / len(each)
    expected = np.linalg.solve(fisher + damping * np.eye(len(vector)), vector)
    method = influence(2.0, solver="woodfisher_exact", damping=damping, batch_size=50)
    result = method(jax.random.key(0), problem)
    # Float64, a condition number of at most a thousand; padding to 150 rows adds nothing.
    np.testing.assert_allclose(change(closed, result), 2 * expected, rtol=1e-9, atol=1e-13)
    assert result.example_gradients == 120 + 116 and result.info["examples"] == 116


def test_conjugate_gradients_agree_with_the_dense_gauss_newton_matrix(weighted_as_one):
    """For softmax regression it is the Hessian: sum of x x^T kron (diag p - p p^T), plus l2."""
    problem, closed = weighted_as_one
    problem = replaced(problem, closed.kernel, closed.bias, objective=unroll.Objective(l2=0.05))
    vector, _ = dense(problem, closed)
    inputs = problem.retain_data.inputs.astype(np.float64)
    logits = inputs @ closed.kernel + closed.bias
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows = np.hstack([np.ones((len(inputs), 1)), inputs])  # the bias comes first
    bent = np.einsum("nc,cd->ncd", shares, np.eye(3)) - np.einsum("nc,nd->ncd", shares, shares)
    matrix = np.einsum("ni,nj,ncd->icjd", rows, rows, bent).reshape(21, 21) / len(inputs)
    expected = np.linalg.solve(matrix + (0.05 + 0.1) * np.eye(21), vector)
    for curvature, cost in (("gauss_newton", 4 / 3), ("hessian", 2)):
        options = dict(curvature=curvature, iterations=50, tolerance=1e-12, batch_size=32)
        method = influence(damping=0.1, **options)
        result = method(jax.random.key(0), problem)
        np.testing.assert_allclose(change(closed, result), expected, rtol=0, atol=1e-11)
        products = (result.example_gradients - 120) / (116 * cost)
        assert products == pytest.approx(result.info["iterations"] + 1)


def test_the_published_recursion_only_moves_along_the_first_gradient(weighted_as_one):
    """Its defect: the result is v / damping and a multiple of one gradient."""
    problem, closed = weighted_as_one
    vector, each = dense(problem, closed)
    method = influence(solver="woodfisher", damping=1.0, batch_size=50)
    off = change(closed, method(jax.random.key(0), problem)) - vector
    cosine = off @ each[0] / np.linalg.norm(off) / np.linalg.norm(each[0])
    assert abs(cosine) == pytest.approx(1, abs=1e-9)
    # The recursion once more in numpy.
    moved, direction = vector.copy(), each[0].copy()
    for gradient in each[1:]:
        overlap = direction @ gradient
        moved = moved - (moved @ gradient) / (116 + overlap) * direction
        direction = direction * (1 - overlap / (116 + overlap))
    np.testing.assert_allclose(off, moved - vector, rtol=1e-9, atol=1e-13)
    # The exact product is elsewhere.
    exact = influence(solver="woodfisher_exact", damping=1.0)(jax.random.key(0), problem)
    other = change(closed, exact) - vector
    assert abs(other @ each[0]) < 0.9 * np.linalg.norm(other) * np.linalg.norm(each[0])


@pytest.mark.parametrize("solver", ["cg", "woodfisher_exact", "woodfisher"])
def test_the_direction_raises_the_loss_on_the_forget_set(problem, solver):
    result = influence(0.5, solver, damping=1.0)(jax.random.key(0), problem)

    def loss(params):
        logits = unroll.predict(problem.run.spec, params, {}, problem.forget_data)
        return unroll.metrics.outputs.loss(logits, problem.forget_data.labels)

    assert loss(result.params) > loss(problem.run.state.params)
    assert result.info["step"] == pytest.approx(
        tree.distance(result.params, problem.run.state.params), rel=1e-4
    )


def test_gradients_of_examples_with_batch_normalisation(normalized_problem):
    """In evaluation mode an example's gradient does not depend on its batch."""
    run = normalized_problem.run
    data, weights = run.dataset.take(np.arange(10)), np.arange(1, 11, dtype=np.float32)
    point = Point(run.state.params, run.state.model_state)
    both = [
        np.asarray(example_gradients(run.spec, point, batches(data, weights, size)))[:10]
        for size in (1, 4)
    ]
    np.testing.assert_allclose(both[0], both[1], atol=1e-5)  # float32
    result = unroll.unlearn("influence(solver='woodfisher_exact')", normalized_problem)
    assert tree.same_bits(result.model_state, run.state.model_state)


def test_a_sample_depends_on_the_key_and_is_counted(problem):
    method = influence(examples=20, iterations=3, tolerance=1e-9)
    one, other = (method(jax.random.key(seed), problem) for seed in (0, 1))
    assert tree.distance(one.params, other.params) > 0
    # Three products in the loop and one for the residual.
    assert one.example_gradients == pytest.approx(120 + 4 * 20 * 4 / 3)
    assert "stopped at a residual" in one.info["warning"]


def test_what_does_not_fit_is_refused(problem, monkeypatch):
    limits = memory.Limits(None, 100_000, shared=True)
    # The package's attribute of this name is the factory.
    monkeypatch.setattr(sys.modules["unroll.methods.influence"], "memory_limits", lambda: limits)
    with pytest.raises(unroll.InputError, match="128 gradients of 163 parameters.*lower examples"):
        unroll.unlearn("influence(solver='woodfisher_exact')", problem)


def test_negative_curvature_is_said(weighted_as_one):
    """Least squares under a penalty of the wrong sign, which nobody would train with."""
    problem, closed = weighted_as_one
    problem = replaced(problem, closed.kernel, closed.bias, objective=Concave())
    result = influence(damping=1.0)(jax.random.key(0), problem)
    assert "negative along the step" in result.info["warning"]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_divergence_and_refusal(problem):
    with pytest.raises(unroll.DivergenceError, match="not finite"):
        unroll.unlearn("influence(scale=1e300)", problem)
    spec = dataclasses.replace(problem.run.spec, objective=unroll.Objective(singular_gamma=0.1))
    run = dataclasses.replace(problem.run, spec=spec)
    with pytest.raises(unroll.InputError, match="singular"):
        unroll.unlearn("influence", dataclasses.replace(problem, run=run))


@pytest.mark.parametrize("solver", ["cg", "woodfisher_exact", "woodfisher"])
def test_progress_reaches_its_end(problem, solver):
    seen = []
    influence(solver=solver)(jax.random.key(0), problem, lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1] and seen == sorted(seen)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scale=0", "scale must be"),
        ("solver='lu'", "unknown solver"),
        ("curvature='fisher'", "unknown curvature"),
        ("damping=-1", "damping must be"),
        ("damping=0, solver='woodfisher'", "damping must be"),
        ("examples=0", "examples must be"),
        ("iterations=0", "iterations must be"),
        ("tolerance=0", "tolerance must be"),
        ("batch_size=0", "batch_size must be"),
    ],
)
def test_bad_hyperparameters(text, message):
    with pytest.raises(unroll.InputError, match=message):
        unroll.methods.method(f"influence({text})")
