"""The Taylor series of a run: exact cases, and agreement with derivatives of the whole run."""

import dataclasses
import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unroll
from unroll.methods.single_gradient import single_gradient
from unroll.problem import Problem
from unroll.training import loop
from unroll.training.step import Examples, initial_state
from unroll.unrolling.taylor import advance_taylor, derivatives, sum_series, zeros_like_state

DIM, CLASSES, NUM = 5, 3, 24


class Network(nn.Module):
    """A tanh layer, optionally with batch normalisation, or a linear map for `hidden=0`."""

    hidden: int = 7
    normalization: str = "none"

    @nn.compact
    def __call__(self, x, train=False, example_weights=None):
        if self.hidden:
            x = nn.Dense(self.hidden, param_dtype=x.dtype)(x)
            if self.normalization == "batch":
                x = unroll.models.layers.BatchNorm()(x, train, example_weights)
            x = jnp.tanh(x)
        return nn.Dense(CLASSES, param_dtype=x.dtype)(x)


def make_case(spec, epochs=3, batch=6, dtype=np.float64):
    rng = np.random.default_rng(1)
    examples = Examples(
        jnp.asarray(rng.normal(size=(NUM, DIM)), dtype),
        jnp.asarray(rng.integers(0, CLASSES, NUM), jnp.int32),
    )
    state = initial_state(spec, jax.random.key(0), examples.inputs)
    state = jax.tree.map(lambda a: a.astype(dtype) if a.dtype == jnp.float32 else a, state)
    schedule = jnp.asarray(unroll.data.make_schedule(0, NUM, batch, epochs))
    return examples, state, schedule


def series_of(spec, order, examples, state, schedule, direction):
    # Copies, since the coefficients are donated.
    start = jax.tree.map(np.array, state)
    coefficients = [start] + [zeros_like_state(start) for _ in range(order)]
    weights = jnp.ones(NUM, examples.inputs.dtype)
    return advance_taylor(
        spec,
        coefficients,
        examples,
        weights,
        direction,
        jax.random.key(0),
        schedule,
        0,
        len(schedule),
    )


def trained(spec, examples, state, schedule, weights):
    return loop.scan_steps(spec, state, examples, weights, jax.random.key(0), schedule)[0]


OPTIMIZERS = {
    "sgd": unroll.optax_call("sgd", 0.3),
    "momentum": unroll.optax_call("sgd", 0.1, momentum=0.9),
    "adam": unroll.optax_call("adam", 0.02, eps_root=1e-8),
    "clipped": unroll.optax_call(
        "chain",
        unroll.optax_call("clip_by_global_norm", 0.5),
        unroll.optax_call("sgd", unroll.optax_call("cosine_decay_schedule", 0.3, 20)),
    ),
}


