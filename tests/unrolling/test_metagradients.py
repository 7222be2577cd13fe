"""Metagradients: closed forms, finite differences, reverse mode by other means, and refusals."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unroll
from unroll.metrics.outputs import example_losses
from unroll.training import loop
from unroll.training.step import Examples, initial_state
from unroll.unrolling import metagradients as module
from unroll.unrolling.metagradients import metagradients, reverse
from unroll.unrolling.outcomes import (
    HalfSquaredDistance,
    evaluate,
    mean_loss,
    point_losses,
    values_and_gradients,
)
from unroll.unrolling.smoothness import compare_steps, smoothness

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


OPTIMIZERS = {
    "momentum": unroll.optax_call("sgd", 0.1, momentum=0.9),
    "adam": unroll.optax_call("adam", 0.02, eps_root=1e-8),
    "clipped": unroll.optax_call(
        "chain",
        unroll.optax_call("clip_by_global_norm", 0.5),
        unroll.optax_call("sgd", unroll.optax_call("cosine_decay_schedule", 0.3, 20)),
    ),
}


ADAM = dict(model=Network(), optimizer=OPTIMIZERS["adam"], denominator="renormalise")


class Case:
    """A small run in float64, and everything that the tests ask of it."""

    def __init__(self, spec, epochs=3, batch=7, keep_every=None):
        rng = np.random.default_rng(1)
        self.spec = spec
        self.examples = Examples(
            jnp.asarray(rng.normal(size=(NUM, DIM))),
            jnp.asarray(rng.integers(0, CLASSES, NUM), jnp.int32),
        )
        held_out = jnp.asarray(rng.normal(size=(4, DIM)))
        self.probe = lambda state: jnp.stack(
            [jnp.sin(logits).sum() for logits in self._logits(state, held_out)]
        )
        state = initial_state(spec, jax.random.key(0), self.examples.inputs)
        self.state = jax.tree.map(
            lambda a: np.asarray(a, np.float64) if a.dtype == jnp.float32 else np.asarray(a), state
        )
        self.schedule = unroll.data.make_schedule(0, NUM, batch, epochs)
        self.weights = jnp.asarray(rng.uniform(0.5, 1.5, NUM))

    def _logits(self, state, inputs):
        variables = {"params": state.params, **state.model_state}
        return self.spec.model.apply(variables, inputs)

    def scan(self, state, weights, schedule, **options):
        key = jax.random.key(0)
        return loop.scan_steps(self.spec, state, self.examples, weights, key, schedule, **options)

    def final(self, weights):
        return self.scan(self.state, weights, self.schedule)[0]

    def outcome(self, weights):
        return self.probe(self.final(weights))

    def reverse(self, keep=4, every=None, **options):
        """The library's derivative of `outcome`, from snapshots `every` so many steps."""
        snapshots, state = {0: self.state}, self.state
        for step in range(every or len(self.schedule), len(self.schedule), every or 1):
            state, _ = loop.advance_stepwise(
                self.spec,
                state,
                np.zeros(len(self.schedule)),
                self.examples,
                self.weights,
                jax.random.key(0),
                self.schedule,
                step - every,
                step,
            )
            snapshots[step] = jax.tree.map(np.asarray, state)
        _, cotangents = values_and_gradients(self.probe, self.final(self.weights))
        return reverse(
            self.spec,
            snapshots,
            cotangents,
            self.examples,
            self.weights,
            jax.random.key(0),
            self.schedule,
            keep=keep,
            **options,
        )


