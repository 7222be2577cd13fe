"""Lineage and purge: what depends on what, and that nothing of it is left."""

import json
import shutil

import numpy as np
import pytest

import unroll
from unroll.deletion import lineage, lineage_files
from unroll.deletion.lineage import dependence, dependents, record, record_folder, record_run
from unroll.deletion.purge import check_purged, purge
from unroll.errors import InputError, StoreError
from unroll.evaluation.study import apply_method
from unroll.training.spec import description_hash

FORGET = np.array([3, 17, 40])
SCHEDULE = unroll.data.make_schedule(0, 120, batch_size=24, epochs=2)


class World:
    """A store with an original, its twin, an independent retraining and results of methods."""

    def __init__(self, folder, spec, data):
        self.store, self.data, self.fingerprint = unroll.Store(folder), data, data.fingerprint
        weights = np.ones(120)
        weights[FORGET] = 0
        retained = np.setdiff1d(np.arange(120), FORGET)
        other = unroll.data.make_schedule(1, retained, batch_size=24, epochs=1)
        every = unroll.Record(every=4)
        self.original = unroll.train(spec, data, SCHEDULE, record=every, store=self.store)
        self.twin = unroll.train(spec, data, SCHEDULE, weights=weights, store=self.store)
        self.independent = unroll.train(spec, data, other, seed=1, store=self.store)
        for run in (self.original, self.twin, self.independent):
            record_run(self.store, run)
        problem = unroll.Problem(self.original, FORGET, store=self.store)
        self.results = {}
        for name in ("replay", "taylor(order=1)"):
            before = set(self.addresses())
            apply_method(unroll.methods.method(name), 0, problem, self.store, None)
            (self.results[name],) = set(self.addresses()) - before

    def addresses(self):
        return [path.name for path in self.store.root.iterdir() if len(path.name) == 64]

    def found(self, ids=FORGET, **options):
        return {each.path.name for each in dependents(self.store, self.fingerprint, ids, **options)}

    def arrays(self):
        return sorted((self.store.root / "lineage" / "arrays").iterdir())


@pytest.fixture(scope="module")
def made(tmp_path_factory, mlp_spec, blobs):
    return World(tmp_path_factory.mktemp("made") / "store", mlp_spec, blobs[0])


@pytest.fixture
def world(made, tmp_path):
    """A copy of the store; the runs belong to all copies."""
    copy = object.__new__(World)
    vars(copy).update(vars(made))
    shutil.copytree(made.store.root, tmp_path / "store")
    copy.store = unroll.Store(tmp_path / "store")
    return copy


def carriers(world):
    return {world.original.address, world.results["taylor(order=1)"]}


def test_examples_of_weight_zero_or_outside_the_schedule_are_not_used():
    schedule = np.array([[0, 1], [2, -1]], np.int32)
    weights = np.array([1, 0, -1, 1], np.float32)
    assert lineage.trained_on(schedule, weights).tolist() == [0, 2]
    assert lineage.trained_on(schedule, weights, every_slot=True).tolist() == [0, 1, 2]


def test_what_carries_the_forgotten_examples_is_listed(world):
    assert world.found() == carriers(world)
    assert world.found([5]) == set(world.addresses())
    assert world.found([]) == set()
    assert dependents(world.store, "another data set", FORGET) == []
    kinds = {each.kind for each in dependents(world.store, world.fingerprint, FORGET)}
    assert kinds == {"run", "result of taylor"}


def test_purge_lists_first_and_then_leaves_nothing_but_hashes(world):
    store, address = world.store, world.original.address
    manifest = json.loads((store.root / address / "00000010" / "manifest.json").read_text())
    assert {each.path.name for each in purge(store, world.fingerprint, FORGET)} == carriers(world)
    assert world.found() == carriers(world)  # that was a dry run
    purge(store, world.fingerprint, FORGET, dry_run=False)
    assert check_purged(store, world.fingerprint, FORGET) == []
    for each in carriers(world):
        assert [path.name for path in (store.root / each).iterdir()] == ["purged.json"]
    left = json.loads((store.root / address / "purged.json").read_text())
    assert left["states"]["00000010"] == manifest["hash"]
    assert set(left) == {"kind", "states"}
    assert store.steps(address) == [] and store.steps(world.twin.address) != []
    assert purge(store, world.fingerprint, FORGET, dry_run=False) == []


def test_what_stays_is_still_known_when_its_source_is_gone(world):
    """The result of `replay` names the original run, whose description is removed."""
    purge(world.store, world.fingerprint, FORGET, dry_run=False)
    known = dependence(world.store, world.results["replay"])
    np.testing.assert_array_equal(
        known.parts[world.fingerprint], np.setdiff1d(np.arange(120), FORGET)
    )
    assert world.results["replay"] in world.found([5])


