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
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from unroll import tree
from unroll.checkpoint import Store
from unroll.checks import seed_number, whole_number
from unroll.data.dataset import Dataset
from unroll.data.ids import IdsLike, as_ids
from unroll.data.schedule import make_schedule
from unroll.deletion.aggregation import aggregate
from unroll.deletion.costs import check_epochs, first_stages, retraining_gradients, stage_gradients
from unroll.deletion.sharding import Assignment
from unroll.deletion.stages import Stage, train_alone, train_in_lanes
from unroll.errors import InputError
from unroll.training.predict import predict
from unroll.training.run import Progress, check_inputs
from unroll.training.spec import TrainSpec, description_hash
from unroll.training.step import initial_state
from unroll.types import TrainState

WIDTH = 8
"""Lanes of a device in batched mode, where there are that many shards."""


@dataclasses.dataclass(frozen=True, eq=False)
class SisaPlan:
    """Everything that determines a SISA system, but for what has been deleted.

    Attributes:
      spec: how constituents are trained.
      dataset: the training set, N examples. Rows of deleted examples are never read.
      assignment: the shard and slice of each example.
      epochs: of each of the R stages, see `unroll.deletion.costs.slice_epochs`.
      batch_size: slots per step. The last batch of an epoch is filled up with empty slots.
      seed: of initialisations, schedules and noise.

    Raises:
      InputError: if these do not fit together.
    """

    spec: TrainSpec
    dataset: Dataset
    assignment: Assignment
    epochs: tuple[int, ...]
    batch_size: int
    seed: int = 0

    def __post_init__(self):
        if len(self.assignment) != len(self.dataset):
            raise InputError(
                f"the assignment is of {len(self.assignment)} examples, the training set has "
                f"{len(self.dataset)}"
            )
        epochs = check_epochs(self.epochs, self.assignment.slices)
        object.__setattr__(self, "epochs", epochs)
        whole_number("batch_size", self.batch_size)
        seed_number(self.seed)
        check_inputs(self.spec, self.dataset, np.zeros((1, 1), np.int32), None)

    @functools.cached_property
    def seeds(self) -> np.ndarray:
        """uint32 `[S, R + 1]`: seeds of each constituent's initialisation and of its stages."""
        shards, slices = self.assignment.shards, self.assignment.slices
        return np.array(_seeds(jax.random.key(self.seed), shards, slices + 1))

    def describe(self) -> dict[str, Any]:
        """All but the data, as a JSON-able dictionary."""
        return {
            "spec": self.spec.describe(),
            "assignment": self.assignment.hash,
            "epochs": list(self.epochs),
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the description."""
        return description_hash(self.describe())

    @property
    def passes(self) -> float:
        """Example gradients of the training, in passes over the training set."""
        gradients = stage_gradients(self.assignment.counts(), self.epochs)
        return float(gradients.sum() / len(self.dataset))

    def kept(self, removed: np.ndarray) -> np.ndarray:
        """bool `[N]`: which examples are not in a list of ids."""
        kept = np.ones(len(self.dataset), bool)
        kept[removed] = False
        return kept

    def steps(self, kept: np.ndarray | None = None) -> np.ndarray:
        """int64 `[S, R]`: steps of each stage, on all examples or on those that are kept."""
        counts = np.cumsum(self.assignment.counts(kept), axis=1)
        return np.asarray(self.epochs) * -(-counts // self.batch_size)

    def initial(self, shard: int) -> TrainState:
        """State of a constituent before its first stage, on the host."""
        key = jax.random.key(int(self.seeds[shard, 0]))
        return tree.to_host(initial_state(self.spec, key, self.dataset.inputs))

    def stage(self, shard: int, last: int, kept: np.ndarray, initial: TrainState) -> Stage | None:
        """The stage of a constituent that reads what is left of its slices 0 to `last`.

        Returns:
          The stage, `None` if nothing is left.
        """
        ids = self.assignment.members(shard, last, kept)
        if not len(ids):
            return None
        places, seed = self.assignment.place[ids], int(self.seeds[shard, 1 + last])
        schedule = make_schedule(seed, places, self.batch_size, self.epochs[last])
        return Stage(shard, last, self._data(ids, places), schedule, seed, initial)

    def _data(self, ids: np.ndarray, places: np.ndarray) -> Dataset:
        source, rows = self.dataset, self.assignment.capacity
        inputs = np.zeros((rows, *source.example_shape), source.inputs.dtype)
        labels = np.zeros(rows, np.int32)
        inputs[places], labels[places] = source.inputs[ids], source.labels[ids]
        fields = dict(inputs=inputs, labels=labels, groups=None, true_labels=None)
        return dataclasses.replace(source, **fields)

    def erase(self, removed: IdsLike) -> SisaPlan:
        """The plan with zeros in the rows of deleted examples; nothing that is trained changes.

        Raises:
          InputError: if an id is out of range.
        """
        ids = as_ids(removed, len(self.dataset))
        changed = {}
        for name in ("inputs", "labels", "groups", "true_labels"):
            values = getattr(self.dataset, name)
            if values is not None:
                changed[name] = values.copy()
                changed[name][ids] = 0
        return dataclasses.replace(self, dataset=dataclasses.replace(self.dataset, **changed))


@functools.partial(jax.jit, static_argnames=("shards", "count"))
def _seeds(key: jax.Array, shards: int, count: int) -> jax.Array:
    def of_shard(shard):
        own = jax.random.fold_in(key, shard)
        numbers = jnp.arange(count)
        return jax.vmap(lambda number: jax.random.bits(jax.random.fold_in(own, number)))(numbers)

    return jax.vmap(of_shard)(jnp.arange(shards))


@dataclasses.dataclass(frozen=True)
class DeletionCost:
    """What a deletion takes, whatever of it a store held already.

    Attributes:
      example_gradients: of the stages that are trained again.
      seconds: of their training, compilation not counted.
      slices: number of those stages.
      shards: number of constituents that change.
    """

    example_gradients: int
    seconds: float
    slices: int
    shards: int


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
        leaves = jax.tree.leaves(self.present[0].state)
        one = sum(
            np.asarray(jax.random.key_data(x) if tree.is_key(x) else x).nbytes for x in leaves
        )
        return one * sum(address is not None for _, _, address in self._stages())

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
        self, ids: IdsLike, *, progress: Progress | None = None
    ) -> tuple[Sisa, DeletionCost]:
        """Deletes examples exactly; a deletion that was killed goes on from the store.

        Args:
          ids: the examples, in any order; none at all costs nothing.
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
        if not len(new):
            return self, DeletionCost(0, 0.0, 0, 0)
        removed = np.union1d(self.removed, new)
        first = first_stages(plan.assignment, new)
        touched = np.flatnonzero(first < plan.assignment.slices)
        training = _Training(self, plan.kept(removed), first, progress)
        changed = training.run(touched.tolist())
        constituents = tuple(changed.get(s, old) for s, old in enumerate(self.constituents))
        counts = plan.assignment.counts(plan.kept(removed))
        cost = DeletionCost(
            int(retraining_gradients(counts, plan.epochs, first).sum()),
            training.seconds,
            training.trained,
            len(touched),
        )
        seconds = self.seconds + training.seconds
        made = dict(removed=removed, constituents=constituents, seconds=seconds)
        return dataclasses.replace(self, **made), cost

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
    training = _Training(blank, plan.kept(removed), nothing_known, progress)
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


class _Training:
    """Trains constituents from the first stages that have changed.

    Attributes:
      seconds: of the stages that have changed.
      trained: number of those stages.
    """

    def __init__(self, old: Sisa, kept: np.ndarray, first: np.ndarray, progress: Progress | None):
        self._old, self._kept, self._first = old, kept, first
        self._progress = progress
        self.seconds, self.trained = 0.0, 0

    def run(self, shards: Sequence[int]) -> dict[int, Constituent | None]:
        """The constituents of some shards on what is kept."""
        plan = self._old.plan
        lengths, done = plan.steps(self._kept)[shards], 0
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
            shard: self._constituent(shard, states[shard], addresses[shard]) for shard in shards
        }

    def _known(self, shard: int, number: int) -> tuple[str | None, TrainState | None] | None:
        """Address and state after a stage that has not changed, if it is in memory."""
        old = self._old.constituents[shard]
        if number >= self._first[shard] or self._old.store is not None or old is None:
            return None
        return old.addresses[number], old.before[number]

    def _stage(self, shard: int, number: int, states: list[TrainState | None]) -> Stage | None:
        latest = next(state for state in reversed(states) if state is not None)
        return self._old.plan.stage(shard, number, self._kept, latest)

    def _train(self, stages, number: int, states, addresses, span: tuple[int, int]) -> None:
        old, work = self._old, [stage for _, stage in stages if stage is not None]
        settings = dict(store=old.store, progress=self._report(*span))
        if old.mode == "batched":
            settings |= dict(width=old.width, mesh=old.mesh)
            settings["steps"] = int(old.plan.steps()[:, number].max())
            results = train_in_lanes(old.plan.spec, work, **settings)
        else:
            results = train_alone(old.plan.spec, work, **settings)
        found = {stage.shard: result for stage, result in zip(work, results, strict=True)}
        for shard, _ in stages:
            result = found.get(shard)
            if result is not None and old.store is not None:
                states[shard] = [None] * len(states[shard])  # the store has them
            states[shard].append(None if result is None else result.state)
            addresses[shard].append(None if result is None else result.address)
            if result is not None and number >= self._first[shard]:
                self.seconds += result.seconds
                self.trained += 1

    def _report(self, done: int, total: int) -> Progress | None:
        if self._progress is None:
            return None
        return lambda steps, _: self._progress(done + steps, total)

    def _constituent(self, shard: int, states, addresses) -> Constituent | None:
        _, *before, last = states
        if last is None:
            return None
        return Constituent(shard, last, tuple(before), tuple(addresses))
