"""Purges of SISA systems and ordinary studies: what must go, what stays, and going on after it."""

import dataclasses
import functools
import shutil

import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.deletion.lineage import record_folder, record_training
from unroll.deletion.lineage_sisa import purge_removed, record_sisa
from unroll.deletion.purge import check_purged, purge
from unroll.deletion.sharding import random_assignment
from unroll.deletion.sisa import SisaPlan, train_sisa
from unroll.deletion.sisa_method import sisa_method
from unroll.errors import StoreError
from unroll.evaluation.plans import study_trainings
from unroll.evaluation.records import append_records
from unroll.evaluation.study import Study, run_study

FIRST, SECOND = [4, 31], [17]
MODES = pytest.mark.parametrize(
    "mode", ["sequential", pytest.param("batched", marks=pytest.mark.slow)]
)


@pytest.fixture(scope="module")
def plan(blobs):
    spec = unroll.TrainSpec(
        unroll.models.build("mlp", num_classes=3, hidden=(6,)),
        optimizer=unroll.optax_call("sgd", learning_rate=0.2, momentum=0.9),
    )
    data = blobs[0].take(range(50))
    return SisaPlan(spec, data, random_assignment(0, 50, 3, 3), (1, 1, 2), 4, seed=5)


@pytest.fixture(scope="module")
def made(plan, tmp_path_factory):
    """Systems by mode, each with a store of its own."""

    @functools.cache
    def of(mode):
        return train_sisa(plan, store=unroll.Store(tmp_path_factory.mktemp(mode)), mode=mode)

    return of


@pytest.fixture
def stored(made, tmp_path):
    """`stored(mode)`: such a system with a copy of the store, which nobody has recorded."""

    def of(mode="sequential"):
        system = made(mode)
        shutil.copytree(system.store.root, tmp_path / "store")
        return dataclasses.replace(system, store=unroll.Store(tmp_path / "store"))

    return of


def addresses(system):
    return set(system.lineage())


def with_content(store):
    """Entries that hold a state."""
    return {path.name for path in store.root.iterdir() if store.steps(path.name)}


@MODES
def test_a_purge_removes_exactly_the_stages_that_read_what_was_deleted(plan, stored, mode):
    system = stored(mode)
    store = system.store
    record_sisa(store, system)
    carriers = {each for each, ids in system.lineage().items() if np.isin(FIRST, ids).any()}
    assert 0 < len(carriers) < 9
    after, _ = system.delete(FIRST)
    listed = purge_removed(store, after, dry_run=True)
    assert {each.path.name for each in listed} == carriers
    assert {each.kind for each in listed} == {"SISA stage"}
    assert with_content(store) == addresses(system) | addresses(after)
    assert len(purge_removed(store, after)) == len(carriers)
    assert with_content(store) == addresses(after)
    assert check_purged(store, plan.dataset.fingerprint, FIRST) == []


@MODES
def test_deletions_after_a_purge_have_the_bits_of_a_training_from_scratch(plan, stored, mode):
    system = stored(mode)
    store = system.store
    record_sisa(store, system)
    system, _ = system.delete(FIRST)
    purge_removed(store, system)
    # Somebody who starts again after a kill, with the rows erased.
    again = train_sisa(plan.erase(FIRST), removed=FIRST, store=store, mode=mode)
    assert again.hash == system.hash
    for each in (system, again):
        further, _ = each.delete(SECOND)
        scratch = train_sisa(plan, removed=[*FIRST, *SECOND], mode=mode)
        assert further.hash == scratch.hash
        finals = [[c.state for c in each.constituents] for each in (further, scratch)]
        assert tree.same_bits(*finals)
    purge_removed(store, further, fingerprint=plan.dataset.fingerprint)
    assert check_purged(store, plan.dataset.fingerprint, [*FIRST, *SECOND]) == []
    assert with_content(store) == addresses(further)


def test_stages_that_nobody_recorded_go_too(plan, stored):
    """Such as those of a training that was killed before its lineage was written."""
    system = stored()
    store = system.store
    after, _ = system.delete(FIRST)
    purge_removed(store, after)
    assert with_content(store) == addresses(after)


@MODES
def test_noise_of_constant_work_goes_without_a_trace_and_nothing_else_does(plan, stored, mode):
    system = stored(mode)
    store = system.store
    record_sisa(store, system)
    after, _ = system.delete(FIRST, constant_work=True, bound=3)
    noise = with_content(store) - addresses(system) - addresses(after)
    assert len(noise) == 9 - len(addresses(after) - addresses(system))
    listed = purge_removed(store, after, dry_run=True)
    assert {each.path.name for each in listed if each.kind == "noise"} == noise
    purge_removed(store, after)
    assert with_content(store) == addresses(after)
    assert not [each for each in noise if (store.root / each).exists()]
    # Noise after a purge is in nobody's way, and neither is the next purge.
    further, _ = after.delete(SECOND, constant_work=True)
    assert further.hash == train_sisa(plan, removed=[*FIRST, *SECOND], mode=mode).hash
    purge_removed(store, further)
    assert check_purged(store, plan.dataset.fingerprint, [*FIRST, *SECOND]) == []
    assert with_content(store) == addresses(further)