def test_no_file_that_only_the_forgotten_had_is_left(world):
    """By content, wherever it lies; descriptions are short, parameters are not."""

    def contents(paths):
        files = [path for path in paths if path.is_file()]
        return {path.read_bytes() for path in files if path.name != "identity.json"}

    root = world.store.root
    carrying = [path for each in carriers(world) for path in (root / each).rglob("*")]
    gone = contents(carrying) - contents(set(root.rglob("*")) - set(carrying))
    assert sum(map(len, gone)) > 1000
    purge(world.store, world.fingerprint, FORGET, dry_run=False)
    assert not gone & contents(root.rglob("*"))


def test_hashes_can_go_too(world):
    purge(world.store, world.fingerprint, FORGET, keep_hashes=False, dry_run=False)
    assert not [each for each in carriers(world) if (world.store.root / each).exists()]


def test_arrays_that_no_run_names_are_dropped(world):
    assert len(world.arrays()) == 4  # two schedules; weights of ones and of the twin
    purge(world.store, world.fingerprint, FORGET, dry_run=False)
    assert len(world.arrays()) == 4  # the twin shares the schedule, the retraining the ones
    purge(world.store, world.fingerprint, [5], dry_run=False)
    assert world.arrays() == []


def test_a_purged_run_can_be_trained_again_and_is_found_again(world, mlp_spec):
    purge(world.store, world.fingerprint, FORGET, dry_run=False)
    run = unroll.train(mlp_spec, world.data, SCHEDULE, store=world.store)
    assert run.address == world.original.address
    assert world.found() == {run.address}


def test_without_lineage_everything_of_the_data_set_counts(world, blobs, mlp_spec):
    address = world.twin.address
    (world.store.root / address / "lineage.json").unlink()
    # The arrays are there, but not whether the model has batch statistics.
    assert address in world.found() and address not in world.found([999])
    for path in world.arrays():
        path.unlink()
    assert address in world.found([999])
    assert dependence(world.store, address).why == "a run without lineage"
    assert dependence(world.store, address).parts == {world.fingerprint: None}


def test_what_nothing_describes_counts_for_every_data_set(world):
    world.store.write("nobody", 0, {"a": np.zeros(3)}, {})
    (world.store.root / "stray.npy").write_bytes(b"0")
    found = {each.path.name for each in dependents(world.store, "any", [0])}
    assert found == {"nobody", "stray.npy"}
    purge(world.store, "any", [0], dry_run=False)
    assert check_purged(world.store, "any", [0]) == []
    assert not (world.store.root / "stray.npy").exists()