@pytest.mark.parametrize("normalization", ["none", "batch"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_agrees_with_derivatives_of_the_whole_run(optimizer, normalization):
    """Orders 1 to 3 equal nested jvp through the scan over all steps, in float64."""
    if normalization == "batch" and optimizer != "sgd":
        pytest.skip("batch normalisation is covered with sgd")
    with jax.enable_x64(True):
        spec = unroll.TrainSpec(
            Network(normalization=normalization), optimizer=OPTIMIZERS[optimizer]
        )
        examples, state, schedule = make_case(spec)
        direction = jnp.zeros(NUM).at[jnp.array([2, 9])].set(-1.0)

        def final_params(epsilon):
            return trained(spec, examples, state, schedule, 1.0 + epsilon * direction).params

        expected = jax.jit(derivatives(final_params, 3))(jnp.zeros(()))
        series = series_of(spec, 3, examples, state, schedule, direction)
        for k in range(4):
            scaled = jax.tree.map(lambda leaf, k=k: leaf / math.factorial(k), expected[k])
            chex.assert_trees_all_close(series[k].params, scaled, rtol=1e-8, atol=1e-10)


def test_agrees_with_finite_differences():
    """Central differences of the retrained model in eps; the step balances h^2 and rounding."""
    with jax.enable_x64(True):
        spec = unroll.TrainSpec(Network(), optimizer=OPTIMIZERS["momentum"])
        examples, state, schedule = make_case(spec)
        direction = jnp.zeros(NUM).at[4].set(-1.0)
        at = functools.cache(
            lambda h: trained(spec, examples, state, schedule, 1.0 + h * direction).params
        )
        series = series_of(spec, 2, examples, state, schedule, direction)
        h = 1e-3
        first = jax.tree.map(lambda a, b: (a - b) / (2 * h), at(h), at(-h))
        second = jax.tree.map(lambda a, b, c: (a - 2 * b + c) / (2 * h * h), at(h), at(0.0), at(-h))
        chex.assert_trees_all_close(series[1].params, first, rtol=1e-4, atol=1e-6)
        chex.assert_trees_all_close(series[2].params, second, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_linear_regression_is_a_polynomial_in_the_weights(epochs):
    """With a quadratic loss each use of the forget batch raises the degree by one.

    One forgotten example, used once per epoch, makes the final weights a polynomial of degree
    `epochs` in its weight: that order is exact, the one below is not.
    """
    with jax.enable_x64(True):
        spec = unroll.TrainSpec(
            Network(hidden=0),
            objective=unroll.Objective(loss="squared_error", l2=0.01),
            optimizer=unroll.optax_call("sgd", 0.2),
        )
        examples, state, schedule = make_case(spec, epochs)
        direction = jnp.zeros(NUM).at[11].set(-1.0)
        twin = trained(spec, examples, state, schedule, 1.0 + direction).params
        original = trained(spec, examples, state, schedule, jnp.ones(NUM)).params
        scale = unroll.verification_error(original, twin)
        errors = [
            unroll.verification_error(
                sum_series(
                    jax.tree.map(
                        np.asarray, series_of(spec, k, examples, state, schedule, direction)
                    )
                ).params,
                twin,
            )
            / scale
            for k in range(1, epochs + 1)
        ]
        assert errors[-1] < 1e-12
        assert all(error > 1e-6 for error in errors[:-1])
        assert errors == sorted(errors, reverse=True)


def blob_problem(blobs, spec, epochs=2, forget=(3, 17, 40), **options):
    train, _ = blobs
    schedule = unroll.data.make_schedule(0, len(train), batch_size=24, epochs=epochs)
    run = unroll.train(spec, train, schedule, record=unroll.Record(every=2), **options)
    return Problem(run, np.array(forget))


def test_series_converges_to_the_twin(blobs):
    spec = unroll.TrainSpec(unroll.models.build("mlp", num_classes=3, hidden=(16,)))
    problem = blob_problem(blobs, spec, epochs=4)
    twin = unroll.unlearn("retrain", problem).params
    errors = [
        unroll.relative_verification_error(
            unroll.unlearn(f"taylor(order={k})", problem).params, twin, problem.run.state.params
        )
        for k in (1, 2, 3)
    ]
    assert errors[0] < 0.2 and errors[1] < errors[0] / 2 and errors[2] < errors[1] / 2


def test_zeroth_coefficient_is_the_run(blobs):
    spec = unroll.TrainSpec(unroll.models.build("mlp", num_classes=3, hidden=(16,)))
    problem = blob_problem(blobs, spec)
    direction = unroll.unrolling.taylor.without(problem.run, problem.forget)
    coefficients = unroll.unrolling.taylor.taylor_coefficients(problem.run, direction, 2)
    assert unroll.tree.same_bits(coefficients[0], problem.run.state)


def test_starting_at_the_first_use_changes_nothing(blobs):
    """Before the first use the series is constant, so an earlier start gives the same numbers."""
    spec = unroll.TrainSpec(unroll.models.build("mlp", num_classes=3, hidden=(16,)))
    problem = blob_problem(blobs, spec, epochs=1)
    run = problem.run
    late = run.schedule[-1, :2]
    direction = unroll.unrolling.taylor.without(run, late)
    start = run.snapshots.last_at_or_before(run.steps - 1)
    assert start > 0
    from_start = unroll.unrolling.taylor.taylor_coefficients(run, direction, 2, start=start)
    from_zero = unroll.unrolling.taylor.taylor_coefficients(run, direction, 2)
    chex.assert_trees_all_close(from_start[1].params, from_zero[1].params, rtol=1e-5, atol=1e-8)
    with pytest.raises(unroll.InputError, match="after the first use"):
        unroll.unrolling.taylor.taylor_coefficients(
            run, unroll.unrolling.taylor.without(run, run.schedule[0, :1]), 1, start=start
        )


def test_adam_without_eps_root_says_what_to_do(blobs):
    """A dead input makes a gradient entry exactly 0, where the square root has no derivative."""
    train, test = blobs
    dead = np.array(train.inputs)
    dead[:, 0] = 0.0
    data = (unroll.data.Dataset("dead", dead, train.labels, 3), test)
    model = unroll.models.build("mlp", num_classes=3, hidden=(8,))
    spec = unroll.TrainSpec(model, optimizer=unroll.optax_call("adam", 0.01))
    with pytest.raises(unroll.DivergenceError, match="eps_root=1e-8"):
        unroll.unlearn("taylor(order=1)", blob_problem(data, spec))
    spec = unroll.TrainSpec(model, optimizer=unroll.optax_call("adam", 0.01, eps_root=1e-8))
    problem = blob_problem(data, spec)
    unlearned = unroll.unlearn("taylor(order=1)", problem).params
    twin = unroll.unlearn("retrain", problem).params
    relative = unroll.relative_verification_error(unlearned, twin, problem.run.state.params)
    assert relative < 0.5


def test_order_zero_is_refused(problem):
    with pytest.raises(unroll.InputError, match="order must be"):
        unroll.unlearn("taylor(order=0)", problem)


def test_relu_is_warned_about(blobs):
    spec = unroll.TrainSpec(
        unroll.models.build("mlp", num_classes=3, hidden=(8,), activation="relu")
    )
    result = unroll.unlearn("taylor(order=1)", blob_problem(blobs, spec))
    assert "relu" in result.info["warning"]


# The paper's single-gradient method, where its answer is known.


def test_single_gradient_is_exact_for_a_last_step(blobs):
    """A gradient at w_0 is the right one when the run has one step."""
    spec = unroll.TrainSpec(unroll.models.build("mlp", num_classes=3, hidden=(16,)))
    train, _ = blobs
    run = unroll.train(spec, train, np.arange(32).reshape(1, 32))
    problem = Problem(run, np.array([1, 5, 30]))
    twin = unroll.unlearn("retrain", problem)
    unlearned = single_gradient()(jax.random.key(0), problem)
    # Rounding only: the sum over the batch is taken in another order.
    assert unroll.verification_error(unlearned.params, twin.params) < 1e-6
    assert unroll.verification_error(run.state.params, twin.params) > 1e-3


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_single_gradient_is_exact_without_curvature(blobs, momentum):
    """With a loss that is linear in the weights every gradient is the one at w_0."""
    optimizer = unroll.optax_call("sgd", 0.1, momentum=momentum)
    spec = unroll.TrainSpec(
        unroll.models.build("linear", num_classes=3),
        objective=LinearLoss(),
        optimizer=optimizer,
    )
    problem = blob_problem(blobs, spec, epochs=3)
    twin = unroll.unlearn("retrain", problem).params
    relative = unroll.relative_verification_error(
        unroll.unlearn("single_gradient", problem).params, twin, problem.run.state.params
    )
    assert relative < 1e-4


@dataclasses.dataclass(frozen=True)
class LinearLoss:
    """Minus the label's logit: no curvature at all."""

    def example_losses(self, logits, labels):
        return -jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]

    def penalty(self, params):
        del params
        return jnp.zeros(())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(optimizer=unroll.optax_call("adam", 0.01)), "plain sgd"),
        (dict(denominator="renormalise"), "denominator"),
    ],
)
def test_single_gradient_refuses_what_it_cannot_express(blobs, options, message):
    spec = unroll.TrainSpec(unroll.models.build("mlp", num_classes=3, hidden=(8,)), **options)
    with pytest.raises(unroll.InputError, match=message):
        unroll.unlearn("single_gradient", blob_problem(blobs, spec))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (("mlp", dict(hidden=(8,), dropout=0.5)), "dropout"),
        (("cnn", dict(channels=(4,), normalization="batch")), "batch normalisation"),
    ],
)
def test_single_gradient_refuses_models_without_a_gradient_of_their_own(images, model, message):
    name, options = model
    spec = unroll.TrainSpec(unroll.models.build(name, num_classes=3, **options))
    train, _ = images
    run = unroll.train(spec, train, np.arange(16).reshape(2, 8))
    with pytest.raises(unroll.InputError, match=message):
        unroll.unlearn("single_gradient", Problem(run, np.array([1])))


def test_half_precision_accumulators_start_at_zero(blobs):
    """To numpy bfloat16 is no float; a coefficient must not start as a copy of the state."""
    optimizer = unroll.optax_call("sgd", 0.05, momentum=0.5, accumulator_dtype="bfloat16")
    spec = unroll.TrainSpec(
        unroll.models.build("mlp", num_classes=3, hidden=(16,)), optimizer=optimizer
    )
    problem = blob_problem(blobs, spec)
    start = zeros_like_state(problem.run.snapshots[2])
    assert all(not np.any(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(start))
    with pytest.raises(unroll.InputError, match="bfloat16"):
        unroll.unlearn("taylor(order=1)", problem)