@pytest.mark.parametrize(
    ("together", "settings"),
    [
        (
            True,
            dict(
                model=Network(),
                optimizer=OPTIMIZERS["clipped"],
                objective=unroll.Objective(l2=0.05, sd_gamma=0.1),
            ),
        ),
        (False, dict(model=Network(normalization="batch"), optimizer=OPTIMIZERS["momentum"])),
        (True, ADAM),
    ],
    ids=["penalties and schedule", "momentum and batch statistics", "adam"],
)
def test_agrees_with_reverse_mode_and_with_finite_differences(together, settings):
    """In float64 and for all that a state may hold, running statistics included."""
    with jax.enable_x64(True):
        case = Case(unroll.TrainSpec(**settings))
        expected = jax.jit(jax.jacrev(case.outcome))(case.weights)
        gradients, replayed = case.reverse(keep=5, together=together)
        # 12 steps in stretches of 5: replayed once, and 10 of them to find where to begin.
        assert replayed == 12 + 10
        # Only rounding may differ from another order of the same products.
        chex.assert_trees_all_close(gradients, expected, rtol=1e-8, atol=1e-12)
        h = 1e-4
        shifts = h * jnp.eye(NUM)
        outcomes = jax.jit(jax.vmap(lambda shift: case.outcome(case.weights + shift)))
        differences = (outcomes(shifts) - outcomes(-shifts)).T / (2 * h)
        assert np.abs(differences).max() > 0.1
        # Central differences err by h^2 = 1e-8 times third derivatives.
        chex.assert_trees_all_close(gradients, differences, rtol=1e-5, atol=1e-6)


def test_does_not_depend_on_the_snapshots():
    with jax.enable_x64(True):
        case = Case(unroll.TrainSpec(**ADAM))
        expected, _ = case.reverse(keep=5)
        for every, again in ((4, 0), (6, 10), (11, 10)):
            gradients, replayed = case.reverse(keep=5, every=every)
            # The states are the same up to the last bits: the loops are cut elsewhere.
            chex.assert_trees_all_close(gradients, expected, rtol=1e-10, atol=1e-14)
            assert replayed == 12 + again


def test_a_later_start_leaves_out_earlier_uses():
    """Up to `start` the run counts as fixed: the derivative of the run restarted there."""
    with jax.enable_x64(True):
        case = Case(unroll.TrainSpec(**ADAM))
        start = 7
        middle, _ = case.scan(case.state, case.weights, case.schedule[:start])

        def restarted(weights):
            return case.probe(case.scan(middle, weights, case.schedule, start=start)[0])

        expected = jax.jit(jax.jacrev(restarted))(case.weights)
        gradients, _ = case.reverse(keep=5, every=4, start=start)
        chex.assert_trees_all_close(gradients, expected, rtol=1e-8, atol=1e-12)


def test_one_step_is_a_product_of_gradients(blobs):
    """After one step of plain SGD: `G[n] = -eta/B grad metric(w_1) . grad loss_n(w_0)`."""
    train, test = blobs
    rate, size = 0.3, 8
    spec = unroll.TrainSpec(
        unroll.models.build("mlp", num_classes=3, hidden=(16,)),
        optimizer=unroll.optax_call("sgd", rate),
    )
    run = unroll.train(spec, train, np.arange(size)[None])

    def loss(params, inputs, label):
        logits = spec.model.apply({"params": params}, inputs[None])
        return spec.objective.example_losses(logits, label[None])[0]

    slopes = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)))
    of_metric = slopes(run.state.params, test.inputs[3:4], test.labels[3:4])
    of_examples = slopes(run.snapshots[0].params, train.inputs[:size], train.labels[:size])
    products = sum(
        jnp.tensordot(one, other[0], axes=np.ndim(other) - 1)
        for one, other in zip(jax.tree.leaves(of_examples), jax.tree.leaves(of_metric), strict=True)
    )
    expected = np.zeros(len(train), np.float32)
    expected[:size] = -rate / size * products
    found = metagradients(run, point_losses(spec, test, [3]))
    # float32 sums in another order.
    chex.assert_trees_all_close(found.gradients[0], expected, rtol=1e-4, atol=1e-8)