@pytest.mark.parametrize("name", ["lineage.json", "identity.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "foreign"])
def test_damaged_descriptions_count_as_missing(world, name, damage):
    path = world.store.root / world.twin.address / name
    content = path.read_bytes()
    changed = {
        "flip": content.replace(b"single", b"simple").replace(b'"run"', b'"fun"'),
        "cut": content[:-10],
        "foreign": (world.store.root / world.independent.address / name).read_bytes(),
    }[damage]
    path.write_bytes(changed)
    if name == "identity.json":
        # Then the sidecar alone speaks, which is taken at its word.
        assert dependence(world.store, world.twin.address).why == "as recorded"
    else:
        assert world.twin.address in world.found()


def test_a_false_record_of_a_run_is_overruled_by_its_arrays(world):
    record(world.store, world.original.address, {}, "run")
    assert world.original.address in world.found()


def test_a_changed_array_is_not_believed(world):
    for path in world.arrays():
        array = np.load(path)
        if array.dtype == np.float32:
            np.save(path, np.zeros_like(array))
    # Recorded ids remain; a sidecar alone is what is left.
    assert dependence(world.store, world.original.address).why == "as recorded"
    (world.store.root / world.original.address / "lineage.json").unlink()
    assert dependence(world.store, world.original.address).parts == {world.fingerprint: None}


def test_models_with_batch_statistics_depend_on_examples_of_weight_zero(images, tmp_path):
    store, (data, _) = unroll.Store(tmp_path), images
    spec = unroll.TrainSpec(
        unroll.models.build("cnn", num_classes=3, channels=(4,), normalization="batch")
    )
    schedule = unroll.data.make_schedule(0, 64, batch_size=32, epochs=1)
    weights = np.ones(64)
    weights[5] = 0
    run = unroll.train(spec, data, schedule, weights=weights, store=store)
    record_run(store, run)
    assert [each.kind for each in dependents(store, data.fingerprint, [5])] == ["run"]
    record_run(store, run, weighted_statistics=True)
    assert dependents(store, data.fingerprint, [5]) == []


def test_a_run_from_a_given_state_depends_on_what_that_depends_on(world, mlp_spec, tmp_path):
    store, start = world.store, world.original.snapshots[4]
    weights = world.twin.weights
    run = unroll.train(
        mlp_spec, world.data, SCHEDULE[:2], weights=weights, initial=start, store=store
    )
    assert run.address in {each.path.name for each in dependents(store, "any", [0])}
    record_run(store, run)
    assert run.address in world.found()
    record_run(store, run, initial={world.fingerprint: FORGET, "other": None})
    assert run.address in world.found()
    assert [each.path.name for each in dependents(store, "other", [0])] == [run.address]
    record_run(store, run, initial={})
    assert run.address not in world.found()


def test_logits_on_a_data_set_depend_on_all_of_it(world):
    identity = {"dataset": "first", "evaluated": "second", "program": "models"}
    address = description_hash(identity)
    world.store.describe(address, identity)
    world.store.write(address, 0, np.zeros(3), {})
    assert dependence(world.store, address).parts == {"first": None, "second": None}
    record(world.store, address, {"first": [1], "second": []}, "logits")
    assert [each.kind for each in dependents(world.store, "first", [1])] == ["logits"]
    assert dependents(world.store, "second", [1]) == []


def test_unfinished_groups_and_half_written_entries_are_seen(world):
    group = unroll.Store(world.store.root / "unfinished-group")
    group.write("member", 3, {"a": np.zeros(3)}, {})
    half = world.store.root / world.original.address / ".00000010-half"
    half.mkdir()
    (half / "leaf").write_bytes(b"parameters")
    purge(world.store, world.fingerprint, FORGET, dry_run=False)
    assert not half.exists() and group.steps("member") == []
    assert check_purged(world.store, world.fingerprint, FORGET) == []


@pytest.mark.parametrize("at", range(6))
def test_an_interrupted_purge_can_be_run_again(world, monkeypatch, at):
    remaining = [at]
    rmtree = shutil.rmtree

    def dying(path, **options):
        if remaining[0] == 0:
            raise KeyboardInterrupt
        remaining[0] -= 1
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", dying)
    try:
        purge(world.store, world.fingerprint, FORGET, dry_run=False)
    except KeyboardInterrupt:
        assert check_purged(world.store, world.fingerprint, FORGET)
        assert check_purged(world.store, "another data set", [0]) == []  # all is still known
    monkeypatch.undo()
    purge(world.store, world.fingerprint, FORGET, dry_run=False)
    assert check_purged(world.store, world.fingerprint, FORGET) == []
    left = json.loads((world.store.root / world.original.address / "purged.json").read_text())
    assert len(left["states"]) == 3  # steps 4, 8 and 10
    assert {world.twin.address, world.independent.address, world.results["replay"]} <= (
        world.found([5])
    )


def test_what_cannot_be_removed_is_an_error(world, monkeypatch):
    def refuse(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(StoreError, match=r"cannot purge .* \(Permission denied\); run it again"):
        purge(world.store, world.fingerprint, FORGET, dry_run=False)


def test_reports_are_purged_when_they_were_recorded(world, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name / "figures").mkdir(parents=True)
        (tmp_path / name / "report.md").write_text("accuracy of example 17")
    folders = [tmp_path / "first", tmp_path / "second"]
    record_folder(folders[1], {world.fingerprint: [1, 2]})
    assert "first" in world.found(folders=folders) and "second" not in world.found(folders=folders)
    with pytest.raises(InputError, match="has no lineage.json; call record_folder"):
        purge(world.store, world.fingerprint, FORGET, folders=folders, dry_run=False)
    with pytest.raises(InputError, match="holds the store itself"):
        purge(world.store, world.fingerprint, FORGET, folders=[tmp_path], dry_run=False)
    assert world.found() == carriers(world)  # refused before anything was removed
    record_folder(folders[0], {world.fingerprint: None})
    purge(world.store, world.fingerprint, FORGET, folders=folders, dry_run=False)
    assert [path.name for path in folders[0].iterdir()] == ["purged.json"]
    assert (folders[1] / "report.md").exists()
    assert check_purged(world.store, world.fingerprint, FORGET, folders=folders) == []


@pytest.mark.parametrize("ids", [[], [0], [7], [8], [0, 9, 119], None])
def test_ids_come_back_from_their_bits(ids):
    parts = {"a": None if ids is None else np.array(ids, np.int64)}
    found = lineage_files.decoded(json.loads(json.dumps(lineage_files.encoded(parts))))
    np.testing.assert_equal(found, parts)


def test_negative_ids_are_refused(world):
    with pytest.raises(InputError, match="id -1 is out of range"):
        dependents(world.store, world.fingerprint, [-1])
    with pytest.raises(InputError, match="id -1 is out of range"):
        record(world.store, "address", {"data": [-1]}, "logits")
