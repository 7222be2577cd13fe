"""The expansion about w_0: exact on a quadratic, right to its order elsewhere."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unroll
from unroll.training import loop
from unroll.training.record import Snapshots
from unroll.training.step import Examples, initial_state
from unroll.unrolling.expansion import (
    TRUNCATIONS,
    advance_expansion,
    at_rest,
    expansion,
    recorded_steps,
    single_gradient_at,
)

DIM, CLASSES, NUM = 5, 3, 24
QUADRATIC = unroll.Objective(loss="squared_error", l2=0.05)


class Network(nn.Module):
    """A tanh layer, or a linear map for `hidden=0`, in the precision of its inputs."""

    hidden: int = 6

    @nn.compact
    def __call__(self, x):
        if self.hidden:
            x = jnp.tanh(nn.Dense(self.hidden, param_dtype=x.dtype)(x))
        return nn.Dense(CLASSES, param_dtype=x.dtype)(x)


def expanded_and_true(spec, start=0, epochs=2, weights=None):
    """Displacement of each truncation and of the run over its steps from `start`, in float64."""
    rng = np.random.default_rng(1)
    examples = Examples(
        jnp.asarray(rng.normal(size=(NUM, DIM))), jnp.asarray(rng.integers(0, CLASSES, NUM))
    )
    weights = jnp.ones(NUM) if weights is None else jnp.asarray(weights)
    key = jax.random.key(0)
    schedule = jnp.asarray(unroll.data.make_schedule(0, NUM, 7, epochs))
    state = initial_state(spec, key, examples.inputs)
    origin = state
    if start:
        origin = loop.scan_steps(spec, state, examples, weights, key, schedule[:start])[0]
    final = loop.scan_steps(spec, origin, examples, weights, key, schedule, start)[0]
    moved = advance_expansion(
        spec,
        at_rest(origin, TRUNCATIONS),
        origin,
        examples,
        weights,
        key,
        schedule,
        start,
        len(schedule),
    )
    true = unroll.tree.flatten(final.params) - unroll.tree.flatten(origin.params)
    return {name: unroll.tree.flatten(moved[name][0]) for name in TRUNCATIONS}, true


def relative_errors(spec, **options):
    predicted, true = expanded_and_true(spec, **options)
    size = np.linalg.norm(true)
    return {name: np.linalg.norm(predicted[name] - true) / size for name in TRUNCATIONS}


SGD = {
    "plain": unroll.optax_call("sgd", 0.3),
    "momentum": unroll.optax_call("sgd", 0.1, momentum=0.9),
    "nesterov": unroll.optax_call("sgd", 0.1, momentum=0.8, nesterov=True),
    "decaying": unroll.optax_call("sgd", unroll.optax_call("cosine_decay_schedule", 0.3, 8)),
}


@pytest.mark.parametrize(
    ("optimizer", "denominator"), [*((name, "batch") for name in SGD), ("plain", "renormalise")]
)
def test_a_quadratic_is_reproduced_to_rounding(optimizer, denominator):
    """With penalty, weights, padded batches, and a start in the middle of the momentum."""
    with jax.enable_x64(True):
        spec = unroll.TrainSpec(
            Network(hidden=0), QUADRATIC, SGD[optimizer], denominator=denominator
        )
        errors = relative_errors(spec, start=3, weights=np.linspace(0.2, 1.5, NUM))
        # A dozen steps in float64.
        assert errors["full"] < 1e-13
        assert errors["second_order"] > 1e-4 and errors["first_order"] > errors["second_order"]


def test_truncations_are_exact_for_one_and_two_steps():
    """One step needs the gradient only; the second needs f(1), which holds no other f."""
    with jax.enable_x64(True):
        spec = unroll.TrainSpec(Network(hidden=0), QUADRATIC, SGD["plain"])
        total = len(unroll.data.make_schedule(0, NUM, 7, 2))
        one = relative_errors(spec, start=total - 1)
        two = relative_errors(spec, start=total - 2)
        three = relative_errors(spec, start=total - 3)
        assert max(one.values()) < 1e-14
        assert two["first_order"] > 1e-3 and two["second_order"] < 1e-14 and two["full"] < 1e-14
        assert three["second_order"] > 1e-4 and three["full"] < 1e-14


@pytest.mark.parametrize(
    ("hidden", "objective", "orders"),
    [
        (0, QUADRATIC, {"first_order": 2, "second_order": 3}),
        # Third derivatives, which no truncation has, enter at eta^3.
        (6, unroll.Objective(), {"first_order": 2, "second_order": 3, "full": 3}),
    ],
)
def test_absolute_errors_fall_as_powers_of_the_learning_rate(hidden, objective, orders):
    """The truncation of order k leaves an error of eta^(k+1): halving eta shows the exponent."""
    with jax.enable_x64(True):
        errors = []
        for eta in (2e-3, 1e-3):
            spec = unroll.TrainSpec(Network(hidden), objective, unroll.optax_call("sgd", eta))
            predicted, true = expanded_and_true(spec)
            errors.append({name: np.linalg.norm(predicted[name] - true) for name in TRUNCATIONS})
        for name, order in orders.items():
            slope = np.log2(errors[0][name] / errors[1][name])
            # The next order adds a relative eta * steps * curvature of some percent.
            assert slope == pytest.approx(order, abs=0.1), name


def test_predicts_the_recorded_run(recorded_run):
    """In float32 through the public function: errors and weights belong together."""
    rows = list(expansion(recorded_run, start=5, steps=(20, 10)))
    assert [row.step for row in rows] == [10, 20]
    origin = recorded_run.snapshots[5].params
    for row in rows:
        truth = recorded_run.snapshots[row.step].params
        assert row.displacement == unroll.tree.distance(truth, origin)
        for name in TRUNCATIONS:
            again = unroll.tree.distance(row.params[name], truth) / row.displacement
            # The weights are rounded to float32 once more, 1e-7 of their norm of 4.
            assert row.errors[name] == pytest.approx(again, rel=1e-3, abs=1e-6)
    assert rows[0].errors["full"] < rows[0].errors["first_order"] < 1
    assert rows[0].errors["first_order"] < rows[-1].errors["first_order"]


def test_one_step_of_a_recorded_run_is_its_gradient(blobs, mlp_spec):
    train, _ = blobs
    schedule = unroll.data.make_schedule(0, len(train), 16, 1)[:3]
    run = unroll.train(mlp_spec, train, schedule, record=unroll.Record(every=1))
    (row,) = expansion(run, start=1, steps=[2], truncations=["first_order"])
    assert list(row.errors) == ["first_order"]
    # float32 rounding of the weights against a displacement of some percent of them.
    assert row.errors["first_order"] < 1e-5


def test_dropout_and_batches_of_the_run_are_replayed(blobs):
    """The masks are the run's own: with others one step would not be reproduced."""
    train, _ = blobs
    spec = unroll.TrainSpec(unroll.models.build("mlp", num_classes=3, hidden=(8,), dropout=0.5))
    schedule = unroll.data.make_schedule(0, len(train), 16, 1)[:3]
    run = unroll.train(spec, train, schedule, seed=4, record=unroll.Record(every=1))
    (row,) = expansion(run, start=2, truncations=["first_order"])
    assert row.errors["first_order"] < 1e-5


