"""Runs: three forms of the same loop, replay from every snapshot, divergence, bad input."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.training import loop
from unroll.training.run import fit
from unroll.training.step import initial_state

MODELS = {
    "mlp": dict(model=("mlp", dict(hidden=(16,)))),
    "mlp_momentum_dropout": dict(
        model=("mlp", dict(hidden=(16,), dropout=0.3)),
        optimizer=unroll.optax_call("sgd", learning_rate=0.1, momentum=0.9),
    ),
    "cnn_augmented": dict(
        model=("cnn", dict(channels=(4, 4))), augmentation=unroll.CropAndFlip(padding=1)
    ),
    "cnn_batch_norm_adam": dict(
        model=("cnn", dict(channels=(4, 4), normalization="batch")),
        optimizer=unroll.optax_call("adamw", 1e-2),
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def case(request, blobs, images):
    options = dict(MODELS[request.param])
    name, arguments = options.pop("model")
    dataset = images[0] if name == "cnn" else blobs[0]
    spec = unroll.TrainSpec(unroll.models.build(name, num_classes=3, **arguments), **options)
    schedule = unroll.data.make_schedule(1, len(dataset), batch_size=24, epochs=4)
    run = unroll.train(spec, dataset, schedule, seed=5, record=unroll.Record(every=3, steps=(4,)))
    return spec, dataset, schedule, run


def test_training_learns(case):
    *_, run = case
    assert run.losses[-3:].mean() < run.losses[:3].mean()


def test_loop_over_the_step_gives_the_same_bits(case):
    spec, dataset, schedule, run = case
    stepwise = unroll.train(spec, dataset, schedule, seed=5, mode="stepwise")
    assert tree.same_bits(stepwise.state, run.state)
    np.testing.assert_array_equal(stepwise.losses, run.losses)


def test_scan_gives_the_same_bits(case):
    spec, dataset, schedule, run = case
    start = initial_state(spec, run.key, dataset.inputs)
    scanned, losses = jax.jit(loop.scan_steps, static_argnames=("spec",))(
        spec, start, loop.device_examples(dataset), jnp.asarray(run.weights), run.key, schedule
    )
    assert tree.same_bits(tree.to_host(scanned), run.state)
    np.testing.assert_array_equal(losses, run.losses)


def test_replay_from_every_snapshot_gives_the_same_bits(case):
    spec, dataset, schedule, run = case
    assert {0, 3, 4, 6, len(schedule)} <= set(run.snapshots)
    for start in run.snapshots:
        state = fit(
            spec, dataset, run.snapshots[start], schedule, run.weights, run.key, start=start
        )
        assert tree.same_bits(state, run.state), f"replay from step {start}"


def test_snapshots_do_not_change_the_run(case):
    spec, dataset, schedule, run = case
    assert tree.same_bits(unroll.train(spec, dataset, schedule, seed=5).state, run.state)


def test_seed_matters(case):
    spec, dataset, schedule, run = case
    other = unroll.train(spec, dataset, schedule, seed=6)
    assert tree.distance(other.state.params, run.state.params) > 0.1


def test_twin_with_nothing_forgotten_is_the_original(problem):
    empty = dataclasses.replace(problem, forget=np.array([], int))
    retrained = unroll.unlearn("retrain", empty)
    assert tree.same_bits(retrained.params, problem.run.state.params)


def test_twin_ignores_the_content_of_what_it_forgot(problem):
    """The twin of a run whose forgotten inputs were other images is the same twin."""
    dataset = problem.run.dataset
    inputs = dataset.inputs.copy()
    inputs[problem.forget] += 5.0
    run = problem.run
    others = [
        unroll.train(run.spec, data, run.schedule, weights=problem.twin_weights)
        for data in (dataset, dataclasses.replace(dataset, inputs=inputs))
    ]
    assert tree.same_bits(others[0].state, others[1].state)


def test_divergence_names_the_step(blobs):
    spec = unroll.TrainSpec(
        unroll.models.build("mlp", num_classes=3, hidden=(8,)),
        objective=unroll.Objective(loss="squared_error"),
        optimizer=unroll.optax_call("sgd", learning_rate=1e4),
    )
    schedule = unroll.data.make_schedule(0, 120, batch_size=40, epochs=40)
    with pytest.raises(unroll.DivergenceError, match=r"the loss of step \d+ is not finite") as one:
        unroll.train(spec, blobs[0], schedule)
    with pytest.raises(unroll.DivergenceError) as stepwise:
        unroll.train(spec, blobs[0], schedule, mode="stepwise")
    assert str(one.value) == str(stepwise.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(weights=np.ones(7)), "one weight per example"),
        (dict(weights=np.full(120, np.nan)), "weight of example 0 is not finite"),
        (dict(schedule=np.array([[0, 500]])), "500"),
        (dict(schedule=np.array([[0.5]])), "integers"),
        (dict(record=unroll.Record(steps=(99,))), "step 99 is outside"),
        (dict(record=unroll.Record(every=-1)), "every=-1"),
    ],
)
def test_bad_input(blobs, mlp_spec, arguments, message):
    arguments = dict(dict(schedule=np.array([[0, 1]])), **arguments)
    with pytest.raises(unroll.InputError, match=message):
        unroll.train(mlp_spec, blobs[0], **arguments)


def test_raw_images_need_a_scale(images):
    raw, _ = unroll.data.load("random_images", num_train=64, num_test=8, size=8, num_classes=3)
    model = unroll.models.build("cnn", num_classes=3, channels=(4,))
    schedule = np.array([[0, 1], [2, 3]])
    with pytest.raises(unroll.InputError, match="Normalize"):
        unroll.train(unroll.TrainSpec(model), raw, schedule)
    mean, std = raw.inputs.mean(axis=(0, 1, 2)) / 255, raw.inputs.std(axis=(0, 1, 2)) / 255
    normalize = unroll.Normalize(tuple(mean.tolist()), tuple(std.tolist()))
    scaled = normalize(jnp.asarray(raw.inputs))
    np.testing.assert_allclose(scaled.mean(axis=(0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(scaled.std(axis=(0, 1, 2)), 1, atol=1e-3)
    as_floats = unroll.data.Dataset("floats", np.asarray(scaled), raw.labels, 3)
    runs = [
        unroll.train(unroll.TrainSpec(model, preprocess=normalize), raw, schedule),
        unroll.train(unroll.TrainSpec(model), as_floats, schedule),
    ]
    chex.assert_trees_all_close(runs[0].state.params, runs[1].state.params, atol=1e-6)


def test_progress_is_monotone_and_ends(blobs, mlp_spec):
    seen = []
    schedule = unroll.data.make_schedule(0, 120, batch_size=8, epochs=10)
    unroll.train(mlp_spec, blobs[0], schedule, progress=lambda *p: seen.append(p))
    done = [position for position, _ in seen]
    assert done == sorted(set(done)) and seen[-1] == (150, 150)


def test_renaming_a_dataset_keeps_the_address(recorded_run):
    renamed = dataclasses.replace(recorded_run.dataset, name="other")
    assert dataclasses.replace(recorded_run, dataset=renamed).address == recorded_run.address
    heavier = dataclasses.replace(recorded_run, weights=recorded_run.weights * 2)
    assert heavier.address != recorded_run.address


def test_a_run_may_start_from_a_given_state(blobs, mlp_spec, tmp_path):
    """Two runs of 8 steps, the second from where the first ended, are the run of 16 steps."""
    train = blobs[0]
    schedule = unroll.data.make_schedule(0, len(train), batch_size=15, epochs=2)
    whole = unroll.train(mlp_spec, train, schedule)
    first = unroll.train(mlp_spec, train, schedule[:8])
    store = unroll.Store(tmp_path)
    second = unroll.train(mlp_spec, train, schedule[8:], initial=first.state, store=store)
    assert tree.same_bits(second.state, whole.state)
    assert tree.same_bits(second.snapshots[0], first.state)
    plain = unroll.train(mlp_spec, train, schedule[8:], store=store)
    assert plain.address != second.address
    assert not tree.same_bits(plain.state, second.state)
    problem = unroll.Problem(second, np.array([3, 17]))
    twin = unroll.unlearn("retrain", problem)
    assert tree.same_bits(twin.params, unroll.unlearn("replay", problem).params)


def test_an_optimiser_with_a_key_is_recorded_and_replayed(blobs, mlp_spec):
    """Noisy SGD draws from a key in its state, which the loop must not take from the record."""
    optimizer = unroll.optax_call("noisy_sgd", 0.05, 0.01, 0.55, 7)
    spec = dataclasses.replace(mlp_spec, optimizer=optimizer)
    schedule = unroll.data.make_schedule(0, len(blobs[0]), batch_size=24, epochs=1)
    run = unroll.train(spec, blobs[0], schedule, record=unroll.Record(every=2))
    for step in run.snapshots:
        state = run.snapshots[step]
        arguments = spec, blobs[0], state, run.schedule, run.weights, run.key
        assert tree.same_bits(fit(*arguments, start=step), run.state)
    again = unroll.train(spec, blobs[0], schedule[2:], initial=run.snapshots[2])
    assert tree.same_bits(again.snapshots[0], run.snapshots[2])


def test_an_optimiser_with_a_key_is_stored(blobs, mlp_spec, tmp_path):
    """The key comes back as a key: a run that was cut short goes on with the same noise."""
    optimizer = unroll.optax_call("noisy_sgd", 0.05, 0.01, 0.55, 7)
    spec = dataclasses.replace(mlp_spec, optimizer=optimizer)
    schedule = unroll.data.make_schedule(0, len(blobs[0]), batch_size=24, epochs=1)
    settings = dict(record=unroll.Record(every=2), store=unroll.Store(tmp_path))
    run = unroll.train(spec, blobs[0], schedule, **settings)
    plain = unroll.train(spec, blobs[0], schedule, record=settings["record"])
    assert all(tree.same_bits(run.snapshots[step], plain.snapshots[step]) for step in run.snapshots)
    settings["store"].discard(run.address, run.steps)
    again = unroll.train(spec, blobs[0], schedule, **settings)
    assert tree.same_bits(again.state, run.state)
    leaves = [jax.tree.leaves(each.snapshots[4]) for each in (again, plain)]
    # The bits of a key would do for noise, but not as the first state of a further run.
    assert [leaf.dtype for leaf in leaves[0]] == [leaf.dtype for leaf in leaves[1]]


def test_an_initial_state_of_another_model_is_refused(blobs, mlp_spec):
    train = blobs[0]
    schedule = unroll.data.make_schedule(0, len(train), batch_size=15, epochs=1)
    other = unroll.TrainSpec(unroll.models.build("mlp", num_classes=3, hidden=(4,)))
    state = initial_state(other, jax.random.key(0), train.inputs)
    with pytest.raises(unroll.InputError, match="does not fit the specification"):
        unroll.train(mlp_spec, train, schedule, initial=state)
