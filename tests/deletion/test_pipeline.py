"""The four steps: inverse products against dense ones, noise that says what it is, refusals."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.deletion.gaussian_mechanism import gaussian_sigma
from unroll.deletion.inverse_products import arnoldi, conjugate_gradients, lissa
from unroll.deletion.output_noise import (
    NoNoise,
    OutputNoise,
    Sensitivity,
    add_noise,
    measured_distance,
    measured_statement,
    optimum_distance,
    strongly_convex_distance,
)
from unroll.deletion.pipeline import (
    AlongTrajectory,
    InverseCurvature,
    NewtonStep,
    Pipeline,
    TaylorSum,
    shaped_like,
)
from unroll.deletion.validation import METRICS, Check
from unroll.errors import DivergenceError, InputError
from unroll.methods.influence import mean_gradient_change

FORGET = np.array([3, 17, 40, 77])


class Dense:
    """A symmetric matrix as an operator, which counts its products."""

    def __init__(self, matrix):
        self.matrix, self.dimension, self.dtype = jnp.asarray(matrix), len(matrix), jnp.float64
        self.products = 0

    def __call__(self, vector):
        self.products += 1
        return self.matrix @ vector


@pytest.fixture
def system():
    """A matrix of eigenvalues 0 to 2, a vector, and float64."""
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.normal(size=(12, 12)))[0]
    matrix = basis @ np.diag(np.linspace(0, 2, 12)) @ basis.T
    with jax.enable_x64(True):
        yield matrix, random.normal(size=12)


@pytest.fixture(scope="module")
def convex(blobs):
    """Softmax regression with l2, trained by full batches nearly to its optimum in float32."""
    train, _ = blobs
    spec = unroll.TrainSpec(
        unroll.models.build("linear", num_classes=3),
        objective=unroll.Objective(l2=0.05),
        optimizer=unroll.optax_call("sgd", learning_rate=0.5),
        denominator="renormalise",
    )
    schedule = unroll.data.make_schedule(0, len(train), batch_size=120, epochs=150)
    return unroll.Problem(unroll.train(spec, train, schedule), FORGET)


@pytest.fixture(scope="module")
def twin(convex):
    run = convex.run
    weights = convex.twin_weights
    return unroll.train(run.spec, run.dataset, run.schedule, weights=weights).state.params


def solve_densely(matrix, vector, damping):
    return np.linalg.solve(matrix + damping * np.eye(len(vector)), vector)


@pytest.mark.parametrize("damping", [0.05, 1.0])
def test_each_solver_agrees_with_the_dense_inverse(system, damping):
    matrix, vector = system
    expected = solve_densely(matrix, vector, damping)
    step = 2 / (2 + 2 * damping)  # the best one for eigenvalues from damping to 2 + damping
    runs = {
        "cg": lambda op: conjugate_gradients(op, vector, damping, tolerance=1e-12),
        # (2 / (2 + 2 damping))^iterations is below 1e-11.
        "lissa": lambda op: lissa([op], vector, damping, step=step, iterations=600),
        "arnoldi": lambda op: arnoldi(op, vector, damping, rank=12),
    }
    for name, solve in runs.items():
        operator = Dense(matrix)
        found = solve(operator)
        # Float64, a condition number of 41 at most.
        np.testing.assert_allclose(found.vector, expected, rtol=0, atol=1e-9, err_msg=name)
        assert found.info["relative_residual"] < 1e-9 and found.products == operator.products
        assert "warning" not in found.info


def test_arnoldi_of_low_rank_is_the_inverse_of_the_leading_part(system):
    matrix, vector = system
    values, vectors = np.linalg.eigh(matrix)
    leading = vectors[:, -4:] @ np.diag(values[-4:]) @ vectors[:, -4:].T
    found = arnoldi(Dense(matrix), vector, 0.3, rank=4, iterations=12)
    expected = solve_densely(leading, vector, 0.3)
    np.testing.assert_allclose(found.vector, expected, rtol=0, atol=1e-10)
    true = np.linalg.norm((matrix + 0.3 * np.eye(12)) @ expected - vector)
    assert found.info["relative_residual"] == pytest.approx(true / np.linalg.norm(vector))


def test_lissa_on_batches_comes_near(system):
    matrix, vector = system
    random = np.random.default_rng(1)
    noise = [0.05 * random.normal(size=(12, 12)) for _ in range(5)]
    noise = [each + each.T for each in noise]
    parts = [matrix + each - sum(noise) / 5 for each in noise]
    found = lissa([Dense(part) for part in parts], vector, 1.0, step=0.1, iterations=400)
    error = np.linalg.norm(found.vector - solve_densely(matrix, vector, 1.0))
    assert 1e-4 < error / np.linalg.norm(found.vector) < 0.1
    assert found.products == 400 + 5


@pytest.mark.parametrize("iterations", [100, 5000])
def test_lissa_with_too_large_a_step_diverges(system, iterations):
    """Largest eigenvalue 2 + 0.1: the border is at 2 / 2.1 = 0.952."""
    matrix, vector = system
    with pytest.raises(DivergenceError, match="LiSSA diverges with step=1.0.*lower the step"):
        lissa([Dense(matrix)], vector, 0.1, step=1.0, iterations=iterations)
    lissa([Dense(matrix)], vector, 0.1, step=0.95, iterations=iterations)


def test_negative_curvature(system):
    matrix, vector = system
    with pytest.raises(InputError, match="raise the damping"):
        arnoldi(Dense(matrix - np.eye(12)), vector, 0.5, rank=12)
    with pytest.raises(DivergenceError, match="most negative"):
        lissa([Dense(matrix - np.eye(12))], vector, 0.5, step=0.1, iterations=500)
    found = conjugate_gradients(Dense(-np.eye(12)), vector, 0.5)
    assert "negative" in found.info["warning"]
    short = conjugate_gradients(Dense(matrix), vector, 0.01, iterations=2)
    assert "stopped at" in short.info["warning"]


@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
@pytest.mark.parametrize("solver", ["cg", "lissa", "arnoldi"])
def test_influence_of_logistic_regression_against_the_dense_inverse(convex, solver, curvature):
    """For softmax regression Hessian and Gauss-Newton are sum_n x x' kron (diag p - p p') + l2."""
    with jax.enable_x64(True):
        run = convex.run
        params = jax.tree.map(lambda leaf: leaf.astype(np.float64), run.state.params)
        problem = dataclasses.replace(
            convex, run=dataclasses.replace(run, state=run.state._replace(params=params))
        )
        influence = InverseCurvature(
            solver, curvature, 0.1, iterations=400, tolerance=1e-12, step=0.5, rank=21,
            batch_size=116,
        )  # fmt: skip
        change = influence(jax.random.key(0), problem)
        layer = params["head"]["dense"]
        inputs = problem.retain_data.inputs.astype(np.float64)
        logits = inputs @ layer["kernel"] + layer["bias"]
        shares = np.asarray(jax.nn.softmax(logits))
        rows = np.hstack([np.ones((len(inputs), 1)), inputs])  # the bias comes first
        bent = np.einsum("nc,cd->ncd", shares, np.eye(3)) - np.einsum("nc,nd->ncd", shares, shares)
        matrix = np.einsum("ni,nj,ncd->icjd", rows, rows, bent).reshape(21, 21) / len(inputs)
        vector = mean_gradient_change(
            run.spec, problem.run.state, problem.forget_data, problem.retain_data,
            np.ones(116, np.float32), 64,
        )  # fmt: skip
    expected = solve_densely(matrix + 0.05 * np.eye(21), vector, 0.1)
    # The recursion contracts by 1 - 0.5 * 0.15 = 0.925 a step, which is 1e-13 after 400.
    np.testing.assert_allclose(tree.flatten(change.terms[0]), expected, rtol=0, atol=1e-10)
    assert change.info["relative_residual"] < 1e-8 and change.info["examples"] == 116


def test_newton_and_taylor_come_nearer_to_the_retrained_model(convex, twin):
    """At the optimum of a strongly convex loss, one Newton step takes most of the way."""
    before = tree.distance(convex.run.state.params, twin)
    newton = InverseCurvature(damping=1e-6, iterations=100, tolerance=1e-7)
    for pipeline, share in (
        (Pipeline(newton), 0.2),
        (Pipeline(newton, TaylorSum()), 0.2),
        (Pipeline(newton, NewtonStep(0.5)), 0.7),
    ):
        result = pipeline.run(jax.random.key(0), convex)
        assert tree.distance(result.params, twin) < share * before
        assert result.accepted and result.report.guarantee is None
        assert "nothing is guaranteed" in result.report.statement
        assert result.cost["example_gradients"] > 120 and result.cost["seconds"] >= 0


def test_along_the_trajectory_is_the_taylor_method(problem):
    for order in (1, 2):
        result = Pipeline(AlongTrajectory(order), TaylorSum()).run(jax.random.key(0), problem)
        expected = unroll.unlearn(f"taylor(order={order})", problem)
        # Terms are added to the original in another order, in float64, then rounded to float32.
        assert tree.distance(result.params, expected.params) < 1e-6
        assert result.cost["example_gradients"] == expected.example_gradients
    tangent = Pipeline(AlongTrajectory(2), NewtonStep()).run(jax.random.key(0), problem)
    first = unroll.unlearn("taylor(order=1)", problem)
    assert tree.distance(tangent.params, first.params) < 1e-6


def test_a_vector_takes_the_shape_of_the_parameters(problem):
    params = problem.run.state.params
    again = shaped_like(params, tree.flatten(params))
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert tree.distance(again, params) == 0


def test_a_refused_update_leaves_the_old_model(convex, twin, blobs):
    checks = (Check("test_accuracy", at_least=0.5), Check("retain_accuracy", at_least=1.01))
    result = Pipeline(validation=checks).run(jax.random.key(0), convex, test=blobs[1])
    assert not result.accepted
    assert tree.same_bits(result.params, convex.run.state.params)
    assert tree.distance(result.candidate, convex.run.state.params) > 0
    passed, failed = result.report.checks
    assert passed.passed and not failed.passed and failed.value <= 1
    assert "retain_accuracy" in str(failed) and "FAILED" in str(failed)
    assert "(at least 0.5): passed" in str(result.report)
    accepted = Pipeline(validation=checks[:1]).run(jax.random.key(0), convex, test=blobs[1])
    assert accepted.accepted and tree.same_bits(accepted.params, accepted.candidate)


def test_every_metric_is_a_number(convex, twin, blobs):
    checks = tuple(Check(name, at_most=math.inf) for name in METRICS)
    result = Pipeline(validation=checks).run(jax.random.key(0), convex, test=blobs[1], twin=twin)
    found = {check.metric: check.value for check in result.report.checks}
    assert result.accepted and set(found) == set(METRICS)
    assert found["verification_error"] == tree.distance(result.params, twin)
    before = tree.distance(convex.run.state.params, twin)
    expected = found["verification_error"] / before
    assert found["relative_verification_error"] == pytest.approx(expected, rel=1e-12)
    assert 0 <= found["loss_attack_auc"] <= 1 and 0 <= found["forget_accuracy"] <= 1


def test_what_is_not_a_number_fails(convex, monkeypatch):
    metric = METRICS["retain_accuracy"]._replace(value=lambda _: math.nan)
    monkeypatch.setitem(METRICS, "retain_accuracy", metric)
    check = Check("retain_accuracy", at_most=10.0)
    assert not Pipeline(validation=(check,)).run(jax.random.key(0), convex).accepted


def test_a_measured_distance_guarantees_nothing(convex, twin):
    for add in (True, False):
        noise = OutputNoise(1.0, 1e-5, measured_distance(), add=add)
        result = Pipeline(noise=noise).run(jax.random.key(0), convex, twin=twin)
        plain = Pipeline().run(jax.random.key(0), convex)
        error = tree.distance(plain.params, twin)
        assert result.report.guarantee is None and result.accepted
        assert result.report.info["distance"] == error
        said = result.report.statement
        assert said == measured_statement(error, 1.0, 1e-5, 21)
        assert said.startswith("Noise that would be needed if the sensitivity were")
        assert f"{gaussian_sigma(1.0, 1e-5, error):.4g}" in said and "no bound" in said
        assert not any(word in said.lower() for word in ("certif", "close to"))
        moved = tree.distance(result.params, plain.params)
        assert (moved > 0) if add else (moved == 0)


def test_a_proved_sensitivity_guarantees(convex, twin):
    """The bound is above the true distance from the optimum; a smaller allowance is refused."""
    newton = InverseCurvature(damping=1e-6, iterations=100, tolerance=1e-7)
    plain = Pipeline(newton).run(jax.random.key(0), convex)
    bound = optimum_distance(convex, plain.params)
    # The twin stands for the optimum: 150 steps that contract by 1 - 0.5 * 0.05 leave 2%.
    original = tree.distance(convex.run.state.params, twin)
    assert tree.distance(plain.params, twin) <= bound + 0.1 * original
    given = strongly_convex_distance(2 * bound)
    result = Pipeline(newton, noise=OutputNoise(2.0, 1e-5, given)).run(jax.random.key(0), convex)
    assert result.accepted and result.report.guarantee == (2.0, 1e-5)
    assert "strong convexity" in result.report.statement
    sigma = gaussian_sigma(2.0, 1e-5, 2 * bound)
    # 21 normal numbers: their norm is within a factor of 2 of sigma sqrt(21).
    ratio = tree.distance(result.params, plain.params) / (sigma * math.sqrt(21))
    assert 0.5 < ratio < 2
    tight = strongly_convex_distance(0.9 * bound)
    refused = Pipeline(newton, noise=OutputNoise(2.0, 1e-5, tight)).run(jax.random.key(0), convex)
    assert not refused.accepted and refused.report.guarantee is None
    assert tree.same_bits(refused.params, convex.run.state.params)
    assert "is above" in refused.report.statement
    failing = (Check("retain_accuracy", at_least=1.5),)
    failed = Pipeline(newton, noise=OutputNoise(2.0, 1e-5, given), validation=failing)
    assert failed.run(jax.random.key(0), convex).report.guarantee is None


def test_the_bound_on_the_distance_is_the_gradient_over_l2(convex):
    """Against numpy, and 0 at the optimum of least squares."""
    run = convex.run
    layer = run.state.params["head"]["dense"]
    kernel, bias = (np.asarray(layer[name], np.float64) for name in ("kernel", "bias"))
    data = convex.retain_data
    inputs = np.asarray(data.inputs, np.float64)
    logits = inputs @ kernel + bias
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    residual = (shares - np.eye(3)[data.labels]) / len(data)
    slopes = inputs.T @ residual + 0.05 * kernel, residual.sum(axis=0) + 0.05 * bias
    norm = math.sqrt(sum(float((slope**2).sum()) for slope in slopes))
    found = optimum_distance(convex, run.state.params)
    assert found == pytest.approx(norm / 0.05, rel=1e-10)


def test_the_bound_is_refused_for_other_models(problem, convex):
    with pytest.raises(InputError, match="for the linear model with l2 > 0"):
        optimum_distance(problem, problem.run.state.params)
    spec = dataclasses.replace(convex.run.spec, objective=unroll.Objective(l2=0.05, sd_gamma=0.1))
    other = dataclasses.replace(convex, run=dataclasses.replace(convex.run, spec=spec))
    with pytest.raises(InputError, match="no other penalty"):
        optimum_distance(other, convex.run.state.params)


def test_noise_has_its_standard_deviation():
    params = {"a": np.zeros((100, 100), np.float32), "b": np.ones(10_000, np.float32)}
    noisy = add_noise(jax.random.key(0), params, 3.0)
    both = np.stack([noisy["a"].ravel(), noisy["b"] - 1])
    assert both.dtype == np.float32
    # 10,000 numbers each: standard errors 0.021 of the deviation, 0.03 of the mean, 0.01 of the
    # correlation; five of each.
    np.testing.assert_allclose(both.std(axis=1), 3.0, atol=0.11)
    np.testing.assert_allclose(both.mean(axis=1), 0.0, atol=0.15)
    assert abs(np.corrcoef(both)[0, 1]) < 0.05


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InverseCurvature("lu"), "unknown solver"),
        (lambda: Check("luck", at_most=1), "unknown metric"),
        (lambda: Check("test_accuracy"), "at_least= or at_most="),
        (lambda: Sensitivity(1.0, "guessed"), "unknown source"),
        (lambda: Sensitivity(1.0, "proved"), "its argument"),
        (lambda: Sensitivity(None, "proved", "a lemma"), "value beforehand"),
        (lambda: Sensitivity(-1.0, "measured"), "sensitivity must be"),
        (lambda: Sensitivity(None, "measured"), "needs its value"),
        (lambda: OutputNoise(1.0, 0.0, measured_distance()), "delta"),
        (
            lambda: OutputNoise(1.0, 0.1, strongly_convex_distance(1.0), add=False),
            "needs its noise",
        ),
    ],
)
def test_bad_parts(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_bad_requests(convex, problem):
    key = jax.random.key(0)
    empty = dataclasses.replace(convex, forget=np.zeros(0, np.int64))
    with pytest.raises(InputError, match="nothing to forget"):
        Pipeline().run(key, empty)
    with pytest.raises(InputError, match="test_accuracy needs test="):
        Pipeline(validation=(Check("test_accuracy", at_least=0),)).run(key, convex)
    with pytest.raises(InputError, match="verification_error needs twin="):
        Pipeline(validation=(Check("verification_error", at_most=1),)).run(key, convex)
    with pytest.raises(InputError, match="give twin="):
        Pipeline(noise=OutputNoise(1.0, 1e-5, measured_distance())).run(key, convex)
    with pytest.raises(DivergenceError, match="raise the damping"):
        far = NewtonStep(scale=1e300)
        with pytest.warns(RuntimeWarning, match="overflow"):
            Pipeline(adjustment=far, noise=NoNoise()).run(key, convex)
