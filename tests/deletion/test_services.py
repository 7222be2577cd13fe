"""Models that forget: pure functions of what was removed, and the server on real ones."""

import dataclasses

import numpy as np
import pytest
from serving_parts import Killed, killed_at, line, serve, serving, steady

import unroll
from unroll import tree
from unroll.deletion.lineage import dependents
from unroll.deletion.services import SingleModel, SisaService
from unroll.deletion.sharding import random_assignment
from unroll.deletion.sisa import SisaPlan, train_sisa
from unroll.errors import InputError
from unroll.training import loop

IDS = [3, 17, 21]


@pytest.fixture(scope="module")
def data(blobs):
    return blobs[0].take(range(30))


@pytest.fixture(scope="module")
def schedule():
    return unroll.data.make_schedule(0, 30, batch_size=10, epochs=2)


@pytest.fixture(scope="module")
def run(mlp_spec, data, schedule):
    return unroll.train(mlp_spec, data, schedule)


@pytest.fixture(scope="module")
def plan(mlp_spec, data):
    return SisaPlan(mlp_spec, data, random_assignment(0, 30, 2, 2), (1, 1), 5)


def _gone(ids):
    weights = np.ones(30, np.float32)
    weights[ids] = 0.0
    return weights


def twin(run, ids, **options):
    return unroll.train(run.spec, run.dataset, run.schedule, weights=_gone(ids), **options)


def test_a_single_model_without_is_the_twin_in_any_order(run):
    one = SingleModel(run).without([17])[0].without([3, 21])[0]
    other, work = SingleModel(run).without(IDS)
    expected = twin(run, IDS)
    assert one.removed.tolist() == other.removed.tolist() == IDS
    assert one.hash == other.hash != SingleModel(run).hash
    assert tree.same_bits(one.run.state, expected.state)
    assert work.example_gradients == 60 and work.estimates == {} and work.seconds > 0
    np.testing.assert_array_equal(
        one.predict(run.dataset),
        unroll.predict(run.spec, expected.state.params, {}, run.dataset),
    )


def test_a_run_from_a_given_state_is_started_from_it_again(run, data, schedule):
    given = unroll.train(run.spec, data, schedule, initial=run.state)
    after, _ = SingleModel(given).without(IDS)
    assert tree.same_bits(after.run.state, twin(run, IDS, initial=run.state).state)


def test_an_approximation_takes_all_back_from_the_last_exact_run(run):
    first, _ = SingleModel(run).without([8])
    one, _ = first.approximately([3], "single_gradient")
    one, work = one.approximately([17, 21], "single_gradient")
    other, _ = first.approximately(IDS, "single_gradient")
    assert one.hash == other.hash != first.hash and one.removed.tolist() == [3, 8, 17, 21]
    problem = unroll.Problem(first.run, IDS)
    expected = unroll.unlearn("single_gradient", problem)
    assert tree.same_bits(one.params, expected.params)
    moved = tree.distance(expected.params, first.run.state.params)
    assert work.estimates["distance"] == pytest.approx(moved) and moved > 0
    assert work.example_gradients == 3
    # The exact one forgets that there was an approximation.
    exact, _ = one.without([])
    assert exact.hash == SingleModel(twin(run, [3, 8, 17, 21])).hash
    assert exact.approximation is None


def test_numbers_that_a_method_gives_are_estimates(run):
    _, work = SingleModel(run).approximately(IDS, "taylor(order=1)")
    assert {"last_term_norm", "distance"} <= set(work.estimates)


def test_measured_seconds_are_no_estimates(run):
    _, work = SingleModel(run).approximately(IDS, "segments(count=2, examples=4, rank=2)")
    assert set(work.estimates) == {"preparation_example_gradients", "distance"}


def test_an_approximation_after_an_exact_point_does_not_look_at_what_was_deleted(run, data):
    """Other examples in their place change no bit of it."""
    inputs, labels = data.inputs.copy(), data.labels.copy()
    inputs[[8, 9]], labels[[8, 9]] = 1e3, 0
    other = dataclasses.replace(data, inputs=inputs, labels=labels)
    hashes = []
    for examples in (data, other):
        made = SingleModel(unroll.train(run.spec, examples, run.schedule, weights=_gone([8, 9])))
        hashes.append(made.approximately(IDS, "single_gradient")[0].hash)
        hashes.append(made.approximately(IDS, "segments(count=2, examples=20, rank=2)")[0].hash)
        hashes.append(made.approximately(IDS, "amnesiac(only='forget')")[0].hash)
    assert hashes[:3] == hashes[3:] and len(set(hashes)) == 3


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("finetune", "reads retain, where examples of former deletions still lie"),
        ("projected_gradient", "reads .*statistics"),
        ("original", "original takes nothing back"),
        # Of the run: it recorded only its ends.
        ("checkpointed_gradient", "recorded only its ends; train with record="),
        ("single_gradient(start=1)", "step 1 is not recorded"),
        ("nonsense", "unknown method"),
    ],
)
def test_methods_that_would_read_deleted_examples_are_refused(run, method, message):
    with pytest.raises(InputError, match=message):
        SingleModel(run).check_method(method)


