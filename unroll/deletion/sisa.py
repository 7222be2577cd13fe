"""SISA: a model of constituents on disjoint shards, from which examples are deleted exactly.

    constituent s = stages 1..R on shard s;   stage r = e_r epochs over what is left of slices 1..r
    prediction    = vote or mean over the constituents

(Bourtoule et al., arXiv 1912.03817.) Deleting an example of slice r of shard s trains the stages
from r on of that constituent again, starting from the stored state before them. The result has the
bits of a training from scratch on what remains, whatever the order of the deletions was:

- The assignment of examples to slices is a table that no deletion changes.
- The seeds of a constituent are those of its shard, and of a stage those of shard and slice.
- The schedule of a stage is made from its seed and the places, in the shard, of the examples that
  remain; nothing in it tells that there were others.
- A stage reads its own data and nothing else (`unroll.deletion.stages`), so stages before r are
  what they were, in memory or at their addresses in the store.

A stage hands the whole state to the next: parameters, model state, and the optimiser's state, so R
slices are one run over data that grows, and a learning rate that falls does so over all stages.
Rejected: a fresh optimiser in every stage, as where only parameters are stored. Momentum would be
lost R times, a falling rate would start anew, and R would change how a model is trained besides
what it reads. What reads the index of the step (the noise of augmentation, a penalty that decays)
counts within a stage.

A slice without examples left keeps its stage: the epochs then go over the slices before it. A stage
that has no examples at all is left out, and a constituent without any abstains.

Rejected: one schedule for all time with empty slots where examples are gone. Its batches are less
and less full, which makes the steps smaller, and its gaps show where the deleted examples were.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh

from unroll import tree
from unroll.checkpoint import Store
from unroll.checks import whole_number
from unroll.data.dataset import Dataset
from unroll.data.ids import IdsLike, as_ids
from unroll.deletion.aggregation import aggregate
from unroll.deletion.costs import first_stages
from unroll.deletion.sisa_plan import SisaPlan, Work
from unroll.deletion.sisa_training import Constituent, Training
from unroll.errors import InputError
from unroll.training.predict import predict
from unroll.training.run import Progress

__all__ = ["Constituent", "DeletionCost", "Sisa", "SisaPlan", "Work", "train_sisa"]

WIDTH = 8
"""Lanes of a device in batched mode, where there are that many shards."""


@dataclasses.dataclass(frozen=True)
class DeletionCost:
    """What a deletion takes, whatever of it a store held already.

    Attributes:
      example_gradients: of the stages that are trained again; see `Work` for constant work.
      seconds: of their training, compilation not counted.
      slices: number of those stages.
      shards: number of constituents that change; with constant work, that are worked on.
      steps: of those stages.
      bytes_written: of the states that go to the store.
    """

    example_gradients: int
    seconds: float
    slices: int
    shards: int
    steps: int = 0
    bytes_written: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Sisa:
    """A trained SISA system; `delete` gives another one and leaves this one as it is.

    Attributes:
      plan: what it was trained by.
      removed: ids of the deleted examples, ascending.
      constituents: one for each shard, `None` where no example is left.
      mode: `sequential` or `batched`; the bits belong to it.
      width: lanes of a device in batched mode.
      seconds: of all training so far, compilation not counted.
      store: where the states after all stages lie.
      mesh: devices for batched mode.
    """

    plan: SisaPlan
    removed: np.ndarray
    constituents: tuple[Constituent | None, ...]
    mode: str
    width: int
    seconds: float
    store: Store | None = None
    mesh: Mesh | None = None

    @property
    def remaining(self) -> np.ndarray:
        """Ids of the examples that are left, ascending."""
        return np.flatnonzero(self.plan.kept(self.removed))

    @property
    def present(self) -> list[Constituent]:
        """The constituents that do not abstain."""
        return [each for each in self.constituents if each is not None]

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the final states of all constituents."""
        states = [None if each is None else each.state for each in self.constituents]
        return tree.content_hash(states)

    @property
    def state_bytes(self) -> int:
        """Bytes of the states after all stages, which is what deletions start from."""
        return self._bytes * sum(address is not None for _, _, address in self._stages())

    @property
    def _bytes(self) -> int:
        """Bytes of one state."""
        leaves = jax.tree.leaves(self.present[0].state)
        return sum(
            np.asarray(jax.random.key_data(x) if tree.is_key(x) else x).nbytes for x in leaves
        )

    def lineage(self) -> dict[str, np.ndarray]:
        """Addresses of all stages, and the ids of the examples that each of them depends on."""
        kept, members = self.plan.kept(self.removed), self.plan.assignment.members
        return {
            address: members(shard, number, kept)
            for shard, number, address in self._stages()
            if address is not None
        }

    def _stages(self) -> list[tuple[int, int, str | None]]:
        return [
            (each.shard, number, address)
            for each in self.present
            for number, address in enumerate(each.addresses)
        ]

    def delete(
        self,
        ids: IdsLike,
        *,
        constant_work: bool = False,
        bound: int = 1,
        progress: Progress | None = None,
    ) -> tuple[Sisa, DeletionCost]:
        """Deletes examples exactly; a deletion that was killed goes on from the store.

        With constant work, steps, the slots of their batches, and the number of states that are
        written (of one size before compression) depend on the number of examples alone, and up to
        the bound not even on that: K constituents are trained from their first stage on, each stage
        as long as the longest one before any deletion. What is not needed is thrown away; where it
        would have been written, noise is. No bit of the result changes. It does not hide what
        `unroll.deletion.side_channels` lists.

        Args:
          ids: the examples, in any order; none at all cost nothing, or with constant work as much
            as one, so that a refused request can look like another.
          constant_work: whether to work on `K = min(S, max(bound, len(ids)))` constituents.
          bound: up to so many examples look like so many.
          progress: called with (steps done, steps in all).

        Returns:
          The system without them, bit-equal to one trained from scratch without them, and what
          that took.

        Raises:
          InputError: if an id is unknown, listed twice or already deleted, or nothing would be
            left.
          DivergenceError: if a constituent diverges on what remains.
        """
        plan = self.plan
        new = _check_removed(plan, ids, self.removed)
        work = plan.work(new, removed=self.removed, constant_work=constant_work, bound=bound)
        if not work.shards:
            return self, DeletionCost(0, 0.0, 0, 0)
        removed = np.union1d(self.removed, new)
        first = first_stages(plan.assignment, new)
        touched = np.flatnonzero(first < plan.assignment.slices).tolist()
        covering = work.shards if constant_work else 0
        training = Training(self, plan.kept(removed), first, covering, progress)
        changed = training.run(touched)
        constituents = tuple(changed.get(s, old) for s, old in enumerate(self.constituents))
        written = 0 if self.store is None else self._bytes * work.stages
        parts = work.example_gradients, training.seconds, work.stages, work.shards, work.steps
        seconds = self.seconds + training.seconds
        made = dict(removed=removed, constituents=constituents, seconds=seconds)
        return dataclasses.replace(self, **made), DeletionCost(*parts, written)

    def logits(self, dataset: Dataset) -> np.ndarray:
        """Logits float32 `[K, M, C]` of the K constituents that do not abstain."""
        spec, states = self.plan.spec, [each.state for each in self.present]
        return np.stack([predict(spec, s.params, s.model_state, dataset) for s in states])

    def predict(self, dataset: Dataset, aggregation: str = "vote") -> np.ndarray:
        """Scores `[M, C]` of the classes for the examples of a data set, see `aggregate`."""
        return aggregate(self.logits(dataset), aggregation)


