"""The store: atomic entries, damage, resumption, and kills at random moments."""

import dataclasses
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest

import unroll
from unroll import tree

SCHEDULE = unroll.data.make_schedule(0, 120, batch_size=16, epochs=6)


@pytest.fixture
def store(tmp_path):
    return unroll.Store(tmp_path / "store", progress_seconds=0.0)


def train(spec, data, store, **options):
    return unroll.train(spec, data, SCHEDULE, store=store, **options)


@pytest.fixture
def reference(mlp_spec, blobs):
    return unroll.train(mlp_spec, blobs[0], SCHEDULE, record=unroll.Record(every=10))


def count_steps(monkeypatch):
    """Counts the training steps that are really taken."""
    from unroll.training import loop

    taken = []
    advance = loop.advance

    def counting(*arguments):
        taken.append(arguments[-1] - arguments[-2])
        return advance(*arguments)

    monkeypatch.setattr(loop, "advance", counting)
    return taken


def test_round_trip_keeps_bits_and_types(store):
    value = {
        "params": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "opt_state": (np.int32(3), {"trace": np.ones(2)}),
    }
    store.write("address", 7, value, {"seconds": 1.5})
    back, metadata = store.read("address", 7, jax.tree.map(np.zeros_like, value))
    chex.assert_trees_all_equal(back, value)
    chex.assert_trees_all_equal_dtypes(back, value)
    assert metadata == {"seconds": 1.5}
    assert store.steps("address") == [7]


def test_a_finished_run_is_not_trained_again(mlp_spec, blobs, store, reference, monkeypatch):
    first = train(mlp_spec, blobs[0], store, record=unroll.Record(every=10))
    taken = count_steps(monkeypatch)
    again = train(mlp_spec, blobs[0], store, record=unroll.Record(every=10))
    assert not taken
    for run in first, again:
        assert tree.same_bits(run.state, reference.state)
        np.testing.assert_array_equal(run.losses, reference.losses)
        assert list(run.snapshots) == list(reference.snapshots)
        assert all(
            tree.same_bits(run.snapshots[step], reference.snapshots[step]) for step in run.snapshots
        )
    assert again.seconds == pytest.approx(first.seconds)


def test_missing_snapshots_are_filled_in(mlp_spec, blobs, store, reference):
    train(mlp_spec, blobs[0], store)
    run = train(mlp_spec, blobs[0], store, record=unroll.Record(every=10))
    assert all(
        tree.same_bits(run.snapshots[step], reference.snapshots[step])
        for step in reference.snapshots
    )


def test_only_wanted_states_stay(mlp_spec, blobs, store):
    run = train(mlp_spec, blobs[0], store, record=unroll.Record(every=10))
    assert store.steps(run.address) == [10, 20, 30, 40, 48]


@pytest.mark.parametrize("other", ["seed", "weights", "schedule", "spec", "data"])
def test_another_run_has_another_address(other, mlp_spec, blobs, store):
    base = dict(spec=mlp_spec, dataset=blobs[0], schedule=SCHEDULE, seed=0, weights=np.ones(120))
    changed = dict(
        base,
        **{
            "seed": dict(seed=1),
            "weights": dict(weights=np.linspace(0, 1, 120)),
            "schedule": dict(schedule=SCHEDULE[::-1]),
            "spec": dict(spec=unroll.TrainSpec(mlp_spec.model, unroll.Objective(l2=1e-3))),
            "data": dict(dataset=blobs[0].take(np.r_[1:120, 0])),
        }[other],
    )
    runs = [unroll.train(**arguments, store=store) for arguments in (base, changed)]
    assert runs[0].address != runs[1].address
    assert not tree.same_bits(runs[0].state, runs[1].state)


def entry_of(store, run, step=48):
    return store.root / run.address / f"{step:08d}"


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


