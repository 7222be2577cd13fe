"""Devices of one process or of a whole job: joining a job, laying arrays out, gathering them.

A job is one or more processes that run the same program with `jax.distributed`. A single process is
a job of its own: everything here works in it, and communicates nothing. Models of an ensemble are
laid out along the axis `models` of a mesh over all devices of the job.

Design: processes meet in `gathered` and `on_every_host` only, which is where one of them notices
that another has died and says so. Rejected: `jax.experimental.multihost_utils`, which wants the
same number of devices in every process and compiles a program for each leaf of a tree.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unroll.errors import InputError
from unroll.types import PyTree

MODELS = "models"


class ProcessLost(RuntimeError):
    """Another process of the job has ended or cannot be reached."""


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    heartbeat_seconds: int = 100,
    shutdown_seconds: int = 60,
) -> None:
    """Makes this process one of a job. To be called before anything is computed.

    Every process of the job calls it with the same coordinator and number of processes, and then
    does the same work. On the CPU the processes talk through gloo.

    Args:
      coordinator: `host:port` where process 0 listens. Without it jax looks in the environment:
        Slurm, Open MPI, Kubernetes and TPU pods say what the job is.
      processes: number of processes.
      process: number of this one, from 0.
      heartbeat_seconds: a process that has been silent for so long counts as dead, and jax ends the
        others. One whose connections break is noticed at once.
      shutdown_seconds: how long a process that has come to its end waits for the others.

    Raises:
      InputError: if the arguments do not fit together, jax is in use already, or there is no job to
        be found.
    """
    given = [value is not None for value in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise InputError(
            "a job needs all of coordinator, processes and process id, or none of them on a "
            "cluster that jax knows"
        )
    if coordinator is not None:
        _check_job(coordinator, processes, process)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=shutdown_seconds,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"cannot join a job of several processes: {reason}") from error


def _check_job(coordinator: str, processes: int, process: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"coordinator {coordinator!r} must be host:port, where process 0 listens")
    if not 0 <= process < processes:
        raise InputError(
            f"process id {process} of {processes} processes: they are numbered from 0 to "
            f"{processes - 1}"
        )


def leave(reason: object) -> NoReturn:
    """Prints an error and ends this process of a job at once, with code 1.

    The usual way out waits for the other processes, of which one may be gone and the rest wait for
    this one. Left like this, they notice that its connections break.
    """
    print(f"error: {reason}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def model_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh over the given devices, or all of the job.

    Axes are `AxisType.Auto`: under the explicit axes that `jax.make_mesh` makes by default,
    shard_map refuses unsharded arrays and integer-label cross-entropy fails under vmap.

    Raises:
      InputError: if none of the devices belongs to this process.
    """
    devices = list(devices) if devices is not None else jax.devices()
    if not any(device.process_index == jax.process_index() for device in devices):
        raise InputError("none of the devices of the mesh belongs to this process")
    return Mesh(np.array(devices), (MODELS,), axis_types=(AxisType.Auto,))


def first_devices(mesh: Mesh) -> Mesh:
    """A mesh of one device from each process of a mesh, in the order of the processes."""
    first = {device.process_index: device for device in reversed(list(mesh.devices.flat))}
    return model_mesh([first[process] for process in sorted(first)])


def local_places(mesh: Mesh) -> list[int]:
    """Where in a mesh the devices of this process are."""
    owners = [device.process_index for device in mesh.devices.flat]
    return [place for place, owner in enumerate(owners) if owner == jax.process_index()]


def lay_out(mesh: Mesh, parts: Sequence[PyTree]) -> PyTree:
    """Lays trees out along `models`.

    Args:
      mesh: the mesh; every process of it makes this call.
      parts: a tree with leaves `[k, ...]` for each device of this process, in the order of
        `local_places`; k is the same on all devices.

    Returns:
      One tree of arrays `[mesh.size * k, ...]`, of which this process holds its own parts.
    """
    sharding = NamedSharding(mesh, PartitionSpec(MODELS))
    devices = [mesh.devices.flat[place] for place in local_places(mesh)]
    placed = [jax.device_put(part, device) for part, device in zip(parts, devices, strict=True)]

    def assemble(*leaves):
        shape = (mesh.size * leaves[0].shape[0], *leaves[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(leaves))

    return jax.tree.map(assemble, *placed)


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """A copy of a tree on each device of a mesh; every process gives the same tree.

    `jax.device_put` onto devices of several processes would first compare all their copies.
    """
    sharding = NamedSharding(mesh, PartitionSpec())
    devices = [mesh.devices.flat[place] for place in local_places(mesh)]
    copies = [jax.device_put(tree, device) for device in devices]
    return jax.tree.map(
        lambda *leaves: jax.make_array_from_single_device_arrays(
            leaves[0].shape, sharding, list(leaves)
        ),
        *copies,
    )


def local_parts(mesh: Mesh, tree: PyTree) -> list[PyTree]:
    """The opposite of `lay_out`: this process's parts, still on their devices."""
    devices = [mesh.devices.flat[place] for place in local_places(mesh)]
    leaves, structure = jax.tree.flatten(tree)
    held = [{shard.device: shard.data for shard in leaf.addressable_shards} for leaf in leaves]
    return [structure.unflatten([leaf[device] for leaf in held]) for device in devices]


def gathered(mesh: Mesh, values: np.ndarray) -> np.ndarray:
    """A small array from each process of a mesh, `[processes, ...]`, the same on all of them.

    Raises:
      ProcessLost: if one of them has died.
    """
    values = np.asarray(values)[None]
    if not mesh.is_multi_process:
        return values
    first = first_devices(mesh)
    return on_every_host(first, lay_out(first, [values]))


def on_every_host(mesh: Mesh, tree: PyTree) -> PyTree:
    """The whole of a tree that is laid out over a mesh, as numpy arrays, on every process.

    Each device takes a copy of the whole on the way.

    Raises:
      ProcessLost: if a process of the mesh has died.
    """
    if not mesh.is_multi_process:
        return jax.tree.map(np.array, tree)
    with _failures_explained():
        everywhere = NamedSharding(mesh, PartitionSpec())
        whole = jax.jit(_identity, out_shardings=everywhere)(tree)
        return jax.tree.map(lambda leaf: np.array(leaf.addressable_data(0)), whole)


# At the top level, so that jit finds the program again.
def _identity(tree: Any) -> Any:
    return tree


@contextlib.contextmanager
def _failures_explained() -> Iterator[None]:
    try:
        yield
    except (ValueError, jax.errors.JaxRuntimeError) as error:  # gloo's are ValueErrors
        if "RESOURCE_EXHAUSTED" in str(error):
            raise  # this process's own memory
        raise ProcessLost(
            f"process {jax.process_index()} has lost another process of the job, whose own log "
            "says why; start all of them again with the same command, and they go on from what "
            f"the store holds ({str(error).splitlines()[0]})"
        ) from error
