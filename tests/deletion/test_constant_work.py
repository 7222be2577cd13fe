"""Constant work: the same bits as without, and the same work whatever was deleted."""

import dataclasses

import jax
import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.deletion import sisa_training as module
from unroll.deletion import stages as stages_module
from unroll.deletion.sharding import random_assignment
from unroll.deletion.sisa import SisaPlan, train_sisa
from unroll.errors import InputError

SHARDS, SLICES, BATCH = 3, 3, 4


@pytest.fixture(scope="module")
def plan(blobs):
    # Momentum and decay: a step without examples would move the parameters.
    spec = unroll.TrainSpec(
        unroll.models.build("mlp", num_classes=3, hidden=(6,)),
        objective=unroll.Objective(l2=0.01),
        optimizer=unroll.optax_call("sgd", learning_rate=0.2, momentum=0.9),
    )
    data = blobs[0].take(range(49))
    return SisaPlan(spec, data, random_assignment(0, 49, SHARDS, SLICES), (1, 1, 2), BATCH, seed=5)


@pytest.fixture(scope="module", params=["sequential", "batched"])
def trained(request, plan):
    return train_sisa(plan, mode=request.param, width=2)


def members(plan, shard, slice):
    return np.flatnonzero((plan.assignment.shard == shard) & (plan.assignment.slice == slice))


def states(system):
    return [None if c is None else (*c.before, c.state) for c in system.constituents]


def most_steps(plan):
    return int(plan.steps().max(axis=0).sum())


def test_the_bits_and_addresses_are_those_of_a_plain_deletion(plan, trained):
    first, last = members(plan, 0, 0), members(plan, 2, 2)
    plain = constant = trained
    for ids in ([last[0]], [first[0], last[1]], first[1:], members(plan, 0, 1), [last[2]]):
        plain, _ = plain.delete(ids)
        constant, _ = constant.delete(ids, constant_work=True, bound=2)
        assert tree.same_bits(states(plain), states(constant))
        assert plain.lineage().keys() == constant.lineage().keys()
        assert plain.removed.tolist() == constant.removed.tolist()


def test_work_depends_on_the_number_of_examples_alone(plan, trained):
    requests = {
        1: [[members(plan, s, r)[0]] for s in range(SHARDS) for r in range(SLICES)],
        2: [members(plan, 1, 2)[:2], [members(plan, 0, 0)[0], members(plan, 2, 1)[0]]],
        3: [members(plan, 1, 0)[:3], members(plan, 2, 2)[:3]],
    }
    for count, cases in requests.items():
        for bound in (1, 2, 9):
            shards = min(max(count, bound), SHARDS)
            expected = (shards * most_steps(plan) * BATCH, shards * most_steps(plan))
            expected += (shards * SLICES, shards)
            for ids in cases:
                work = plan.work(ids, constant_work=True, bound=bound)
                assert tuple(work) == expected
        _, cost = trained.delete(cases[0], constant_work=True, bound=2)
        assert (cost.steps, cost.slices, cost.shards) == (
            max(count, 2) * most_steps(plan),
            max(count, 2) * SLICES,
            max(count, 2),
        )
        assert cost.example_gradients == cost.steps * BATCH and cost.bytes_written == 0