def test_convolutions_can_be_expanded(images):
    train, _ = images
    spec = unroll.TrainSpec(
        unroll.models.build("cnn", num_classes=3, channels=(4,)),
        optimizer=unroll.optax_call("sgd", 0.01),
    )
    run = unroll.train(spec, train, np.arange(32).reshape(4, 8))
    (row,) = expansion(run)
    assert row.errors["full"] < row.errors["first_order"] < 1


def test_a_run_that_goes_on_from_a_state(blobs):
    """Learning rates and trace go on where the given state stands."""
    train, _ = blobs
    rate = unroll.optax_call("linear_schedule", 0.1, 0.0, 16)
    spec = unroll.TrainSpec(
        unroll.models.build("linear", num_classes=3),
        objective=QUADRATIC,
        optimizer=unroll.optax_call("sgd", rate, momentum=0.5),
    )
    schedule = unroll.data.make_schedule(0, len(train), 16, 1)
    pretrained = unroll.train(spec, train, schedule)
    run = unroll.train(spec, train, schedule, initial=pretrained.state)
    (row,) = expansion(run, truncations=["full"])
    # float32 rounding of eight steps.
    assert row.errors["full"] < 1e-5


def test_divergence_of_the_linearised_run_is_an_error(blobs, mlp_spec):
    """On a quadratic with eta sigma = 20 each step multiplies by 19: past float32 in 31 steps."""
    train, _ = blobs
    spec = unroll.TrainSpec(
        unroll.models.build("linear", num_classes=3),
        objective=unroll.Objective(loss="squared_error", l2=20.0),
        optimizer=unroll.optax_call("sgd", unroll.optax_call("linear_schedule", 0.0, 1.0, 400)),
    )
    schedule = unroll.data.make_schedule(0, len(train), 16, 50)
    stable = unroll.train(spec, train, schedule[:40], record=unroll.Record(every=10))
    assert max(row.errors["full"] for row in expansion(stable)) < 1e-3
    # The same record with rates for which the run itself would have diverged.
    hot = unroll.TrainSpec(spec.model, spec.objective, unroll.optax_call("sgd", 1.0))
    with pytest.raises(unroll.DivergenceError, match="full expansion about step 0"):
        list(expansion(dataclasses.replace(stable, spec=hot), truncations=["full"]))