class Linear(nn.Module):
    """No bias, parameters of a chosen type."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES, use_bias=False, param_dtype=jnp.dtype(self.dtype))(x)


def test_linear_regression_has_the_closed_form():
    """Quadratic loss: step t is `w - eta/B sum_b omega x_b r_b^T`, residuals `r_b = x_b^T w - y_b`.

    With A the gradient of the metric, walked back by `A <- A - eta/B sum_b omega x_b x_b^T A`, a
    slot of example n adds `-eta/B x_n^T A r_n` to G[n]. Some examples fill two slots of a batch,
    some slots are empty, and the last two examples are never used.
    """
    rng = np.random.default_rng(0)
    count, steps, size, rate = 20, 15, 8, 0.2
    inputs = rng.normal(size=(count, 4)).astype(np.float32)
    data = unroll.data.Dataset("line", inputs, rng.integers(0, CLASSES, count), CLASSES)
    spec = unroll.TrainSpec(
        Linear(),
        objective=unroll.Objective(loss="squared_error"),
        optimizer=unroll.optax_call("sgd", rate),
    )
    schedule = rng.integers(-1, count - 2, size=(steps, size))
    assert any(len(set(row[row >= 0])) < (row >= 0).sum() for row in schedule)
    weights = rng.uniform(0.5, 1.5, count).astype(np.float32)
    run = unroll.train(spec, data, schedule, weights=weights)
    metric = HalfSquaredDistance({"Dense_0": {"kernel": np.zeros((4, CLASSES), np.float32)}})
    found = metagradients(run, metric, keep=4)

    x, y = inputs.astype(np.float64), np.eye(CLASSES)[data.labels]
    w = np.asarray(run.snapshots[0].params["Dense_0"]["kernel"], np.float64)
    batches = [row[row >= 0] for row in schedule]
    residuals = []
    for ids in batches:
        residuals.append(x[ids] @ w - y[ids])
        w = w - rate / size * x[ids].T @ (weights[ids, None] * residuals[-1])
    expected, adjoint = np.zeros(count), w.copy()
    for ids, residual in zip(reversed(batches), reversed(residuals), strict=True):
        np.add.at(expected, ids, -rate / size * ((x[ids] @ adjoint) * residual).sum(axis=1))
        adjoint = adjoint - rate / size * x[ids].T @ (weights[ids, None] * (x[ids] @ adjoint))
    assert found.values[0] == pytest.approx(0.5 * (w**2).sum(), rel=1e-5)
    # float32 training against float64.
    chex.assert_trees_all_close(found.gradients[0], expected.astype(np.float32), rtol=1e-3)
    assert not found.gradients[0, -2:].any() and found.gradients[0, :-2].all()


def norm_of_parameters(state):
    return 0.5 * sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(state.params))


@pytest.fixture(scope="module")
def several(recorded_run, blobs):
    """Metrics of all kinds on one run: metrics, their metagradients, reports of progress."""
    _, test = blobs
    run, seen = recorded_run, []
    metrics = [
        mean_loss(run.spec, test, "mean", batch_size=7),
        point_losses(run.spec, test, np.arange(len(test)), "point"),
        HalfSquaredDistance(jax.tree.map(np.zeros_like, run.state.params)),
        norm_of_parameters,
    ]
    found = metagradients(run, metrics, progress=lambda done, total: seen.append((done, total)))
    return metrics, found, seen


def test_predicts_a_real_change_of_the_weights(recorded_run, several):
    """A small step in all weights, up and down: the curvature cancels."""
    run, (metrics, found, _) = recorded_run, several
    change = 0.02 * np.random.default_rng(0).normal(size=len(run.weights)).astype(np.float32)
    up, down = (
        unroll.train(
            run.spec, run.dataset, run.schedule, seed=run.seed, weights=run.weights + sign * change
        )
        for sign in (1, -1)
    )
    actual = (evaluate(metrics, up.state) - evaluate(metrics, down.state)) / 2
    # float32 leaves about 1e-7 of a loss of 1, against changes of about 1e-3.
    assert found.gradients @ change == pytest.approx(actual, rel=1e-2, abs=1e-5)


def test_values_costs_and_progress(recorded_run, blobs, several):
    _, test = blobs
    run, (_, found, seen) = recorded_run, several
    logits = unroll.predict(run.spec, run.state.params, run.state.model_state, test)
    losses = example_losses(logits, test.labels)
    assert found.values[:1] == pytest.approx(losses.mean(), rel=1e-5)
    assert found.values[1:-2] == pytest.approx(losses, rel=1e-4, abs=1e-6)
    # Snapshots every 5 steps, 10 states held: one replay, one linearisation, 2 per number.
    assert found.info == {"start": 0, "keep": 10, "replayed_steps": run.steps}
    own, numbers = 2 * len(test), len(test) + 3
    assert found.example_gradients == run.example_gradients * (1 + 1 + 2 * numbers) + own
    assert found.cost_ratio_gradients == found.example_gradients / run.example_gradients
    assert found.cost_ratio_seconds > 0
    assert seen[-1] == (run.steps, run.steps) and seen == sorted(seen)


def test_a_mean_is_the_mean_of_its_points_whatever_the_batches(several):
    _, found, _ = several
    mean = found.gradients[1:-2].mean(axis=0)
    # Sums of float32 in another order.
    chex.assert_trees_all_close(found.gradients[0], mean, rtol=1e-4, atol=1e-7)


def test_any_function_of_the_state_is_a_metric(several):
    metrics, found, _ = several
    chex.assert_trees_all_close(*found.gradients[-2:], rtol=1e-5)
    assert found.names[-1] == "metric 62"  # one of them has no name: all are numbered
    assert metrics[1].names[4] == "point[4]"


def test_sparse_records_and_kinks_are_warned_about(blobs):
    train, test = blobs
    model = unroll.models.build("mlp", num_classes=3, hidden=(8,), activation="relu")
    spec = unroll.TrainSpec(model)
    schedule = unroll.data.make_schedule(0, len(train), batch_size=8, epochs=2)
    metric = mean_loss(spec, test, "mean")
    dense = unroll.train(spec, train, schedule, record=unroll.Record(every=4))
    sparse = unroll.train(spec, train, schedule)
    one, other = metagradients(dense, metric), metagradients(sparse, metric)
    assert one.names == ("mean",)
    assert "relu has kinks" in one.info["warning"] and "replayed" not in one.info["warning"]
    assert "every 30 steps only, so 24 steps were replayed twice" in other.info["warning"]
    assert other.example_gradients == one.example_gradients + 192
    chex.assert_trees_all_close(one.gradients, other.gradients, rtol=1e-4, atol=1e-8)


def test_convolutions_take_turns(images):
    train, test = images
    spec = unroll.TrainSpec(unroll.models.build("cnn", num_classes=3, channels=(4,)))
    schedule = unroll.data.make_schedule(0, len(train), 16, 1)
    run = unroll.train(spec, train, schedule)
    assert not module._together("auto", run.state)
    metric = point_losses(spec, test, [0, 1])
    found = metagradients(run, metric)
    change = 0.1 * np.random.default_rng(0).normal(size=len(train)).astype(np.float32)
    up, down = (
        evaluate(metric, unroll.train(spec, train, schedule, weights=1 + sign * change).state)
        for sign in (1, -1)
    )
    # Central differences: third derivatives and float32.
    assert found.gradients @ change == pytest.approx((up - down) / 2, rel=2e-2)


class Halved(nn.Module):
    """Computes in half precision, with parameters in full."""

    dtype: str = "bfloat16"

    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES, dtype=jnp.dtype(self.dtype))(x).astype(jnp.float32)


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        (dict(model=Halved()), "bfloat16"),
        (dict(model=Halved("float16")), "float16"),
        (dict(model=Linear("bfloat16")), "bfloat16"),
        (
            dict(
                model=Network(),
                optimizer=unroll.optax_call(
                    "sgd", 0.05, momentum=0.5, accumulator_dtype="bfloat16"
                ),
            ),
            "bfloat16",
        ),
    ],
    ids=["computes", "float16", "parameters", "accumulator"],
)
def test_half_precision_is_refused(recorded_run, settings, dtype):
    spec = unroll.TrainSpec(**settings)
    state = initial_state(spec, jax.random.key(0), recorded_run.dataset.inputs)
    run = dataclasses.replace(recorded_run, spec=spec, state=state)
    with pytest.raises(unroll.InputError, match=f"computes in {dtype}.*amplified.*float32"):
        metagradients(run, norm_of_parameters)


def test_adam_without_eps_root_says_what_to_do(blobs):
    """A dead input makes a gradient entry exactly 0, where the square root has no derivative."""
    train, test = blobs
    dead = np.array(train.inputs)
    dead[:, 0] = 0.0
    data = unroll.data.Dataset("dead", dead, train.labels, 3)
    model = unroll.models.build("mlp", num_classes=3, hidden=(8,))
    spec = unroll.TrainSpec(model, optimizer=unroll.optax_call("adam", 0.01))
    run = unroll.train(spec, data, np.arange(32).reshape(4, 8))
    with pytest.raises(unroll.DivergenceError, match="eps_root=1e-8"):
        metagradients(run, mean_loss(spec, test))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(keep=0), "keep must be"),
        (dict(start=24), "leaves no step"),
        (dict(start=-1), "start must be"),
        (dict(mode="fast"), "unknown mode"),
    ],
)
def test_bad_arguments(recorded_run, options, message):
    metric = HalfSquaredDistance(recorded_run.state.params)
    with pytest.raises(unroll.InputError, match=message):
        metagradients(recorded_run, metric, **options)


def test_bad_metrics(recorded_run):
    with pytest.raises(unroll.InputError, match="at least one metric"):
        metagradients(recorded_run, [])
    with pytest.raises(unroll.InputError, match="number or a vector"):
        metagradients(recorded_run, lambda state: jnp.zeros((2, 2)))
    with pytest.raises(unroll.DivergenceError, match="not finite"):
        metagradients(recorded_run, lambda state: jnp.log(-jnp.ones(1)))


# The smoothness check.


def tree_of(values):
    return {"w": np.asarray(values, np.float64)}


def test_score_of_known_steps():
    start, step = np.array([1.0, 2.0, -1.0]), np.array([0.5, -1.0, 0.25])
    score, cosine, curvature = compare_steps(
        tree_of(start), tree_of(start + step), tree_of(start + 2 * step)
    )
    assert (score, cosine) == pytest.approx((1.0, 1.0)) and curvature == pytest.approx(0.0)
    # The second step turns back half of the first one: every sign differs.
    score, cosine, curvature = compare_steps(
        tree_of(start), tree_of(start + step), tree_of(start + 0.5 * step)
    )
    assert (score, cosine, curvature) == pytest.approx((-1.0, -1.0, 1.5))
    # One entry of three goes back; the weights are the way in all: 2, 2 and 1.
    score, _, _ = compare_steps(
        tree_of([0.0, 0.0, 0.0]), tree_of([1.0, 1.0, 2.0]), tree_of([2.0, 2.0, 1.0])
    )
    assert score == pytest.approx((2 + 2 - 1) / 5)


def test_smoothness_takes_three_trainings(recorded_run, monkeypatch):
    calls = []
    from unroll.unrolling import smoothness as checked

    real = checked.train
    monkeypatch.setattr(checked, "train", lambda *a, **k: calls.append(1) or real(*a, **k))
    result = smoothness(recorded_run, fraction=0.02)
    assert len(calls) == 2 and result.trainings == 3  # the recorded run is the first
    assert result.score > 0.9 and result.cosine > 0.9 and result.curvature < 0.5
    assert result.warning is None


def test_smoothness_starts_where_the_run_did(recorded_run):
    run = unroll.train(
        recorded_run.spec,
        recorded_run.dataset,
        recorded_run.schedule,
        initial=recorded_run.state,
        seed=5,
    )
    result = smoothness(run, fraction=0.02)
    # Trainings from the seed's own state would end elsewhere: a curvature of about 1.
    assert result.score > 0.9 and result.curvature < 0.5 and result.warning is None


def test_an_erratic_recipe_is_warned_about(blobs):
    """At a learning rate beyond stability the trainings part ways, but none diverges."""
    train, _ = blobs
    model = unroll.models.build("mlp", num_classes=3, hidden=(16,), activation="relu")
    spec = unroll.TrainSpec(model, optimizer=unroll.optax_call("sgd", 2.0))
    run = unroll.train(spec, train, unroll.data.make_schedule(0, len(train), 8, 20))
    result = smoothness(run)
    assert "not to be trusted" in result.warning


def test_smoothness_refuses_bad_directions(recorded_run):
    with pytest.raises(unroll.InputError, match="one number per example"):
        smoothness(recorded_run, direction=np.zeros(3))
    with pytest.raises(unroll.InputError, match="uses no example"):
        smoothness(recorded_run, direction=np.zeros(len(recorded_run.weights)))
    with pytest.raises(unroll.InputError, match="step must be above 0"):
        smoothness(recorded_run, step=0.0)
