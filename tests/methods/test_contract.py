"""What every method in the registry must keep, one row per method."""

import dataclasses
import inspect

import chex
import jax
import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.methods import METHODS, method
from unroll.problem import NEEDS, Access

# A new method is a new row: its name as a call, with hyper-parameters that suit a small problem.
ROWS = [
    "original",
    "retrain",
    "replay",
    "single_gradient",
    "checkpointed_gradient",
    "amnesiac",
    "amnesiac(only='forget')",
    "gradient_ascent(learning_rate=0.01)",
    "gradient_ascent(projection='energy(threshold=0.9)')",
    "projected_gradient(epochs=2)",
    "finetune(learning_rate=0.05)",
    "l1_sparse(epochs=2)",
    "random_label",
    "random_label(retain=False, epochs=2, redraw=True)",
    "neggrad_plus(epochs=2)",
    "neggrad_plus(projection='energy(threshold=0.9)')",
    "salun",
    "salun(fraction=0.2, projection='energy(threshold=0.9)')",
    "scrub(epochs=2, maximisation_epochs=1)",
    "influence",
    "influence(solver='woodfisher_exact', examples=20)",
    "influence(solver='woodfisher', damping=1.0, examples=20)",
    "taylor(order=1)",
    "taylor(order=2)",
    "taylor(order=3)",
    "sampled(examples=8)",
    "deltagrad(period=3)",
    "segments(count=4, examples=32, rank=3)",
]


@pytest.fixture(params=ROWS)
def row(request):
    return method(request.param)


def test_every_method_has_a_row():
    assert {method(row).name for row in ROWS} == set(METHODS)


def test_returns_a_model_of_the_same_shape(row, problem):
    result = row(jax.random.key(0), problem)
    original = problem.run.state
    chex.assert_trees_all_equal_shapes_and_dtypes(result.params, original.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(result.model_state, original.model_state)
    assert tree.is_finite(result.params)


def test_changes_no_input(row, problem):
    def fingerprint():
        run = problem.run
        return (
            tree.content_hash(run.state),
            tree.content_hash(dict(run.snapshots)),
            run.dataset.fingerprint,
            run.schedule.tobytes(),
            run.weights.tobytes(),
            problem.forget.tobytes(),
        )

    before = fingerprint()
    row(jax.random.key(0), problem)
    assert fingerprint() == before


def test_same_key_same_bits(row, problem):
    results = [row(jax.random.key(3), problem).params for _ in range(2)]
    assert tree.same_bits(*results)


def test_forgetting_nothing_spends_nothing_on_the_forget_set(row, problem):
    """Without a forget set, methods that act on it return the original; none fails."""
    empty = dataclasses.replace(problem, forget=np.array([], int))
    result = row(jax.random.key(0), empty)
    if row.name != "finetune":
        assert tree.same_bits(result.params, problem.run.state.params)


def test_cost_is_reported(row, problem):
    result = row(jax.random.key(0), problem)
    assert np.isfinite(result.example_gradients) and result.seconds >= 0
    assert (result.example_gradients == 0) == (row.name == "original")


def test_needs_are_declared_and_enforced(row, problem):
    assert row.needs and row.needs <= set(NEEDS)
    with pytest.raises(unroll.InputError, match="without declaring it"):
        row.unlearn(jax.random.key(0), Access(problem, frozenset()))


def test_hyperparameters_are_complete(row):
    """A record must be enough to build the method again."""
    assert set(row.hyperparameters) == set(inspect.signature(METHODS[row.name]).parameters)
    assert method(str(row)).hyperparameters == row.hyperparameters


@pytest.mark.parametrize("order", [1, 2])
def test_a_taylor_step_costs_the_products_of_two_series(recorded_run, order):
    """From the snapshot before the first use, step 5, on: 3 passes over 120 less 5 batches."""
    problem = unroll.Problem(recorded_run, recorded_run.schedule[6, :2])
    result = unroll.unlearn(f"taylor(order={order})", problem)
    assert result.info["start"] == 5
    slots = 3 * 120 - 5 * 16
    assert result.example_gradients == slots * {1: 1 + 2, 2: 1 + 2 + 3}[order]


@pytest.mark.parametrize("exact", ["replay", "retrain"])
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(optimizer=unroll.optax_call("adamw", 1e-2)),
        dict(augmentation=unroll.CropAndFlip(padding=1)),
    ],
)
def test_exact_methods_give_the_twin_bit_for_bit(images, exact, options):
    train, _ = images
    spec = unroll.TrainSpec(unroll.models.build("cnn", num_classes=3, channels=(4,)), **options)
    schedule = unroll.data.make_schedule(2, len(train), batch_size=8, epochs=1)
    run = unroll.train(spec, train, schedule, record=unroll.Record(every=3))
    forget = run.schedule[5, :3]
    problem = unroll.Problem(run, forget)
    weights = np.ones(len(train))
    weights[forget] = 0.0
    twin = unroll.train(spec, train, schedule, weights=weights)
    result = unroll.unlearn(exact, problem)
    assert tree.same_bits(result.params, twin.state.params)
    if exact == "replay":
        assert result.info["start"] == 3  # the last snapshot before step 5
        assert result.example_gradients == 8 * 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tailor", "unknown method 'tailor'"),
        ("taylor(orders=2)", "no 'orders'"),
        ("taylor(2)", "arguments need names"),
        ("taylor(order=x)", "cannot read"),
        ("taylor(order=2", "cannot read"),
        ("__import__('os')", "arguments need names"),
    ],
)
def test_bad_method_text(text, message):
    with pytest.raises(unroll.InputError, match=message):
        method(text)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([500], "id 500 .*out of range|id 500"),
        ([-1], "id -1"),
        ([3, 3], "id 3 .*twice"),
        (range(120), "every|all"),
    ],
)
def test_bad_forget_ids(problem, ids, message):
    with pytest.raises(unroll.InputError, match=message):
        dataclasses.replace(problem, forget=np.array(list(ids)))


def test_held_out_data_must_be_given(problem):
    with pytest.raises(unroll.InputError, match="held_out"):
        _ = Access(problem, frozenset({"held_out"})).held_out


def test_ascent_raises_the_forget_loss_and_finetuning_keeps_the_retain_loss(problem):
    def losses(result):
        run = problem.run
        found = []
        for data in (problem.forget_data, problem.retain_data):
            logits = unroll.predict(run.spec, result.params, result.model_state, data)
            found.append(unroll.metrics.outputs.loss(logits, data.labels))
        return found

    original = losses(unroll.unlearn("original", problem))
    assert losses(unroll.unlearn("gradient_ascent(epochs=5)", problem))[0] > original[0]
    assert losses(unroll.unlearn("finetune(epochs=2)", problem))[1] < original[1]