def test_single_gradient_at_the_end_is_the_method(problem):
    ids = problem.forget
    whole = unroll.unlearn("single_gradient", problem).params
    rows = dict(single_gradient_at(problem.run, ids))
    assert list(rows) == [step for step in problem.run.snapshots if step]
    # Rounding only.
    assert unroll.verification_error(rows[problem.run.steps], whole) < 1e-6 * unroll.tree.norm(
        whole
    )


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_single_gradient_at_each_step_counts_the_uses_before_it(blobs, momentum):
    """Without curvature it is the twin's state at every step, from any start."""
    train, _ = blobs
    spec = unroll.TrainSpec(
        unroll.models.build("linear", num_classes=3),
        objective=Slope(),
        optimizer=unroll.optax_call("sgd", 0.1, momentum=momentum),
    )
    schedule = unroll.data.make_schedule(0, len(train), 24, 3)
    record = unroll.Record(every=2)
    run = unroll.train(spec, train, schedule, record=record)
    ids = np.array([3, 17, 40])
    weights = np.ones(len(train), np.float32)
    weights[ids] = 0
    twin = unroll.train(spec, train, schedule, weights=weights, record=record)
    for step, params in single_gradient_at(run, ids):
        undone = unroll.tree.distance(run.snapshots[step].params, twin.snapshots[step].params)
        # float32: rounding of the weights against what the forget set did, or nothing yet.
        error = unroll.tree.distance(params, twin.snapshots[step].params)
        assert error <= max(1e-4 * undone, 1e-7 * unroll.tree.norm(params))
    late = dict(single_gradient_at(run, ids, start=4, steps=[8]))[8]
    with_early_uses = dict(single_gradient_at(run, ids, steps=[4]))[4]
    kept = unroll.tree.distance(run.snapshots[4].params, with_early_uses)
    if momentum is None:
        gap = unroll.tree.distance(late, twin.snapshots[8].params)
        assert gap == pytest.approx(kept, rel=1e-4)


@dataclasses.dataclass(frozen=True)
class Slope:
    """Minus the label's logit: no curvature at all."""

    def example_losses(self, logits, labels):
        return -jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]

    def penalty(self, params):
        del params
        return jnp.zeros(())


def test_nothing_to_forget_leaves_the_run_alone(recorded_run):
    for step, params in single_gradient_at(recorded_run, np.array([], int)):
        assert unroll.tree.same_bits(params, recorded_run.snapshots[step].params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(steps=[7]), "step 7 of the run is not recorded"),
        (dict(start=3), "step 3 of the run is not recorded"),
        (dict(start=10, steps=[5]), "after the start"),
        (dict(start=24), "after the start"),
        (dict(truncations=["third_order"]), "unknown"),
    ],
)
def test_bad_requests_are_refused_at_once(recorded_run, options, message):
    with pytest.raises(unroll.InputError, match=message):
        expansion(recorded_run, **options)


def test_steps_are_looked_up_without_reading_states(recorded_run):
    def refuse():
        raise AssertionError("a state was read")

    unread = Snapshots(dict.fromkeys(recorded_run.snapshots, refuse))
    run = dataclasses.replace(recorded_run, snapshots=unread)
    assert recorded_steps(run, 5) == [10, 15, 20, 24]
    assert recorded_steps(run, 0, [15, 10]) == [10, 15]


def test_the_singular_value_penalty_is_refused(blobs):
    train, _ = blobs
    spec = unroll.TrainSpec(
        unroll.models.build("linear", num_classes=3),
        objective=unroll.Objective(singular_gamma=0.1),
    )
    run = unroll.train(spec, train, np.arange(16).reshape(2, 8))
    with pytest.raises(unroll.InputError, match="singular_gamma"):
        expansion(run)


def test_a_decaying_penalty_is_expanded_and_has_no_single_gradient(blobs):
    """The expansion reads the step; one frozen gradient cannot."""
    train, _ = blobs
    objective = unroll.Objective(sd_gamma=5.0, sd_decay=10.0, sd_decay_every=2)
    spec = unroll.TrainSpec(
        unroll.models.build("mlp", num_classes=3, hidden=(8,)), objective=objective
    )
    schedule = unroll.data.make_schedule(0, len(train), 16, 1)[:5]
    run = unroll.train(spec, train, schedule, record=unroll.Record(every=1))
    (row,) = expansion(run, start=4, truncations=["first_order"])
    assert row.errors["first_order"] < 1e-5
    with pytest.raises(unroll.InputError, match="sd_decay"):
        single_gradient_at(run, np.array([1]))


def test_other_optimisers_are_refused(blobs):
    train, _ = blobs
    spec = unroll.TrainSpec(
        unroll.models.build("linear", num_classes=3), optimizer=unroll.optax_call("adam", 0.01)
    )
    run = unroll.train(spec, train, np.arange(16).reshape(2, 8))
    with pytest.raises(unroll.InputError, match="plain sgd"):
        expansion(run)
    with pytest.raises(unroll.InputError, match="plain sgd"):
        single_gradient_at(run, np.array([1]))
