"""Bytes with known answers, limits of control groups, and what is refused."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

import unroll
from unroll.training.memory import (
    Bytes,
    Limits,
    host_limit,
    memory_limits,
    program_bytes,
    shapes,
    tree_bytes,
)

GB = 10**9


def test_bytes_of_a_tree():
    tree = {"a": np.zeros((3, 4), np.float32), "b": jnp.zeros(5, jnp.int32)}
    assert tree_bytes(tree) == tree_bytes(shapes(tree)) == 3 * 4 * 4 + 5 * 4


@pytest.mark.parametrize("donated", [False, True])
def test_plan_of_a_big_array(donated):
    program = jax.jit(lambda x: x * 2 + 1, donate_argnums=(0,) if donated else ())
    size = 4 * 10**6
    plan = program_bytes(program, jax.ShapeDtypeStruct((1000, 1000), jnp.float32))
    assert (plan.arguments, plan.outputs) == (size, size)
    assert plan.aliased == (size if donated else 0)
    assert plan.total == plan.temporaries + (size if donated else 2 * size)
    assert plan.temporaries < 1000  # an elementwise chain is fused


def test_plan_counts_what_lies_in_between():
    def program(x):
        return jnp.sort(x * 2, axis=0)[0].sum()

    plan = program_bytes(jax.jit(program), jax.ShapeDtypeStruct((1000, 1000), jnp.float32))
    # What is sorted lies there once or, before and after, twice.
    assert 1 <= plan.temporaries / (4 * 10**6) < 2.1


def test_the_program_is_compiled_once(caplog):
    program = jax.jit(lambda x: jnp.sort(x) * 3)
    program_bytes(program, jax.ShapeDtypeStruct((77,), jnp.float32))
    with jax.log_compiles():
        program(jnp.zeros(77, jnp.float32))
        assert "Finished XLA compilation of jit(<lambda>)" not in caplog.text
        program(jnp.zeros(78, jnp.float32))
        assert "Finished XLA compilation of jit(<lambda>)" in caplog.text


def test_what_does_not_fit_is_refused_with_a_hint():
    limits = Limits(device=None, host=4 * GB, shared=True)
    limits.check(Bytes(3 * GB, GB), "a training", "shrink")
    with pytest.raises(unroll.InputError, match=r"a training would take 4\.1 GB of memory, .*shr"):
        limits.check(Bytes(3 * GB, 11 * GB // 10), "a training", "shrink")


def test_an_accelerator_has_its_own_memory():
    limits = Limits(device=2 * GB, host=GB, shared=False)
    limits.check(Bytes(2 * GB, GB), "a training", "shrink")
    with pytest.raises(unroll.InputError, match="of device memory"):
        limits.check(Bytes(3 * GB, 0), "a training", "shrink")
    with pytest.raises(unroll.InputError, match="of host memory"):
        limits.check(Bytes(0, 2 * GB), "a training", "shrink")


@pytest.mark.parametrize("shared", [True, False])
def test_nothing_is_refused_where_the_limit_is_unknown(shared):
    Limits(device=None, host=None, shared=shared).check(Bytes(10**15, 10**15), "a training", "")


Device = collections.namedtuple("Device", "platform memory_stats")


def test_limits_of_devices():
    assert memory_limits().shared
    assert memory_limits().host > 0
    gpu = Device("gpu", lambda: {"bytes_limit": 80 * GB, "bytes_in_use": 5})
    assert memory_limits(gpu).device == 80 * GB
    assert not memory_limits(gpu).shared
    assert memory_limits(Device("gpu", lambda: None)).device is None


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def second_version(folder, limit, usage, cache=0):
    place = f"sys/fs/cgroup/{folder}"
    return {
        f"{place}/memory.max": f"{limit}\n",
        f"{place}/memory.current": f"{usage}\n",
        f"{place}/memory.stat": f"anon 1\ninactive_file {cache}\nactive_file 3\n",
    }


CASES = {
    "own group": (
        {"proc/self/cgroup": "0::/job\n", **second_version("job", 5000, 2000, 100)},
        3100,
    ),
    "a group above": (
        {
            "proc/self/cgroup": "0::/slice/job\n",
            **second_version("slice", 900, 500),
            **second_version("slice/job", "max", 500),
        },
        400,
    ),
    "a container, whose group is the top": (
        {"proc/self/cgroup": "0::/docker/abc\n", **second_version("", 700, 100)},
        600,
    ),
    "used up": ({"proc/self/cgroup": "0::/job\n", **second_version("job", 100, 200)}, 0),
    "first version": (
        {
            "proc/self/cgroup": "9:name=systemd:/\n4:memory:/job\n2:cpu,cpuacct:/\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "800\n",
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "300\n",
            "sys/fs/cgroup/memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 20\n",
        },
        520,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_control_groups_bound_the_host(tmp_path, name):
    files, room = CASES[name]
    write(tmp_path, files)
    assert host_limit(tmp_path) == room


@pytest.mark.parametrize(
    "files", [{}, {"proc/self/cgroup": "0::/\n"}, second_version("job", 1, 0)], ids=str
)
def test_without_a_limited_group_the_host_counts(tmp_path, files, monkeypatch):
    write(tmp_path, files)
    memory = collections.namedtuple("Memory", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(12345))
    assert host_limit(tmp_path) == 12345
