"""What determines a SISA system: its plan, from which every stage of every constituent is made.

Design: a stage is a function of the plan and of which examples are kept, nothing else. Rejected: a
plan that remembers deletions; the order of the deletions would be in it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unroll import tree
from unroll.checks import seed_number, whole_number
from unroll.data.dataset import Dataset
from unroll.data.ids import IdsLike, as_ids
from unroll.data.schedule import make_schedule
from unroll.deletion.costs import check_epochs, first_stages, retraining_gradients, stage_gradients
from unroll.deletion.sharding import Assignment
from unroll.deletion.stages import Stage
from unroll.errors import InputError
from unroll.training.run import check_inputs
from unroll.training.spec import TrainSpec, description_hash
from unroll.training.step import initial_state
from unroll.types import TrainState


class Work(NamedTuple):
    """What a deletion has to do; none of it is a measurement.

    Attributes:
      example_gradients: of the stages that are trained. With constant work every slot of every step
        counts, empty ones too, since an empty slot takes as long as a full one.
      steps: of those stages, thrown away ones included.
      stages: number of states that are made and written.
      shards: number of constituents that are worked on.
    """

    example_gradients: int
    steps: int
    stages: int
    shards: int


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

    def work(
        self,
        ids: IdsLike,
        *,
        removed: IdsLike = (),
        constant_work: bool = False,
        bound: int = 1,
    ) -> Work:
        """What the deletion of examples has to do, see `unroll.deletion.sisa.Sisa.delete`.

        Args:
          ids: the examples.
          removed: those that were deleted before.
          constant_work: as in `Sisa.delete`.
          bound: as in `Sisa.delete`.

        Raises:
          InputError: if an id is out of range or the bound below 1.
        """
        new = as_ids(ids, len(self.dataset), name="deletion")
        if constant_work:
            shards = self.constant_shards(len(new), bound)
            steps = shards * int(self.steps().max(axis=0).sum())
            return Work(steps * self.batch_size, steps, shards * self.assignment.slices, shards)
        kept = self.kept(np.union1d(new, as_ids(removed, len(self.dataset), name="deletion")))
        first, counts = first_stages(self.assignment, new), self.assignment.counts(kept)
        again = np.arange(self.assignment.slices) >= first[:, None]
        return Work(
            int(retraining_gradients(counts, self.epochs, first).sum()),
            int((self.steps(kept) * again).sum()),
            int((again & (np.cumsum(counts, axis=1) > 0)).sum()),
            int(again[:, -1].sum()),
        )

    def constant_shards(self, requested: int, bound: int) -> int:
        """Constituents that a request of so many examples works on if its work is constant."""
        return min(self.assignment.shards, max(whole_number("bound", bound), requested))

    def initial(self, shard: int) -> TrainState:
        """State of a constituent before its first stage, on the host."""
        key = jax.random.key(int(self.seeds[shard, 0]))
        return tree.to_host(initial_state(self.spec, key, self.dataset.inputs))

    def stage(
        self, shard: int, last: int, kept: np.ndarray, initial: TrainState, stored: bool = True
    ) -> Stage | None:
        """The stage of a constituent that reads what is left of its slices 0 to `last`.

        Args:
          shard: number of its shard.
          last: number of the last slice.
          kept: bool `[N]`, the examples that are left.
          initial: state before it, on the host.
          stored: whether its state goes to the store.

        Returns:
          The stage, `None` if nothing is left.
        """
        ids = self.assignment.members(shard, last, kept)
        if not len(ids):
            return None
        places, seed = self.assignment.place[ids], int(self.seeds[shard, 1 + last])
        schedule = make_schedule(seed, places, self.batch_size, self.epochs[last])
        return Stage(shard, last, self._data(ids, places), schedule, seed, initial, stored)

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