def test_what_cannot_be_deleted(run, plan):
    model, _ = SingleModel(run).without([3])
    for service in (model, SisaService(train_sisa(plan, removed=[3]))):
        with pytest.raises(InputError, match="id 3 is already deleted"):
            service.without([3])
        with pytest.raises(InputError, match="out of range"):
            service.without([30])
        with pytest.raises(InputError, match="no example would be left"):
            service.without(np.delete(np.arange(30), 3))
    weighted = dataclasses.replace(run, weights=np.full(30, 0.5, np.float32))
    with pytest.raises(InputError, match="weights other than 0 and 1"):
        SingleModel(weighted)


def test_a_sisa_service_is_its_system(plan, blobs):
    service = SisaService(train_sisa(plan), "mean_logits")
    after, work = service.without(IDS)
    scratch = train_sisa(plan, removed=IDS)
    assert after.hash == scratch.hash and after.removed.tolist() == IDS
    assert work.example_gradients > 0
    np.testing.assert_array_equal(after.predict(blobs[1]), scratch.predict(blobs[1], "mean_logits"))
    assert service.describe() == after.describe()
    assert service.describe() != SisaService(service.sisa).describe()
    with pytest.raises(InputError, match="deletes exactly, not by taylor"):
        service.check_method("taylor")
    with pytest.raises(InputError, match="unknown aggregation"):
        SisaService(service.sisa, "median")


def test_a_description_does_not_tell_what_was_removed(run):
    service = SingleModel(run)
    assert service.describe() == service.without(IDS)[0].describe()
    for changed in (
        SingleModel(dataclasses.replace(run, seed=1)),
        SingleModel(run, seed=1),
        SingleModel(run, unroll.Record(every=1)),
    ):
        assert changed.describe() != service.describe()


def test_deletions_compile_nothing(run):
    service, _ = SingleModel(run).without([0])
    service.predict(run.dataset)
    before = loop.advance._cache_size()
    for example in range(1, 6):
        service, _ = service.without([example])
    assert loop.advance._cache_size() == before


LINES = [line(1, "delete", [3, 4]), line(2, "delete", [17]), line(3, "delete", [9])]
GONE = [3, 4, 9, 17]


def single(run, store):
    return lambda removed: SingleModel(twin(run, removed, store=store), store=store)


def sisa(plan, store):
    return lambda removed: SisaService(train_sisa(plan, removed=removed, store=store))


@pytest.mark.parametrize("kind", ["single", "sisa"])
def test_killed_servers_end_with_the_bits_of_training_on_what_remains(
    tmp_path, monkeypatch, run, plan, kind
):
    store = unroll.Store(tmp_path / "store")
    make = single(run, store) if kind == "single" else sisa(plan, store)
    records, kills = [], 0
    while True:
        try:
            # Each run gets one durable step further than the one before.
            with killed_at(monkeypatch, kills, kills % 2 == 0):
                server = serve(tmp_path, LINES, policy="batches(size=2)", service=make([]))
            break
        except Killed:
            kills += 1
    records = steady(server.journal.records)
    assert kills > 3
    scratch = twin(run, GONE) if kind == "single" else train_sisa(plan, removed=GONE)
    expected = SingleModel(scratch) if kind == "single" else SisaService(scratch)
    assert server.service.hash == expected.hash == records[-1]["model"]
    assert records == steady(
        serve(tmp_path / "whole", LINES, policy="batches(size=2)", service=make([])).journal.records
    )


@pytest.mark.parametrize("kind", ["single", "sisa"])
def test_after_a_purge_nothing_in_the_store_depends_on_the_deleted(tmp_path, run, plan, kind):
    store = unroll.Store(tmp_path / "store")
    make = single(run, store) if kind == "single" else sisa(plan, store)
    with serving(tmp_path, service=make([]), purge=True) as server:
        server.submit(LINES[0])
        server.submit(LINES[1])
        fingerprint = run.dataset.fingerprint
        assert dependents(store, fingerprint, [3, 4, 17]) == []
        assert dependents(store, fingerprint, [9]), "what remains is still there"
        removed = sorted(server.register.deleted)
    # The model of what remains is read back, not trained, and goes on.
    with serving(tmp_path, service=make(removed), purge=True) as server:
        server.submit(LINES[2])
        assert dependents(store, fingerprint, GONE) == []
        assert server.removed.tolist() == GONE


def test_a_purge_that_was_killed_is_done_again_though_more_was_approximated(tmp_path, run):
    store = unroll.Store(tmp_path / "store")
    make, policy = single(run, store), "budgeted(method='single_gradient', threshold=1)"
    options = dict(policy=policy, purge=True)
    with serving(tmp_path, service=make([]), **options) as server:
        server.submit(LINES[0])  # two examples: exact
        server.submit(LINES[1])
        assert server.register.status(17) == "approximated"
    fingerprint = run.dataset.fingerprint
    make([])  # as if the purge had not come to it
    assert dependents(store, fingerprint, [3, 4])
    with serving(tmp_path, service=make([3, 4]), **options) as server:
        assert dependents(store, fingerprint, [3, 4]) == []
        assert server.register.status(17) == "approximated"


def test_a_purge_needs_a_store(tmp_path, run):
    with pytest.raises(InputError, match="a purge needs a store"):
        with serving(tmp_path, service=SingleModel(run), purge=True):
            pass
