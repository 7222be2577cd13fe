"""Ensembles: batched and sequential agree, and the number of devices does not matter."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.errors import InputError
from unroll.training import ensemble
from unroll.training.devices import model_mesh

SEEDS = (0, 1, 2, 3, 4)


@pytest.fixture(scope="module")
def case(blobs, mlp_spec):
    train, _ = blobs
    schedules = np.stack([unroll.data.make_schedule(s, len(train), 24, 2) for s in SEEDS])
    weights = np.random.default_rng(0).integers(0, 2, (len(SEEDS), len(train)))
    sequential = unroll.train_ensemble(
        mlp_spec, train, schedules, seeds=SEEDS, weights=weights, mode="sequential"
    )
    return train, schedules, weights, sequential


def test_sequential_members_are_single_runs(case, mlp_spec):
    train, schedules, weights, sequential = case
    for index, seed in enumerate(SEEDS):
        run = unroll.train(mlp_spec, train, schedules[index], seed=seed, weights=weights[index])
        assert tree.same_bits(sequential.member(index), run.state)


def test_an_optimiser_with_a_key_is_trained_one_after_the_other(case, mlp_spec):
    """Noisy SGD draws from a key in its state, which numpy and other devices cannot hold."""
    train, schedules, _, _ = case
    optimizer = unroll.optax_call("noisy_sgd", 0.05, 0.01, 0.55, 7)
    spec = dataclasses.replace(mlp_spec, optimizer=optimizer)
    settings = dict(seeds=SEEDS[:2])
    found = unroll.train_ensemble(spec, train, schedules[:2], **settings)
    alone = unroll.train(spec, train, schedules[1], seed=SEEDS[1])
    assert tree.same_bits(found.member(1), alone.state)
    with pytest.raises(InputError, match="choose mode='sequential'"):
        unroll.train_ensemble(spec, train, schedules[:2], mode="batched", **settings)


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("group_size", [2, 64])
def test_batched_on_any_number_of_devices(case, mlp_spec, devices, group_size):
    """Five models on up to four devices, in one group or several: the same up to rounding."""
    assert jax.local_device_count() == 4
    train, schedules, weights, sequential = case
    batched = unroll.train_ensemble(
        mlp_spec,
        train,
        schedules,
        seeds=SEEDS,
        weights=weights,
        mode="batched",
        group_size=group_size,
        mesh=model_mesh(jax.local_devices()[:devices]),
    )
    # float32 sums in another order; 1e-5 is about a hundred roundings of weights near 1.
    chex.assert_trees_all_close(batched.states.params, sequential.states.params, atol=1e-5)
    np.testing.assert_allclose(batched.losses, sequential.losses, atol=1e-5)


def test_convolutions_and_batch_norm_in_a_batch(images):
    train, _ = images
    spec = unroll.TrainSpec(
        unroll.models.build("cnn", num_classes=3, channels=(4,), normalization="batch"),
        augmentation=unroll.CropAndFlip(padding=1),
    )
    schedule = unroll.data.make_schedule(0, len(train), 16, 1)
    both = [
        unroll.train_ensemble(spec, train, schedule, seeds=(3, 4), mode=mode)
        for mode in ("sequential", "batched")
    ]
    chex.assert_trees_all_close(both[0].states, both[1].states, atol=1e-5)


def test_a_stored_group_is_read_back(case, mlp_spec, tmp_path):
    train, schedules, weights, _ = case
    store = unroll.Store(tmp_path)
    arguments = dict(seeds=SEEDS, weights=weights, mode="batched", group_size=2, store=store)
    first = unroll.train_ensemble(mlp_spec, train, schedules, **arguments)
    second = unroll.train_ensemble(mlp_spec, train, schedules, **arguments)
    assert tree.same_bits(first.states, second.states)
    assert second.seconds == pytest.approx(first.seconds)


def shards_of_two(spec, train, schedules, devices, **options):
    """Four models, two on each device of a mesh, and as many groups as that takes."""
    return unroll.train_ensemble(
        spec,
        train,
        schedules[:4],
        seeds=SEEDS[:4],
        mode="batched",
        group_size=2 * devices,
        mesh=model_mesh(jax.local_devices()[:devices]),
        **options,
    )


def test_the_bits_of_a_shard_depend_on_no_other_device(case, mlp_spec, tmp_path, monkeypatch):
    """So what was trained on one device is read back where there are two."""
    train, schedules, *_ = case
    store = unroll.Store(tmp_path)
    one = shards_of_two(mlp_spec, train, schedules, 1)
    two = shards_of_two(mlp_spec, train, schedules, 2, store=store)
    assert tree.same_bits(one.states, two.states)
    monkeypatch.setattr(ensemble, "_advance_batched", None)  # nothing is trained any more
    again = shards_of_two(mlp_spec, train, schedules, 1, store=store)
    assert tree.same_bits(again.states, two.states)


def test_shards_go_on_from_where_each_of_them_was(case, mlp_spec, tmp_path):
    train, schedules, *_ = case
    store = unroll.Store(tmp_path, progress_seconds=0.0)
    undisturbed = shards_of_two(mlp_spec, train, schedules, 2)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards_of_two(mlp_spec, train, schedules, 2, store=store, progress=interrupt)
    first, second = sorted(tmp_path.iterdir())
    steps = schedules.shape[1]
    reached = store.steps(first.name)
    assert reached == store.steps(second.name) and 0 < reached[0] < steps
    store.discard(first.name, reached[0])  # killed before it wrote
    reports = []
    again = shards_of_two(
        mlp_spec,
        train,
        schedules,
        2,
        store=store,
        progress=lambda done, total: reports.append((done, total)),
    )
    assert tree.same_bits(again.states, undisturbed.states)
    np.testing.assert_array_equal(again.losses, undisturbed.losses)
    assert reports[-1] == (4 * steps, 4 * steps)


def test_groups_share_one_program(case, mlp_spec, monkeypatch):
    """Five models, at most three at a time: groups of three and two would compile twice."""
    train, schedules, weights, sequential = case
    traces, health = [], ensemble._health
    monkeypatch.setattr(ensemble, "_health", lambda *args: traces.append(args) or health(*args))
    mesh = model_mesh(jax.local_devices()[:1])
    batched = unroll.train_ensemble(
        mlp_spec,
        train,
        schedules,
        seeds=SEEDS,
        weights=weights,
        mode="batched",
        group_size=3,
        mesh=mesh,
    )
    assert len(traces) == 1
    chex.assert_trees_all_close(batched.states.params, sequential.states.params, atol=1e-5)


@pytest.mark.parametrize("mode", ["sequential", "batched"])
def test_one_schedule_for_all(case, mlp_spec, mode):
    train, schedules, weights, _ = case
    copies = np.broadcast_to(schedules[0], schedules.shape)
    shared, own = (
        unroll.train_ensemble(mlp_spec, train, each, seeds=SEEDS, weights=weights, mode=mode)
        for each in (schedules[0], copies)
    )
    chex.assert_trees_all_close(shared.states.params, own.states.params, atol=1e-5)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_state_that_overflows_in_the_last_step_is_found(case, blobs):
    train, schedules, *_ = case
    spec = unroll.TrainSpec(
        unroll.models.build("mlp", num_classes=3, hidden=(8,)),
        optimizer=unroll.optax_call("sgd", 1e39),  # infinite in float32
    )
    with pytest.raises(unroll.DivergenceError, match="seed 0.*the final state is not finite"):
        unroll.train_ensemble(spec, train, schedules[:2, :1], seeds=(0, 1), mode="batched")


@pytest.mark.parametrize("mode", ["sequential", "batched"])
def test_divergence_names_the_model(case, blobs, mode):
    train, schedules, _, _ = case
    spec = unroll.TrainSpec(
        unroll.models.build("mlp", num_classes=3, hidden=(8,)),
        objective=unroll.Objective(loss="squared_error"),
        optimizer=unroll.optax_call("sgd", 1e6),
    )
    long = np.concatenate([schedules] * 10, axis=1)
    with pytest.raises(unroll.DivergenceError, match=r"seed 0\b.*step \d+"):
        unroll.train_ensemble(spec, train, long, seeds=SEEDS, mode=mode)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(seeds=()), "at least one seed"),
        (dict(mode="pmap"), "unknown ensemble mode"),
        (dict(seeds=(0, 1)), "5 schedules.*2 seeds"),
        (dict(weights=np.ones((3, 120))), "3 rows of weights.*5 seeds"),
    ],
)
def test_bad_input(case, mlp_spec, change, message):
    train, schedules, *_ = case
    arguments = {"seeds": SEEDS, **change}
    with pytest.raises(unroll.InputError, match=message):
        unroll.train_ensemble(mlp_spec, train, schedules, **arguments)
