"""Laying arrays out over devices and back, and what joining a job refuses."""

import jax
import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.training import devices


@pytest.mark.parametrize("count", [1, 2, 4])
def test_parts_go_to_their_devices_and_come_back(count):
    local = jax.local_devices()[:count]
    mesh = devices.model_mesh(local)
    assert devices.local_places(mesh) == list(range(count))
    parts = [{"a": np.full((3, 2), i, np.float32), "b": np.arange(3) + i} for i in range(count)]
    laid_out = devices.lay_out(mesh, parts)
    assert laid_out["a"].shape == (3 * count, 2)
    returned = devices.local_parts(mesh, laid_out)
    for device, part, original in zip(local, returned, parts, strict=True):
        assert part["a"].devices() == {device}
        np.testing.assert_array_equal(part["a"], original["a"])
        np.testing.assert_array_equal(part["b"], original["b"])
    whole = devices.on_every_host(mesh, laid_out)
    np.testing.assert_array_equal(whole["a"], np.concatenate([part["a"] for part in parts]))


def test_a_mesh_may_hold_devices_in_any_order():
    backwards = jax.local_devices()[1::-1]
    mesh = devices.model_mesh(backwards)
    parts = [np.array([1.0]), np.array([2.0])]
    laid_out = devices.lay_out(mesh, parts)
    np.testing.assert_array_equal(np.asarray(laid_out), [1.0, 2.0])
    assert [part.devices() for part in devices.local_parts(mesh, laid_out)] == [
        {device} for device in backwards
    ]


def test_replicas_are_the_same_on_all_devices():
    mesh = devices.model_mesh()
    value = {"x": np.arange(6.0, dtype=np.float32).reshape(2, 3)}
    copies = devices.replicate(mesh, value)
    assert copies["x"].is_fully_replicated and len(copies["x"].devices()) == mesh.size
    assert tree.same_bits(jax.tree.map(np.array, copies), value)


def test_a_process_alone_gathers_from_itself():
    mesh = devices.model_mesh()
    np.testing.assert_array_equal(devices.gathered(mesh, np.array([3, 4])), [[3, 4]])
    assert devices.first_devices(mesh).size == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", 2), "all of coordinator, processes and process id"),
        (("localhost", 2, 0), "must be host:port"),
        ((":80", 2, 0), "must be host:port"),
        (("localhost:80", 2, 2), "process id 2 of 2 processes.* 0 to 1"),
        (("localhost:80", 1, 0), "cannot join a job"),  # jax is in use here
    ],
)
def test_what_cannot_be_joined(arguments, message):
    with pytest.raises(unroll.InputError, match=message):
        devices.join(*arguments)


def test_a_mesh_needs_a_device_of_this_process():
    with pytest.raises(unroll.InputError, match="belongs to this process"):
        devices.model_mesh([])
