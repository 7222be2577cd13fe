"""Where the states of a computation go, and where it starts when some are stored already.

Used by single runs and by groups of an ensemble: whatever is being advanced is a pair
`(state, losses)` of trees.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import numpy as np

from unroll import tree
from unroll.checkpoint import Store
from unroll.training.record import Record, Snapshots
from unroll.types import PyTree


class Trajectory:
    """Keeps the wanted states of one computation, and its progress.

    Args:
      store: where to keep states; `None` keeps the wanted ones in memory.
      address: hash that identifies the computation.
      identity: what the address is the hash of.
      record: which states are wanted.
      total: number of steps.
    """

    def __init__(
        self,
        store: Store | None,
        address: str,
        identity: dict[str, Any],
        record: Record,
        total: int,
    ):
        self.store, self.address, self.total = store, address, total
        self.wanted = record.snapshot_steps(total)
        self._states: dict[int, PyTree] = {}
        self._progress_step: int | None = None
        self._last_write = time.monotonic()
        if store is not None:
            store.describe(address, identity)

    def begin(self, blank: tuple[PyTree, np.ndarray]) -> tuple[int, PyTree, np.ndarray, float]:
        """The latest state from which every wanted state can be reached: (step, ..., seconds)."""
        self._states[0], self._blank_losses = blank
        if self.store is None:
            return 0, *blank, 0.0
        refused: set[int] = set()  # damaged entries that could not be removed
        while True:
            stored = [step for step in self.store.steps(self.address) if step not in refused]
            missing = [step for step in self.wanted if step and step not in stored]
            limit = missing[0] if missing else self.total
            step = max((step for step in stored if step <= limit), default=0)
            if step == 0:
                return 0, *blank, 0.0
            entry = self._read(step)
            refused.add(step)
            if entry is not None:
                value, metadata = entry
                if metadata["kind"] == "progress" and step not in self.wanted:
                    self._progress_step = step
                return step, value["state"], value["losses"], metadata["seconds"]

    def visit(self, position: int, state: PyTree, losses: Any, seconds: float) -> None:
        """Keeps a state if it is wanted, or as progress if the last write is long ago."""
        if position in self.wanted:
            state = tree.to_host(state)
            if self.store is None:
                self._states[position] = state
            else:
                self._write(position, state, losses, seconds, "snapshot")
        elif (
            self.store is not None
            and time.monotonic() - self._last_write >= self.store.progress_seconds
        ):
            self._write(position, state, losses, seconds, "progress")

    def _write(self, position, state, losses, seconds, kind):
        metadata = {"kind": kind, "seconds": seconds}
        value = {"state": _without_keys(state), "losses": losses}
        self.store.write(self.address, position, value, metadata)
        if self._progress_step is not None and self._progress_step != position:
            self.store.discard(self.address, self._progress_step)
        self._progress_step = position if kind == "progress" else None
        self._last_write = time.monotonic()

    def snapshots(self) -> Snapshots:
        """The wanted states by step."""
        loaders = {0: lambda: self._states[0]}
        for step in self.wanted:
            if step in self._states:
                loaders[step] = functools.partial(self._states.get, step)
            elif step:
                loaders[step] = functools.partial(self._load, step)
        return Snapshots(loaders)

    def _load(self, step):
        entry = self._read(step)
        return None if entry is None else entry[0]["state"]

    def _read(self, step):
        """State and losses of a stored step, and its metadata; `None` if there is no such entry."""
        blank = self._states[0]
        target = {"state": _without_keys(blank), "losses": self._blank_losses}
        entry = self.store.read(self.address, step, target)
        if entry is None:
            return None
        value, metadata = entry
        return {**value, "state": _with_keys(value["state"], blank)}, metadata


def _without_keys(state: PyTree) -> PyTree:
    """Typed keys as their bits: the store holds arrays of numbers only."""
    return jax.tree.map(
        lambda leaf: np.array(jax.random.key_data(leaf)) if tree.is_key(leaf) else leaf, state
    )


def _with_keys(state: PyTree, like: PyTree) -> PyTree:
    """The opposite of `_without_keys`; `like` tells which leaves are keys, and of which kind."""

    def restored(leaf, other):
        if not tree.is_key(other):
            return leaf
        return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(other))

    return jax.tree.map(restored, state, like)