def train_sisa(
    plan: SisaPlan,
    *,
    removed: IdsLike = (),
    store: Store | None = None,
    mode: Literal["auto", "sequential", "batched"] = "auto",
    width: int | None = None,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> Sisa:
    """Trains a SISA system on what remains of its training set.

    Args:
      plan: how.
      removed: ids that are deleted before training; no constituent ever reads them.
      store: where the states after all stages are kept; without it they stay in memory. What is
        there already is read back, and a training that was killed goes on.
      mode: `sequential` trains one constituent after the other, each as an ordinary run; `batched`
        trains them side by side, which pays on an accelerator, see `unroll.deletion.stages`.
        Deletions go the same way, and are exact in both; the two differ in rounding. `auto` is
        `sequential` on the CPU and for optimisers that keep a key, `batched` elsewhere.
      width: lanes of a device in batched mode, by default 8, or S if that is less.
      mesh: devices for batched mode, by default all of this process; no bit depends on them.
      progress: called with (steps done, steps in all), all stages of all constituents together.

    Raises:
      InputError: if something does not fit together or nothing is left.
      DivergenceError: if a constituent diverges; the message names shard, slice and step.
      StoreError: if the store cannot be written.
    """
    if mode not in ("auto", "sequential", "batched"):
        raise InputError(f"unknown mode {mode!r}; choose auto, sequential or batched")
    removed = np.sort(_check_removed(plan, removed, np.zeros(0, np.int64)))
    shards = plan.assignment.shards
    if mode == "auto":
        keyed = any(tree.is_key(leaf) for leaf in jax.tree.leaves(plan.initial(0)))
        alone = keyed or jax.default_backend() == "cpu"
        mode = "sequential" if alone else "batched"
    width = min(shards, WIDTH) if width is None else whole_number("width", width)
    blank = Sisa(plan, removed, (None,) * shards, mode, width, 0.0, store, mesh)
    nothing_known = np.zeros(shards, np.int64)
    training = Training(blank, plan.kept(removed), nothing_known, progress=progress)
    trained = training.run(list(range(shards)))
    constituents = tuple(trained[shard] for shard in range(shards))
    return dataclasses.replace(blank, constituents=constituents, seconds=training.seconds)


def _check_removed(plan: SisaPlan, ids: IdsLike, gone: np.ndarray) -> np.ndarray:
    ids = as_ids(ids, len(plan.dataset), name="deletion")
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        raise InputError(f"deletion: id {unique[counts > 1][0]} occurs twice; give each id once")
    again = np.intersect1d(unique, gone)
    if len(again):
        raise InputError(f"deletion: id {again[0]} is already deleted; leave it out")
    if len(unique) + len(gone) == len(plan.dataset):
        raise InputError("deletion: no example would be left; retain at least one")
    return unique
