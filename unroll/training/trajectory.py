"""Where the states of a computation go, and where it starts when some are stored already.

Used by single runs and by groups of an ensemble: whatever is being advanced is a pair
`(state, losses)` of trees.
"""

from __future__ import annotations

import functools
import time
from typing import Any

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
        target = {"state": blank[0], "losses": blank[1]}
        refused: set[int] = set()  # damaged entries that could not be removed
        while True:
            stored = [step for step in self.store.steps(self.address) if step not in refused]
            missing = [step for step in self.wanted if step and step not in stored]
            limit = missing[0] if missing else self.total
            step = max((step for step in stored if step <= limit), default=0)
            if step == 0:
                return 0, *blank, 0.0
            entry = self.store.read(self.address, step, target)
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
        self.store.write(self.address, position, {"state": state, "losses": losses}, metadata)
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
        target = {"state": self._states[0], "losses": self._blank_losses}
        entry = self.store.read(self.address, step, target)
        return None if entry is None else entry[0]["state"]
