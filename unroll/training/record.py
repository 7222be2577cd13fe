"""What a run keeps of its trajectory: snapshots, in memory or in a store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

from unroll.errors import InputError, StoreError
from unroll.types import TrainState


@dataclasses.dataclass(frozen=True)
class Record:
    """Which states of a run to keep, besides the first and the last.

    Attributes:
      every: keep the state before every step that is a multiple of this; 0 keeps none.
      steps: further steps to keep.
    """

    every: int = 0
    steps: tuple[int, ...] = ()

    def snapshot_steps(self, total: int) -> list[int]:
        """Steps to keep in a run of `total` steps, ascending, with 0 and `total`.

        Raises:
          InputError: if `every` is negative or a step lies outside the run.
        """
        if self.every < 0:
            raise InputError(f"record every={self.every} steps: choose 0 (none) or more")
        outside = [step for step in self.steps if not 0 <= step <= total]
        if outside:
            raise InputError(f"record step {outside[0]} is outside the run of {total} steps")
        regular = range(0, total, self.every) if self.every else ()
        return sorted({0, total, *self.steps, *regular})


class Snapshots(Mapping[int, TrainState]):
    """States by step; a state that lies in a store is read when it is asked for.

    Args:
      loaders: for each recorded step a function that returns the state or `None` if it was lost.
    """

    def __init__(self, loaders: dict[int, Callable[[], TrainState | None]]):
        self._loaders = dict(sorted(loaders.items()))

    def __getitem__(self, step: int) -> TrainState:
        state = self._loaders[step]()
        if state is None:
            raise StoreError(
                f"the snapshot of step {step} is gone from the store; train again, "
                "which restores what is missing"
            )
        return state

    def __iter__(self) -> Iterator[int]:
        return iter(self._loaders)

    def __len__(self) -> int:
        return len(self._loaders)

    def last_at_or_before(self, step: int) -> int:
        """The latest recorded step that is not after `step`."""
        return max(recorded for recorded in self._loaders if recorded <= step)