def test_plain_work_is_what_a_deletion_reports(plan, trained):
    once, _ = trained.delete([members(plan, 0, 0)[0]])
    for ids in ([members(plan, 0, 1)[0]], [members(plan, 1, 2)[0], members(plan, 2, 0)[0]]):
        work = plan.work(ids, removed=once.removed)
        _, cost = once.delete(ids)
        assert tuple(work) == (cost.example_gradients, cost.steps, cost.slices, cost.shards)
    slot = plan.work([members(plan, 0, 2)[0]])
    # 16 or 17 examples of the shard less one, in batches of 4, for two epochs.
    left = int(plan.assignment.counts()[0].sum()) - 1
    assert slot == (2 * left, 2 * -(-left // BATCH), 1, 1)
    assert plan.work([]) == (0, 0, 0, 0)


@pytest.fixture
def counted(monkeypatch):
    """Steps of sequential stages as they are taken, and groups and steps of batched ones."""
    seen = {"alone": 0, "lanes": []}
    original_train, original_fit = stages_module.train, stages_module.fit
    lanes = stages_module._train_lanes

    def train(spec, data, schedule, **settings):
        seen["alone"] += len(schedule)
        return original_train(spec, data, schedule, **settings)

    def fit(spec, data, state, schedule, weights, key, *, start):
        seen["alone"] += len(schedule) - start
        return original_fit(spec, data, state, schedule, weights, key, start=start)

    def train_lanes(spec, all_lanes, mesh, end, progress):
        seen["lanes"].append((len(all_lanes), end))
        return lanes(spec, all_lanes, mesh, end, progress)

    monkeypatch.setattr(stages_module, "train", train)
    monkeypatch.setattr(stages_module, "fit", fit)
    monkeypatch.setattr(stages_module, "_train_lanes", train_lanes)
    return seen


def test_the_steps_that_are_taken_are_those_that_are_reported(plan, trained, counted):
    emptied, _ = trained.delete(members(plan, 0, 0))
    cases = [(trained, [members(plan, s, r)[0]]) for s, r in ((0, 0), (1, 2), (2, 1))]
    # A shard whose first stage has no examples, changed itself or to fill up; and no request.
    cases += [(emptied, [members(plan, s, 2)[1]]) for s in (0, 1)] + [(trained, [])]
    found = []
    for system, ids in cases:
        counted.update(alone=0, lanes=[])
        _, cost = system.delete(ids, constant_work=True, bound=2)
        found.append((counted["alone"], tuple(counted["lanes"])))
        assert cost.steps == 2 * most_steps(plan)
    assert len(set(found)) == 1
    if trained.mode == "sequential":
        assert found[0][0] == 2 * most_steps(plan)
    else:
        # Both groups of two lanes, side by side on two of four devices, to the ends of the stages.
        assert [end for _, end in found[0][1]] == plan.steps().max(axis=0).tolist()


def entries(store):
    return {path.name for path in store.root.iterdir() if path.is_dir()}


def test_the_store_gets_as_many_entries_whatever_was_deleted(plan, trained, tmp_path):
    store = unroll.Store(tmp_path)
    system, added = dataclasses.replace(trained, store=store), []
    for shard, slice in ((0, 0), (2, 1)):
        before = entries(store)
        after, cost = system.delete([members(plan, shard, slice)[0]], constant_work=True, bound=2)
        new = entries(store) - before
        added.append(len(new))
        assert cost.bytes_written == 2 * SLICES * system.state_bytes // (SHARDS * SLICES)
        real = set(after.lineage()) - set(system.lineage())
        assert real < new and len(real) == SLICES - slice
    # The bits are those of a deletion without a store, which other tests compare with scratch.
    again = train_sisa(plan, removed=after.removed, mode=trained.mode, width=2)
    assert again.hash == after.hash and again.lineage().keys() == after.lineage().keys()
    assert added == [2 * SLICES] * 2
    # No request at all: nothing but noise, and nothing changes.
    before = entries(store)
    same, _ = system.delete([], constant_work=True, bound=2)
    assert len(entries(store) - before) == 2 * SLICES and same.hash == system.hash


def test_noise_has_the_form_of_a_state_and_nothing_of_it(plan, tmp_path):
    store, like = unroll.Store(tmp_path), plan.initial(0)
    stages_module.store_noise(store, like, 7, "text")
    (address,) = entries(store)
    assert store.steps(address) == [7] and len(address) == 64
    target = {"state": like, "losses": np.zeros(7, np.float32)}
    value, _ = store.read(address, 7, target)
    for noise, leaf in zip(jax.tree.leaves(value["state"]), jax.tree.leaves(like), strict=True):
        assert noise.dtype == leaf.dtype and noise.shape == leaf.shape
        assert not np.array_equal(noise, leaf)


def test_a_killed_deletion_goes_on(plan, trained, tmp_path):
    class Killed(Exception):
        pass

    def kill(done, total):
        if done >= total // 2:
            raise Killed

    system = dataclasses.replace(trained, store=unroll.Store(tmp_path, progress_seconds=0.0))
    with pytest.raises(Killed):
        system.delete([2, 40], constant_work=True, progress=kill)
    reports = []
    after, _ = system.delete([2, 40], constant_work=True, progress=lambda *at: reports.append(at))
    assert after.hash == trained.delete([2, 40])[0].hash
    if trained.mode == "sequential":
        assert reports[-1] == (2 * most_steps(plan),) * 2


def test_shards_that_fill_up_are_those_with_examples(plan, monkeypatch):
    seen = []
    original = module.train_alone

    def train_alone(spec, stages, **settings):
        seen.append([stage.shard for stage in stages])
        return original(spec, stages, **settings)

    gone = np.flatnonzero(plan.assignment.shard == 0)
    system = train_sisa(plan, removed=gone)
    monkeypatch.setattr(module, "train_alone", train_alone)
    system.delete([members(plan, 2, 2)[0]], constant_work=True, bound=2)
    assert seen == [[1, 2]] * SLICES
    seen.clear()
    after, _ = system.delete([members(plan, 2, 2)[0]], constant_work=True, bound=3)
    # Shard 0 has nothing; shard 1 stands in.
    assert seen == [[1, 2, 1]] * SLICES and after.constituents[0] is None


def test_mistakes_are_one_line(plan, trained):
    for bound in (0, 1.5):
        with pytest.raises(InputError, match="bound must be"):
            trained.delete([1], constant_work=True, bound=bound)
    with pytest.raises(InputError, match="out of range"):
        plan.work([49])
    assert dataclasses.replace(plan, seed=6).work([1], constant_work=True) == plan.work(
        [2], constant_work=True
    )
