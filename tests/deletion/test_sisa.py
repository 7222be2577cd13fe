"""SISA: bit-exact deletions, isolation, what is trained again, kills, aggregation, mistakes."""

import dataclasses

import jax
import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.deletion import sisa_training as module
from unroll.deletion.aggregation import aggregate
from unroll.deletion.costs import simulate_cost
from unroll.deletion.sharding import Assignment, random_assignment
from unroll.deletion.sisa import SisaPlan, train_sisa
from unroll.errors import DivergenceError, InputError
from unroll.training import run as runs
from unroll.training.devices import model_mesh

SHARDS, SLICES = 3, 3
MODES = pytest.mark.parametrize("mode", ["sequential", "batched"])


@pytest.fixture(scope="module")
def spec():
    # Momentum: what a stage hands on is more than parameters.
    return unroll.TrainSpec(
        unroll.models.build("mlp", num_classes=3, hidden=(6,)),
        optimizer=unroll.optax_call("sgd", learning_rate=0.2, momentum=0.9),
    )


@pytest.fixture(scope="module")
def data(blobs):
    return blobs[0].take(range(50))


@pytest.fixture(scope="module")
def plan(spec, data):
    return SisaPlan(spec, data, random_assignment(0, 50, SHARDS, SLICES), (1, 1, 2), 4, seed=5)


@pytest.fixture(scope="module", params=["sequential", "batched"])
def trained(request, plan):
    return train_sisa(plan, mode=request.param)


def states(system):
    return [None if c is None else (*c.before, c.state) for c in system.constituents]


def members(plan, shard, slice):
    return np.flatnonzero((plan.assignment.shard == shard) & (plan.assignment.slice == slice))


@pytest.fixture
def trainings(monkeypatch):
    """The stages that are handed to a trainer, as text."""
    seen = []
    for name in ("train_alone", "train_in_lanes"):
        original = getattr(module, name)

        def counted(spec, stages, original=original, **settings):
            seen.extend(map(str, stages))
            return original(spec, stages, **settings)

        monkeypatch.setattr(module, name, counted)
    return seen


@pytest.mark.parametrize("seed", range(2))
def test_after_every_deletion_the_bits_are_those_of_a_training_on_what_remains(plan, trained, seed):
    rng = np.random.default_rng(seed)
    order, system, size = rng.permutation(50), trained, 0
    for count in (1, 2, 7):
        system, _ = system.delete(order[size : size + count])
        size += count
    removed = order[:size]
    scratch = train_sisa(plan, removed=removed, mode=trained.mode)
    assert system.removed.tolist() == scratch.removed.tolist() == sorted(removed.tolist())
    assert tree.same_bits(states(system), states(scratch))
    assert system.hash == scratch.hash != trained.hash
    assert system.lineage().keys() == scratch.lineage().keys()


def test_only_what_remains_counts_and_not_the_order(trained):
    one = trained.delete([4, 31])[0].delete([17])[0]
    other = trained.delete([17])[0].delete([31])[0].delete([4])[0]
    assert one.hash == other.hash and tree.same_bits(states(one), states(other))


def test_constituents_read_their_own_slices_and_nothing_deleted(plan, trained):
    removed = np.array([7, 8])
    clean = train_sisa(plan, removed=removed, mode=trained.mode)
    foreign = (plan.assignment.shard != 0) | (plan.assignment.slice > 1)
    foreign[removed] = True
    inputs, labels = plan.dataset.inputs.copy(), plan.dataset.labels.copy()
    inputs[foreign], labels[foreign] = 1e3, 2 - labels[foreign]
    poisoned = dataclasses.replace(plan.dataset, inputs=inputs, labels=labels)
    dirty = train_sisa(
        dataclasses.replace(plan, dataset=poisoned), removed=removed, mode=trained.mode
    )
    first, second = clean.constituents[0], dirty.constituents[0]
    assert tree.same_bits(first.before, second.before)
    assert first.addresses[:2] == second.addresses[:2]
    # The poison works where it is read.
    assert not tree.same_bits(first.state, second.state)
    assert not tree.same_bits(clean.constituents[1].before[0], dirty.constituents[1].before[0])


def test_rows_of_deleted_examples_can_be_erased(plan):
    system = train_sisa(plan, removed=[3, 20])
    erased = train_sisa(plan.erase([3, 20]), removed=[3, 20])
    assert not plan.erase([3]).dataset.inputs[3].any()
    assert system.hash == erased.hash and system.lineage().keys() == erased.lineage().keys()


def test_only_later_stages_of_the_touched_shards_are_trained_again(plan, trained, trainings):
    ids = [members(plan, 1, 2)[0], members(plan, 2, 1)[0]]
    after, cost = trained.delete(ids)
    assert sorted(trainings) == ["shard 1, slice 2", "shard 2, slice 1", "shard 2, slice 2"]
    assert (cost.slices, cost.shards) == (3, 2)
    assert cost.seconds > 0 and after.seconds == trained.seconds + cost.seconds
    assert after.constituents[0] is trained.constituents[0]
    for old, new, first in ((1, 1, 2), (2, 2, 1)):
        old, new = trained.constituents[old], after.constituents[new]
        assert tree.same_bits(old.before[:first], new.before[:first])
        assert old.addresses[:first] == new.addresses[:first]
        assert not set(old.addresses[first:]) & set(new.addresses[first:])


