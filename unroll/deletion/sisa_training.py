"""Training the constituents of a SISA system from the first stages that have changed.

With constant work the same happens to every request of a size. K constituents, those that change
and others to fill up, are trained from their first stage on, which gives the bits that are known
already where nothing has changed. Each stage takes as many steps as the longest one of the whole
plan, and writes one state: that of a stage that has changed, otherwise noise.

Design: what is only done for show is the real thing on what is retained, by the same programs in
the same order, so that little but its outcome tells it apart; what it leaves in a store is noise,
so that a kill leaves nothing of any example. Rejected: waiting until a fixed time has passed. It is
cheaper, but says nothing about gradients and bytes, and somebody who sees the processor's load sees
when the work ends.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jax.sharding import Mesh

from unroll.checkpoint import Store
from unroll.deletion.sisa_plan import SisaPlan
from unroll.deletion.stages import Stage, store_noise, train_alone, train_in_lanes
from unroll.training.run import Progress, run_identity
from unroll.types import TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Constituent:
    """The model of one shard.

    Attributes:
      shard: number of its shard.
      state: its state after the last stage, on the host.
      before: states after the other stages, in memory if there is no store; `None` for a stage
        without examples.
      addresses: where the state after each stage lies in a store; `None` as above.
    """

    shard: int
    state: TrainState
    before: tuple[TrainState | None, ...]
    addresses: tuple[str | None, ...]


class System(Protocol):
    """What a training needs of the system that it starts from, see `unroll.deletion.sisa.Sisa`."""

    plan: SisaPlan
    constituents: tuple[Constituent | None, ...]
    mode: str
    width: int
    store: Store | None
    mesh: Mesh | None


class Training:
    """Trains constituents from the first stages that have changed.

    Args:
      old: the system before.
      kept: bool `[N]`, the examples that are left.
      first: `[S]`, the first stage of each shard that has changed; R where none has.
      covering: number of constituents to work on, with constant work; 0 without.
      progress: called with (steps done, steps in all).

    Attributes:
      seconds: of the stages that were trained.
    """

    def __init__(
        self,
        old: System,
        kept: np.ndarray,
        first: np.ndarray,
        covering: int = 0,
        progress: Progress | None = None,
    ):
        self._old, self._kept, self._first = old, kept, first
        self._covering, self._progress = covering, progress
        self._lengths = old.plan.steps().max(axis=0)
        self.seconds = 0.0

    def run(self, changing: Sequence[int]) -> dict[int, Constituent | None]:
        """The constituents of some shards on what is kept; those that only cover them are left out.

        Args:
          changing: the shards, without repetition.
        """
        plan, shards = self._old.plan, self._covered(changing)
        lengths, done = plan.steps(self._kept)[shards], 0
        if self._covering:
            lengths = np.tile(self._lengths, (len(shards), 1))
        states = {shard: [plan.initial(shard)] for shard in shards}
        addresses: dict[int, list[str | None]] = {shard: [] for shard in shards}
        for number in range(plan.assignment.slices):
            stages = []
            for shard in shards:
                known = self._known(shard, number)
                if known is not None:
                    addresses[shard].append(known[0])
                    states[shard].append(known[1])
                else:
                    stages.append((shard, self._stage(shard, number, states[shard])))
            self._train(stages, number, states, addresses, (done, int(lengths.sum())))
            done += int(lengths[:, number].sum())
        return {
            shard: self._constituent(shard, states[shard], addresses[shard]) for shard in changing
        }

    def _covered(self, changing: Sequence[int]) -> list[int]:
        """The shards to work on, ascending, since an order would tell which ones change."""
        others = [shard for shard in range(len(self._first)) if shard not in changing]
        # Those that are trained in full first: an empty one takes a stand-in.
        others.sort(key=lambda shard: self._old.constituents[shard] is None)
        return sorted([*changing, *others[: max(self._covering - len(changing), 0)]])

    def _known(self, shard: int, number: int) -> tuple[str | None, TrainState | None] | None:
        """Address and state after a stage that has not changed, if it is in memory."""
        old = self._old.constituents[shard]
        changed = number >= self._first[shard] or self._covering
        if changed or self._old.store is not None or old is None:
            return None
        return old.addresses[number], old.before[number]

    def _stage(self, shard: int, number: int, states: list[TrainState | None]) -> Stage | None:
        latest = next(state for state in reversed(states) if state is not None)
        stored = not self._covering or number >= self._first[shard]
        return self._old.plan.stage(shard, number, self._kept, latest, stored)

    def _train(self, stages, number: int, states, addresses, span: tuple[int, int]) -> None:
        old, work = self._old, [stage for _, stage in stages if stage is not None]
        found = {
            stage.shard: result
            for stage, result in zip(work, self._results(work, number, span), strict=False)
        }
        self._write_noise(work, number)
        for shard, _ in stages:
            result = found.get(shard)
            if result is not None and old.store is not None:
                states[shard] = [None] * len(states[shard])  # the store has them
            states[shard].append(None if result is None else result.state)
            addresses[shard].append(None if result is None else result.address)
            if result is not None and (self._covering or number >= self._first[shard]):
                self.seconds += result.seconds

    def _results(self, work: list[Stage], number: int, span: tuple[int, int]) -> list:
        """Results of the stages, in their order, and then of what only covers them."""
        old = self._old
        settings = dict(store=old.store, progress=self._report(*span))
        if old.mode != "batched":
            if self._covering:
                settings["steps"] = int(self._lengths[number])
            covered = work + self._stand_ins(number, self._covering - len(work))
            return train_alone(old.plan.spec, covered, **settings)
        settings |= dict(width=old.width, mesh=old.mesh, steps=int(self._lengths[number]))
        if self._covering:
            all_groups = -(-len(self._first) // old.width)
            settings["groups"] = min(self._covering, all_groups)
            # One is enough: the other lanes stand idle in the same program.
            work = work or self._stand_ins(number, 1)
        return train_in_lanes(old.plan.spec, work, **settings)

    def _stand_ins(self, number: int, count: int) -> list[Stage]:
        """As many stages as are missing since a shard has no examples; any that has some."""
        if count < 1:
            return []
        plan = self._old.plan
        for shard in range(len(self._first)):
            stage = plan.stage(shard, number, self._kept, plan.initial(shard), stored=False)
            if stage is not None:
                return [stage] * count
        return []

    def _write_noise(self, work: Sequence[Stage], number: int) -> None:
        store, plan = self._old.store, self._old.plan
        if store is None or not self._covering:
            return
        like, weights = plan.initial(0), np.ones(1, np.float32)
        schedule = np.zeros((1, plan.batch_size), np.int32)
        identity = run_identity(plan.spec, plan.dataset, 0, schedule, weights, "0" * 64)
        text = json.dumps(identity, indent=1, sort_keys=True)
        for _ in range(self._covering - sum(stage.stored for stage in work)):
            store_noise(store, like, int(self._lengths[number]), text)

    def _report(self, done: int, total: int) -> Progress | None:
        if self._progress is None:
            return None
        return lambda steps, _: self._progress(done + steps, total)

    def _constituent(self, shard: int, states, addresses) -> Constituent | None:
        _, *before, last = states
        if last is None:
            return None
        return Constituent(shard, last, tuple(before), tuple(addresses))