def test_a_purge_of_no_example_removes_nothing(plan, stored):
    """Not even what nothing is known of: nobody asked for anything to be forgotten."""
    system = stored()
    store = system.store
    same, _ = system.delete([], constant_work=True)
    before = with_content(store)
    assert purge_removed(store, same) == [] and with_content(store) == before


def test_a_damaged_description_counts_as_dependent(plan, stored):
    system = stored()
    store = system.store
    record_sisa(store, system)
    innocent = next(e for e, ids in system.lineage().items() if not np.isin(FIRST, ids).any())
    (store.root / innocent / "lineage.json").write_text("{}")
    after, _ = system.delete(FIRST)
    listed = purge(store, plan.dataset.fingerprint, FIRST)
    assert innocent in {each.path.name for each in listed}
    record_sisa(store, after)  # what the plan explains is known again
    listed = purge(store, plan.dataset.fingerprint, FIRST)
    assert innocent not in {each.path.name for each in listed}


def test_a_lineage_that_does_not_follow_from_the_plan_is_not_written(plan, stored):
    system = stored()
    store = system.store
    other = dataclasses.replace(plan, assignment=random_assignment(1, 50, 3, 3))
    with pytest.raises(StoreError, match="is not of shard 0, slice 0; give the plan it is of"):
        record_sisa(store, dataclasses.replace(system, plan=other))
    lie = dataclasses.replace(system, removed=np.array([0, 1, 2, 3, 4, 5, 6]))
    with pytest.raises(StoreError, match="is not of shard"):
        record_sisa(store, lie)


def test_what_is_left_is_an_error_that_names_it(stored, monkeypatch):
    from unroll.deletion import lineage_sisa

    after, _ = stored().delete(FIRST)
    store = after.store
    monkeypatch.setattr(lineage_sisa, "purge", lambda *_, **__: [])
    with pytest.raises(StoreError, match=r"after a purge \d entries are left, the first is "):
        purge_removed(store, after)


def test_a_single_run_is_purged_of_its_predecessor(blobs, mlp_spec, tmp_path):
    store, weights = unroll.Store(tmp_path), np.ones(120, np.float32)
    weights[FIRST] = 0
    schedule = unroll.data.make_schedule(0, 120, batch_size=24, epochs=1)
    original = unroll.train(mlp_spec, blobs[0], schedule, store=store)
    twin = unroll.train(mlp_spec, blobs[0], schedule, weights=weights, store=store)
    assert [each.path.name for each in purge_removed(store, twin)] == [original.address]
    assert with_content(store) == {twin.address}


class StudyRun:
    """An ordinary study with a store and a workdir, recorded as experiments/unlearn.py does."""

    def __init__(self, folder, blobs, spec):
        self.train, test = blobs
        self.store, self.workdir = unroll.Store(folder / "store"), folder / "workdir"
        methods = ("replay", "taylor(order=1)", "finetune", "projected_gradient", sisa_method(2, 2))
        self.forget = np.array([2, 30, 31])
        self.study = Study(
            name="blobs",
            train=self.train,
            test=test,
            spec=spec,
            forget=self.forget,
            forget_description="ids",
            model_name="mlp",
            methods=methods,
            epochs=2,
            batch_size=16,
            train_seeds=(0,),
            independents=2,
            record_every=4,
        )
        self.workdir.mkdir()
        record_folder(self.workdir, {self.train.fingerprint: None, test.fingerprint: None})
        self.runs = []
        for each in study_trainings(self.study):
            recipe = each.spec, self.train, each.schedule
            options = dict(seed=each.seed, weights=each.weights)
            self.runs.append(record_training(self.store, *recipe, **options))
        self.records = self.run()
        append_records(self.workdir / "records.jsonl", self.records)

    def run(self):
        return [record for batch in run_study(self.study, self.store) for record in batch]


@pytest.mark.slow
def test_the_store_of_an_ordinary_study_is_purged_and_proved_free(blobs, mlp_spec, tmp_path):
    """Models, results of methods, SISA stages, a tangent, records; what is exact stays."""
    made = StudyRun(tmp_path, blobs, mlp_spec)
    store, fingerprint = made.store, made.train.fingerprint
    # A tangent, recorded by whoever stored it.
    from unroll.deletion.lineage import record

    store.write("f" * 64, 0, {"tangent": np.ones(3)}, {})
    record(store, "f" * 64, {fingerprint: np.arange(120)}, "tangent")
    before = with_content(store)
    asked = store, fingerprint, made.forget
    found = purge(*asked, folders=[made.workdir], dry_run=False)
    kinds = [each.kind for each in found]
    assert kinds.count("run") == 1  # the original; three independents and the twin stay
    for kind in ("result of taylor", "result of finetune", "SISA stage", "tangent", "report"):
        assert kind in kinds, kind
    assert "result of replay" not in kinds
    assert check_purged(*asked, folders=[made.workdir]) == []
    assert not (made.workdir / "records.jsonl").exists()
    independent, *_, original, twin = made.runs
    assert {independent, twin} <= with_content(store) < before
    assert original not in with_content(store)

    def numbers(records):
        skipped = ("seconds", "cost_ratio_seconds")
        rows = (dataclasses.asdict(record) for record in records)
        return [{name: row[name] for name in row if name not in skipped} for row in rows]

    assert numbers(made.run()) == numbers(made.records)  # from the data, to the last digit
    assert check_purged(*asked) != []