def test_costs_are_counted_by_hand(plan, trained):
    counts = plan.assignment.counts()
    example = members(plan, 0, 1)[0]
    _, cost = trained.delete([example])
    left = counts[0, 0] + counts[0, 1] - 1
    assert cost.example_gradients == 1 * left + 2 * (left + counts[0, 2])
    assert [cost.example_gradients] == simulate_cost(
        plan.assignment, plan.epochs, [example]
    ).tolist()
    same, nothing = trained.delete([])
    assert same is trained and dataclasses.astuple(nothing) == (0, 0.0, 0, 0, 0, 0)
    # Slices of 6, 6 and 5 or 6 examples in batches of 4: T = epochs * ceil(n / 4).
    assert plan.steps()[0].tolist() == [2, 3, 2 * -(-int(counts[0].sum()) // 4)]


def test_slices_and_shards_that_become_empty(plan, trained, data):
    first = members(plan, 0, 0)
    emptied, _ = trained.delete(first)
    assert emptied.constituents[0].addresses[0] is None
    scratch = train_sisa(plan, removed=first, mode=trained.mode)
    assert tree.same_bits(states(emptied), states(scratch))
    gone, cost = emptied.delete([*members(plan, 0, 1), *members(plan, 0, 2)])
    assert gone.constituents[0] is None and (cost.slices, cost.shards) == (0, 1)
    assert cost.example_gradients == 0
    assert gone.logits(data).shape == (2, 50, 3) and len(gone.present) == 2
    assert tree.same_bits(gone.constituents[1:][0].state, trained.constituents[1].state)
    # A middle slice without examples keeps its epochs, on the slices before it.
    middle, _ = trained.delete(members(plan, 1, 1))
    assert middle.constituents[1].addresses[1] is not None
    assert tree.same_bits(
        states(middle), states(train_sisa(plan, removed=middle.removed, mode=trained.mode))
    )


@MODES
def test_the_store_gives_back_what_did_not_change(plan, tmp_path, monkeypatch, mode):
    store = unroll.Store(tmp_path)
    system = train_sisa(plan, store=store, mode=mode)
    assert all(state is None for c in system.constituents for state in c.before)
    after, cost = system.delete([11, 30])
    scratch = train_sisa(plan, removed=[11, 30], mode=mode)
    assert after.hash == scratch.hash and after.lineage().keys() == scratch.lineage().keys()
    gone = {11, 30}
    assert not any(gone & set(ids.tolist()) for ids in after.lineage().values())

    def refuse(*args, **settings):
        raise AssertionError("trained again")

    monkeypatch.setattr(runs, "_iterate", refuse)
    monkeypatch.setattr("unroll.deletion.stages._advance_lanes", refuse)
    again = train_sisa(plan, store=store, mode=mode)
    assert again.hash == system.hash
    same, same_cost = again.delete([11, 30])
    assert same.hash == after.hash
    assert same_cost.example_gradients == cost.example_gradients > 0


@pytest.mark.parametrize(
    # One after the other is the kill of an ordinary run, see tests/test_checkpoint.py.
    "mode",
    [pytest.param("sequential", marks=pytest.mark.slow), "batched"],
)
def test_a_killed_deletion_goes_on_with_the_same_bits(plan, tmp_path, mode):
    class Killed(Exception):
        pass

    def kill(done, total):
        if done >= total - plan.steps()[:, -1].max():
            raise Killed

    # Every visit writes, as if each took 20 seconds.
    store = unroll.Store(tmp_path, progress_seconds=0.0)
    with pytest.raises(Killed):
        train_sisa(plan, store=store, mode=mode, progress=kill)
    reports = []
    system = train_sisa(
        plan, store=store, mode=mode, progress=lambda *report: reports.append(report)
    )
    assert system.hash == train_sisa(plan, mode=mode).hash
    assert reports[-1] == (int(plan.steps().sum()),) * 2
    with pytest.raises(Killed):
        system.delete([2, 40], progress=kill)
    after, _ = system.delete([2, 40])
    assert after.hash == train_sisa(plan, removed=[2, 40], mode=mode).hash


def test_one_shard_in_one_slice_is_an_ordinary_run(spec, data):
    plan = SisaPlan(spec, data, Assignment(np.zeros(50, int), np.zeros(50, int), 1, 1), (2,), 8)
    system = train_sisa(plan)
    schedule = unroll.data.make_schedule(int(plan.seeds[0, 1]), 50, 8, 2)
    run = unroll.train(spec, data, schedule, seed=int(plan.seeds[0, 1]), initial=plan.initial(0))
    assert tree.same_bits(system.constituents[0].state, run.state)
    assert plan.passes == 2 and system.state_bytes == sum(
        leaf.nbytes for leaf in jax.tree.leaves(run.state)
    )


def test_lanes_agree_with_runs_and_do_not_know_devices_or_neighbours(plan):
    alone = train_sisa(plan, mode="sequential")
    one, four = (
        train_sisa(plan, mode="batched", width=2, mesh=model_mesh(jax.devices()[:count]))
        for count in (1, 4)
    )
    assert one.hash == four.hash
    # Another order of summation over a dozen steps in float32.
    for first, second in zip(alone.present, one.present, strict=True):
        distance = tree.distance(first.state.params, second.state.params)
        assert distance < 1e-5 * tree.norm(first.state.params)
    # The other shards are empty or not: shard 2 has lane 0 of the second group in any case.
    removed = np.flatnonzero(plan.assignment.shard != 2)
    single = train_sisa(plan, mode="batched", width=2, removed=removed)
    assert tree.same_bits(single.constituents[2].state, one.constituents[2].state)


def test_seeds_differ_between_constituents_and_stages(plan):
    assert plan.seeds.shape == (SHARDS, SLICES + 1) and len(np.unique(plan.seeds)) == 12
    assert not tree.same_bits(plan.initial(0), plan.initial(1))
    other = dataclasses.replace(plan, seed=6)
    assert plan.hash != other.hash and not (plan.seeds == other.seeds).any()


def test_votes_and_means_have_known_answers():
    logits = np.log([[[0.6, 0.3, 0.1]], [[0.6, 0.3, 0.1]], [[0.01, 0.98, 0.01]]])
    vote, mean = aggregate(logits, "vote")[0], aggregate(logits, "mean_probability")[0]
    probabilities = np.array([1.21, 1.58, 0.21]) / 3
    np.testing.assert_allclose(mean, probabilities, rtol=1e-12)
    np.testing.assert_allclose(vote, (np.array([2, 1, 0]) + probabilities / 2) / 3.5, rtol=1e-12)
    assert vote.argmax() == 0 and mean.argmax() == 1
    np.testing.assert_allclose(aggregate(logits, "mean_logits"), logits.mean(axis=0))
    # One vote each: the mean probability decides.
    tie = np.log([[[0.5, 0.3, 0.2]], [[0.1, 0.8, 0.1]]])
    assert aggregate(tie, "vote")[0].argmax() == 1
    with pytest.raises(InputError, match="unknown aggregation 'max'"):
        aggregate(tie, "max")


def test_predictions_of_a_system(trained, blobs):
    test = blobs[1]
    logits = trained.logits(test)
    assert logits.shape == (SHARDS, 60, 3)
    scores = trained.predict(test, "mean_logits")
    np.testing.assert_allclose(scores, logits.mean(axis=0, dtype=np.float64))
    accuracy = np.mean(trained.predict(test).argmax(axis=1) == test.labels)
    assert accuracy > 0.6  # of three classes that are easy to tell apart


def test_mistakes_are_one_line(plan, trained, spec, data):
    once, _ = trained.delete([9])
    for call, message in (
        (lambda: once.delete([9]), "id 9 is already deleted"),
        (lambda: once.delete([50]), "id 50 is out of range"),
        (lambda: once.delete([1, 1]), "id 1 occurs twice"),
        (lambda: once.delete(np.setdiff1d(np.arange(50), [9])), "no example would be left"),
        (lambda: train_sisa(plan, removed=range(50)), "no example would be left"),
        (lambda: train_sisa(plan, mode="parallel"), "unknown mode"),
        (lambda: train_sisa(plan, width=0, mode="batched"), "width must be"),
        (lambda: dataclasses.replace(plan, epochs=(1, 1)), "2 numbers of epochs for 3 slices"),
        (lambda: dataclasses.replace(plan, epochs=3), "as of slice_epochs"),
        (lambda: dataclasses.replace(plan, epochs=(1, 0, 1)), "epochs of a slice"),
        (lambda: dataclasses.replace(plan, batch_size=0), "batch_size"),
        (lambda: dataclasses.replace(plan, dataset=data.take(range(9))), "of 50 examples"),
    ):
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_an_optimizer_that_keeps_a_key_is_trained_alone(spec, data):
    noisy = unroll.optax_call("noisy_sgd", 0.05, 0.01, 0.55, 7)
    spec = dataclasses.replace(spec, optimizer=noisy)
    keyed = SisaPlan(spec, data.take(range(8)), random_assignment(0, 8, 1, 2), (1, 1), 4)
    system = train_sisa(keyed)
    assert system.mode == "sequential" and system.state_bytes > 0
    after, _ = system.delete([0])
    assert after.hash == train_sisa(keyed, removed=[0]).hash
    with pytest.raises(InputError, match="choose mode='sequential'"):
        train_sisa(keyed, mode="batched")


@MODES
def test_divergence_names_shard_and_slice(plan, spec, mode):
    wild = dataclasses.replace(
        spec, optimizer=unroll.optax_call("sgd", learning_rate=1e30, momentum=0.9)
    )
    with pytest.raises(DivergenceError, match="shard 0, slice 0") as error:
        train_sisa(dataclasses.replace(plan, spec=wild), mode=mode)
    assert "\n" not in str(error.value)