DAMAGE = {
    "flipped byte": lambda entry: flip_byte(largest_file(entry / "tree")),
    "truncated": lambda entry: os.truncate(largest_file(entry / "tree"), 10),
    "no manifest": lambda entry: (entry / "manifest.json").unlink(),
    "empty manifest": lambda entry: (entry / "manifest.json").write_text(""),
    "no tree": lambda entry: shutil.rmtree(entry / "tree"),
    "other content": lambda entry: (entry / "manifest.json").write_text(
        json.dumps({"hash": "0" * 64, "metadata": {"kind": "snapshot", "seconds": 0}})
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_computed_again(damage, mlp_spec, blobs, store, reference, caplog):
    run = train(mlp_spec, blobs[0], store)
    DAMAGE[damage](entry_of(store, run))
    repaired = train(mlp_spec, blobs[0], store)
    assert "is damaged" in caplog.text
    assert tree.same_bits(repaired.state, reference.state)
    assert tree.same_bits(train(mlp_spec, blobs[0], store).state, reference.state)


def test_a_lost_snapshot_says_what_to_do(mlp_spec, blobs, store):
    run = train(mlp_spec, blobs[0], store, record=unroll.Record(every=20))
    shutil.rmtree(entry_of(store, run, 20))
    with pytest.raises(unroll.StoreError, match="snapshot of step 20 is gone.*train again"):
        _ = run.snapshots[20]


def test_half_written_entries_are_invisible(mlp_spec, blobs, store, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(unroll.Store, "_publish", killed)
    with pytest.raises(KeyboardInterrupt):
        store.write("address", 1, {"w": np.ones(3)}, {})
    assert store.steps("address") == []


def test_no_space_is_an_error_before_writing(store, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(unroll.StoreError, match="no space"):
        store.write("address", 1, {"w": np.ones(3)}, {})
    assert store.steps("address") == []


def test_unwritable_store(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(unroll.StoreError, match="choose another directory"):
        unroll.Store(tmp_path / "file" / "store")


# Kills. The script trains for some seconds and prints the hash of the final state; it is killed at
# random moments until it has been killed often enough, and then left to end.

KILL_SCRIPT = """
import sys
import numpy as np
import unroll
from unroll import tree

kind, folder = sys.argv[1:]
train, _ = unroll.data.load("blobs", num_train=256, num_test=8, num_features=16, num_classes=3)
spec = unroll.TrainSpec(unroll.models.build("mlp", num_classes=3, hidden=(256, 256)))
store = unroll.Store(folder, progress_seconds=0.0) if folder != "none" else None
schedule = unroll.data.make_schedule(0, len(train), 32, epochs={epochs})
print("ready", flush=True)
if kind == "run":
    state = unroll.train(spec, train, schedule, store=store, record=unroll.Record(every=500)).state
else:
    schedules = np.stack([schedule, schedule[::-1], schedule])[:, : len(schedule) // 4]
    state = unroll.train_ensemble(
        spec, train, schedules, seeds=(0, 1, 2), mode="batched", group_size=2, store=store
    ).states
print(tree.content_hash(state), flush=True)
"""


def start(script, kind, folder):
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, str(script), kind, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process):
    output = process.communicate(timeout=300)[0].split()
    assert process.returncode == 0
    return output[-1]


def killed_and_resumed(tmp_path, kind, kills, epochs):
    """Hash of an uninterrupted run, of one with kills, and how many kills hit unfinished work."""
    script = tmp_path / "script.py"
    script.write_text(KILL_SCRIPT.replace("{epochs}", str(epochs)))
    expected_process = start(script, kind, "none")
    assert expected_process.stdout.readline().strip() == "ready"
    begin = time.monotonic()
    expected = finish(expected_process)
    duration = time.monotonic() - begin
    moments = random.Random(0)
    hits = 0
    for attempt in range(kills):
        # A fresh store each third kill, so that early and late parts of the run are hit alike.
        folder = tmp_path / f"store{attempt // 3}"
        process = start(script, kind, folder)
        assert process.stdout.readline().strip() == "ready"
        time.sleep(moments.uniform(0, duration))
        hits += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return expected, finish(start(script, kind, folder)), hits, Path(folder)


@pytest.mark.parametrize("kind", ["run", "ensemble"])
def test_kill_and_resume(tmp_path, kind):
    expected, resumed, hits, _ = killed_and_resumed(tmp_path, kind, kills=2, epochs=200)
    assert resumed == expected
    assert hits > 0, "no kill hit unfinished work; make the run longer"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "ensemble"])
def test_ten_kills_at_random_moments(tmp_path, kind):
    expected, resumed, hits, folder = killed_and_resumed(tmp_path, kind, kills=10, epochs=600)
    print(f"{kind}: {hits} of 10 kills hit unfinished work")
    assert resumed == expected
    assert hits >= 5
    assert not [p for p in folder.rglob(".*") if p.is_dir() and p.parent.parent != folder]


# What belongs to the identity of a run.


class Scaled(nn.Module):
    initializer: object

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, kernel_init=self.initializer)(x)


@dataclasses.dataclass(frozen=True)
class Opaque:
    value: object


def top_level_initializer(key, shape, dtype=np.float32):
    return jax.random.normal(key, shape, dtype)


@pytest.mark.parametrize(
    "initializer",
    [nn.initializers.normal(0.1), lambda *_: 0, functools.partial(top_level_initializer)],
)
def test_functions_without_a_name_are_refused(initializer):
    """Closures of one scope share their name: one run would be read back as the other."""
    with pytest.raises(unroll.InputError, match="cannot be named"):
        unroll.TrainSpec(Scaled(initializer))


def test_named_functions_and_described_objects_are_fine():
    assert "top_level_initializer" in str(
        unroll.TrainSpec(Scaled(top_level_initializer)).describe()
    )
    with pytest.raises(unroll.InputError, match="has no description"):
        unroll.TrainSpec(Scaled(Opaque(object())))


def test_settings_of_jax_are_part_of_the_address(recorded_run):
    from unroll.training.run import environment

    before = environment(recorded_run.spec)
    with jax.default_matmul_precision("highest"):
        assert environment(recorded_run.spec) != before
    with jax.enable_x64(True):
        assert environment(recorded_run.spec) != before
    assert environment(recorded_run.spec) == before


def test_a_wanted_snapshot_is_not_discarded_as_progress(mlp_spec, blobs, store, monkeypatch):
    """Killed with progress at step 4, then continued with a record of every fourth step."""
    from unroll.training import loop

    monkeypatch.setattr(loop, "_CHUNK_SECONDS", 0.0)  # every chunk is as short as can be
    running = []

    def stop(done, total):
        running.append(done)
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(mlp_spec, blobs[0], store, progress=stop)
    run = train(mlp_spec, blobs[0], store, record=unroll.Record(every=4))
    assert tree.is_finite(run.snapshots[4])
    assert {4, 8, 12} <= set(store.steps(run.address))


def test_an_entry_that_cannot_be_removed_does_not_stop_the_run(
    mlp_spec, blobs, store, reference, monkeypatch
):
    run = train(mlp_spec, blobs[0], store)
    flip_byte(largest_file(entry_of(store, run) / "tree"))
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    assert tree.same_bits(train(mlp_spec, blobs[0], store).state, reference.state)


def test_arrays_of_the_caller_are_copied(mlp_spec):
    inputs = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    schedule = np.arange(8, dtype=np.int32).reshape(2, 4)
    data = unroll.data.Dataset("own", inputs, np.zeros(8, int), 3)
    run = unroll.train(mlp_spec, data, schedule)
    fingerprint = data.fingerprint
    inputs[:] = 0
    schedule[:] = 0
    again = dataclasses.replace(data)
    assert again.fingerprint == fingerprint
    assert run.schedule.max() == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(seed=2**32), "below 2\\*\\*32"),
        (dict(seed=1.5), "whole number"),
        (dict(mode="scan"), "unknown mode"),
    ],
)
def test_bad_arguments(mlp_spec, blobs, change, message):
    with pytest.raises(unroll.InputError, match=message):
        unroll.train(mlp_spec, blobs[0], SCHEDULE, **change)


def test_tokens_must_be_known_to_the_model():
    model = unroll.models.build("text", num_classes=2, vocabulary_size=10)
    data = unroll.data.Dataset("text", np.full((4, 5), 10, np.int32), np.zeros(4, int), 2)
    with pytest.raises(unroll.InputError, match="same vocabulary_size"):
        unroll.train(unroll.TrainSpec(model), data, np.arange(4).reshape(1, 4))
