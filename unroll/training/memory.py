"""Bytes: what a compiled program takes at its peak, and what device and host have left for it.

Design: XLA's own plan of a program, which knows every buffer that it will hold. Nothing is executed
or transferred for it, and the program is the one that runs afterwards, so it is compiled once.
Rejected: counting parameters and activations by hand. Padding, fusion and what XLA keeps for the
backward pass make that wrong by factors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil

from unroll.errors import InputError
from unroll.types import PyTree


def shapes(tree: PyTree) -> PyTree:
    """The same tree with every array replaced by its shape and dtype, so that nothing is held."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), tree)


def tree_bytes(tree: PyTree) -> int:
    """Bytes of a tree of arrays or of shapes; keys and other leaves without numbers count 0."""
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if hasattr(leaf, "shape") and hasattr(leaf.dtype, "itemsize")
    )


@dataclasses.dataclass(frozen=True)
class ProgramBytes:
    """What a compiled program holds at its peak, on one device.

    Attributes:
      arguments: bytes handed in.
      outputs: bytes handed out.
      aliased: bytes of outputs that lie in donated arguments.
      temporaries: bytes of everything in between.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


def program_bytes(program: Any, *arguments: Any, **keywords: Any) -> ProgramBytes:
    """XLA's plan of a jitted function for arguments of these shapes.

    Compiles the function, which a later call with such arguments then need not.

    Args:
      program: a function under `jax.jit`.
      *arguments: as in a call; `shapes(tree)` stands for a tree of arrays.
      **keywords: likewise.
    """
    found = program.lower(*arguments, **keywords).compile().memory_analysis()
    return ProgramBytes(
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
        found.alias_size_in_bytes,
        found.temp_size_in_bytes,
    )


@dataclasses.dataclass(frozen=True)
class Bytes:
    """Bytes on the device and on the host; where the device is the CPU both are the host's."""

    device: int
    host: int = 0


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much there is.

    Attributes:
      device: bytes that the device can hold; `None` if it does not say. Not used where the device
        is the CPU.
      host: bytes that this process may still take on the host; `None` if unknown.
      shared: whether the device is the CPU, whose memory is the host's.
    """

    device: int | None
    host: int | None
    shared: bool

    def pairs(self, needed: Bytes) -> list[tuple[str, int, int | None]]:
        """Name, bytes needed and bytes there for each memory."""
        if self.shared:
            return [("memory", needed.device + needed.host, self.host)]
        return [
            ("device memory", needed.device, self.device),
            ("host memory", needed.host, self.host),
        ]

    def check(self, needed: Bytes, what: str, hint: str) -> None:
        """Refuses what does not fit; where the limit is unknown everything passes.

        Args:
          needed: bytes at the peak.
          what: what needs them, for the message.
          hint: how to need less.

        Raises:
          InputError: if it does not fit.
        """
        for name, bytes_, limit in self.pairs(needed):
            if limit is not None and bytes_ > limit:
                raise InputError(
                    f"{what} would take {format_bytes(bytes_)} of {name}, but there are "
                    f"{format_bytes(limit)}; {hint}"
                )


def memory_limits(device: jax.Device | None = None) -> Limits:
    """The limits of a device, by default the first, and of its host, at this moment."""
    device = jax.local_devices()[0] if device is None else device
    if device.platform == "cpu":
        return Limits(None, host_limit(), shared=True)
    reported = device.memory_stats() or {}
    return Limits(reported.get("bytes_limit"), host_limit(), shared=False)


def host_limit(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: what is available, within its control groups.

    Args:
      root: where `proc` and `sys` are mounted.
    """
    return min([psutil.virtual_memory().available, *_control_group_room(root)])


def _control_group_room(root: Path) -> Iterator[int]:
    """What is left in each control group that this process lies in, both versions of Linux."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # another system than Linux
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            top, names = mounted, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = mounted / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # In a container the place may be the host's name of the group, which is not mounted; the
        # container's own group is then the top.
        places = [Path(place.lstrip("/")), *Path(place.lstrip("/")).parents]
        for folder in dict.fromkeys(top / each for each in places):
            room = _room(folder, *names)
            if room is not None:
                yield room


def _room(folder: Path, limit: str, usage: str, cache: str) -> int | None:
    try:
        most = (folder / limit).read_text().strip()
        used = int((folder / usage).read_text())
        statistics = (folder / "memory.stat").read_text().split()
    except OSError:  # a group without a limit has no such files
        return None
    if most == "max":
        return None
    # Pages of files that were read count as used, but are given up when memory is asked for.
    counts = dict(zip(statistics[::2], statistics[1::2], strict=False))
    return max(int(most) - used + int(counts.get(cache, 0)), 0)


def format_bytes(count: int) -> str:
    """Bytes in a unit that suits them.

    >>> format_bytes(600_000_000), format_bytes(21_900_000_000), format_bytes(20_000)
    ('0.6 GB', '22 GB', '1 MB')
    """
    if count < 1e8:
        return f"{max(math.ceil(count / 1e6), 1)} MB"
    return f"{count / 1e9:.1f} GB" if count < 1e10 else f"{count / 1e9:.0f} GB"
