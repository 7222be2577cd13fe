"""Two processes train one ensemble; one of them is killed, and the job is started again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax._src.lib import _jax  # there is no public way to ask what is built in

from unroll.training.devices import model_mesh

SCRIPT = Path(__file__).with_name("distributed_job.py")
sys.path.insert(0, str(SCRIPT.parent))

import distributed_job  # noqa: E402

pytestmark = pytest.mark.skipif(
    not hasattr(_jax, "make_gloo_tcp_collectives"),
    reason="this jaxlib is built without gloo, by which processes talk on the CPU",
)


def start_job(out, *, modes=("batched",), store=None, pause=0.0, diverge=None):
    """Starts both processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    store = None if store is None else str(store)
    settings = dict(modes=modes, store=store, out=str(out), pause=pause, diverge=diverge)
    command = [sys.executable, "-u", str(SCRIPT), coordinator, "2"]
    # Compiled as in this process, whose results must have the same bits; the last flag wins.
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    return [
        subprocess.Popen(
            [*command, str(process), json.dumps(settings)],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]


def ending(process, timeout=100):
    """Return code and output of a process, which must end in time."""
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, output


def finish(job):
    for process in job:
        code, output = ending(process)
        assert code == 0, output


def results(out, mode):
    """What both processes returned, which must be the same: first report, losses, leaves."""
    files = [np.load(f"{out}-{mode}-{process}.npz") for process in range(2)]
    first, other = ([file[name] for name in file.files] for file in files)
    for one, another in zip(first, other, strict=True):
        np.testing.assert_array_equal(one, another)
    return int(first[0]), first[1:]


def arrays(ensemble):
    return [ensemble.losses, *jax.tree.leaves(ensemble.states)]


def assert_same_bits(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_two_processes_train_one_ensemble(tmp_path):
    job = start_job(tmp_path / "job", modes=("batched", "sequential"), store=tmp_path / "store")
    # Two devices of this process hold the same shards as two processes with a device each.
    pair = model_mesh(jax.local_devices()[:2])
    batched, _ = distributed_job.train("batched", mesh=pair)
    sequential, _ = distributed_job.train("sequential")
    finish(job)
    assert_same_bits(results(tmp_path / "job", "batched")[1], arrays(batched))
    assert_same_bits(results(tmp_path / "job", "sequential")[1], arrays(sequential))
    # float32 sums in another order over 400 steps; see test_ensemble.
    for one, other in zip(arrays(batched), arrays(sequential), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow  # three jobs, some 15 s
@pytest.mark.parametrize(
    ("victim", "how"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGTERM)]
)
def test_a_killed_job_is_started_again_and_loses_nothing(tmp_path, victim, how):
    finish(start_job(tmp_path / "undisturbed"))
    _, undisturbed = results(tmp_path / "undisturbed", "batched")

    store = tmp_path / "store"
    job = start_job(tmp_path / "killed", store=store, pause=0.5)
    reached = wait_for_progress(store, shards=2)
    job[victim].send_signal(how)
    killed = time.monotonic()
    code, output = ending(job[1 - victim])
    assert code != 0
    # Ours where the connection breaks first; jax's own where process 0 was its coordinator.
    assert "has lost another process of the job" in output or "another task died" in output
    assert time.monotonic() - killed < 20
    assert ending(job[victim])[0] == -how
    assert not list(tmp_path.glob("killed*"))

    finish(start_job(tmp_path / "again", store=store))
    first, again = results(tmp_path / "again", "batched")
    assert_same_bits(again, undisturbed)
    assert first > len(distributed_job.SEEDS) * reached, "it went on from what was stored"


def wait_for_progress(store, shards):
    """Waits until every shard has stored an unfinished state; returns the earliest step."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        steps = {}
        for entry in store.glob("*/*"):
            if entry.name.isdigit() and int(entry.name) < distributed_job.STEPS:
                steps[entry.parent] = int(entry.name)
        if len(steps) == shards:
            return min(steps.values())
        time.sleep(0.05)
    raise AssertionError("no progress was stored in 90 s")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["batched", "sequential"])
def test_a_model_that_diverges_ends_both_processes_with_one_error(tmp_path, mode):
    for process in start_job(tmp_path / "job", modes=(mode,), diverge=15):
        code, output = ending(process)
        assert code != 0
        assert "error: " in output and "seed 15" in output
