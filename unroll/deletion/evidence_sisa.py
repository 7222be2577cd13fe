"""Entries of the ledger for SISA systems, and their re-execution from the record.

    entry, recipe = sisa_run_entry(system, salt)               after training
    entry, recipe = sisa_entry(before, after, ids, salt)       after a deletion
    re_execute_sisa(signed, recipe, spec, dataset, salt)       trains from scratch and compares

An entry has the fields of any other, with these meanings:

    schedule      salted hash of all that the schedules of the stages follow from: shard and slice
                  of each example, epochs of the stages, batch size, and how lanes are laid out
    weights       salted hash of 1 for what remains and 0 for what was deleted
    parameters    hash of the models of all constituents, in the order of the shards

The re-execution trains on what remains from the first stage on, without a store. It shows more than
a deletion does by itself: that stages which were kept owe nothing to what was deleted. What it does
not show is said in `deletion.evidence` and `deletion.ledger`.

Design: a recipe of its own (`SisaRecipe`), and all comparisons those of `deletion.evidence`.
Rejected: an entry for each constituent; a reader would learn which shard a request fell in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from unroll.calls import format_call, parse_call
from unroll.data.dataset import Dataset
from unroll.data.ids import IdsLike, as_ids
from unroll.deletion.entry import Entry, SignedEntry
from unroll.deletion.evidence import (
    SISA,
    AnyRecipe,
    Verification,
    compare_links,
    compose_entry,
    parameter_hash,
)
from unroll.deletion.merkle import commit
from unroll.deletion.sharding import Assignment
from unroll.deletion.sisa import Sisa, SisaPlan, train_sisa
from unroll.errors import InputError
from unroll.training.run import Progress
from unroll.training.spec import TrainSpec


@dataclasses.dataclass(frozen=True, eq=False)
class SisaRecipe(AnyRecipe):
    """What a re-execution needs besides the data and the specification. It names the ids: private.

    Attributes:
      seed: of the plan.
      weights: float32 `[N]`, 0 where an example was deleted and 1 elsewhere.
      forget: int64, the ids of this deletion; empty for a training.
      shard: int32 `[N]`.
      slice: int32 `[N]`.
      shards: number S of shards.
      slices: number R of slices.
      epochs: int64 `[R]`, of each stage.
      batch_size: slots per step.
      width: lanes of a device in batched mode, 0 in sequential mode.
    """

    shard: np.ndarray
    slice: np.ndarray
    shards: int
    slices: int
    epochs: np.ndarray
    batch_size: int
    width: int

    @property
    def remaining(self) -> np.ndarray:
        """Ids that the system depends on, int64 ascending: each stage reads all that is left."""
        return np.flatnonzero(self.weights != 0).astype(np.int64)

    @property
    def order(self) -> dict[str, np.ndarray]:
        """Everything that schedules follow from but seed and deletions."""
        names = ("shard", "slice", "shards", "slices", "epochs", "batch_size", "width")
        return {name: np.asarray(getattr(self, name)) for name in names}

    @property
    def method(self) -> str:
        """The name `sisa` with shards and slices."""
        return format_call(SISA, dict(shards=self.shards, slices=self.slices))

    @classmethod
    def _restored(cls, name: str, array: np.ndarray) -> Any:
        numbers = ("seed", "shards", "slices", "batch_size", "width")
        return int(array) if name in numbers else array

    def plan(self, spec: TrainSpec, dataset: Dataset) -> SisaPlan:
        """The plan that it describes.

        Raises:
          InputError: if it does not fit the data set.
        """
        assignment = Assignment(self.shard, self.slice, self.shards, self.slices)
        epochs = tuple(map(int, self.epochs))
        return SisaPlan(spec, dataset, assignment, epochs, self.batch_size, self.seed)


def system_hash(system: Sisa) -> str:
    """Hash of the models of all constituents as they are served; `None` for those that abstain."""
    states = [None if each is None else each.state for each in system.constituents]
    params = [None if state is None else state.params for state in states]
    return parameter_hash(
        params, [None if state is None else state.model_state for state in states]
    )


def sisa_run_entry(
    system: Sisa, salt: bytes, *, metrics: Mapping[str, Any] | None = None
) -> tuple[Entry, SisaRecipe]:
    """The entry of a trained system, and its recipe.

    Args:
      system: a trained system; what was removed before is of no other entry.
      salt: from `keys.load_salt`.
      metrics: what else to log; published, so without ids.

    Raises:
      InputError: if the metrics cannot be written.
    """
    recipe = _recipe(system, np.zeros(0, np.int64))
    changes = dict(kind="run", data_before=None, parameters_before=None)
    return _entry(system, recipe, salt, metrics, changes), recipe


def sisa_entry(
    before: Sisa,
    after: Sisa,
    ids: IdsLike,
    salt: bytes,
    *,
    metrics: Mapping[str, Any] | None = None,
) -> tuple[Entry, SisaRecipe]:
    """The entry of a deletion from a system, and its recipe.

    Args:
      before: the system before.
      after: the system that `before.delete(ids)` gave.
      ids: what was deleted.
      salt: from `keys.load_salt`.
      metrics: what else to log; published, so without ids.

    Raises:
      InputError: if nothing was deleted, the systems are of different plans or differ by other ids,
        or the metrics cannot be written.
    """
    ids = np.unique(as_ids(ids, len(before.plan.dataset), name="deletion"))
    if not len(ids):
        raise InputError("a deletion without ids is none; log the training instead")
    if before.plan.hash != after.plan.hash or (before.mode, before.width) != (
        after.mode,
        after.width,
    ):
        raise InputError("the systems before and after are of different plans")
    if not np.array_equal(np.setxor1d(before.removed, after.removed), ids):
        raise InputError("the systems before and after do not differ by the ids of the deletion")
    recipe = _recipe(after, ids)
    changes = dict(
        kind="deletion",
        data_before=commit(before.plan.dataset, before.remaining, salt).root,
        parameters_before=system_hash(before),
    )
    return _entry(after, recipe, salt, metrics, changes), recipe


def _recipe(system: Sisa, forget: np.ndarray) -> SisaRecipe:
    plan, assignment = system.plan, system.plan.assignment
    return SisaRecipe(
        seed=plan.seed,
        weights=plan.kept(system.removed).astype(np.float32),
        forget=forget,
        shard=assignment.shard,
        slice=assignment.slice,
        shards=assignment.shards,
        slices=assignment.slices,
        epochs=np.array(plan.epochs, np.int64),
        batch_size=plan.batch_size,
        width=system.width if system.mode == "batched" else 0,
    )


def _entry(system: Sisa, recipe: SisaRecipe, salt, metrics, changes: dict[str, Any]) -> Entry:
    plan = system.plan
    changes |= dict(method=recipe.method, initial=None, parameters_after=system_hash(system))
    return compose_entry(recipe, plan.spec, plan.dataset, salt, metrics, **changes)


def re_execute_sisa(
    signed: SignedEntry | Entry,
    recipe: SisaRecipe,
    spec: TrainSpec,
    dataset: Dataset,
    salt: bytes,
    *,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Trains the system of an entry from scratch on what remains and compares it bit for bit.

    Nothing is trained if the materials are not those of the entry, and nothing is read from a
    store.

    Args:
      signed: an entry of `sisa_run_entry` or `sisa_entry`.
      recipe: see `SisaRecipe.load`.
      spec: the specification.
      dataset: the training set; deleted rows may be overwritten.
      salt: from `keys.load_salt`.
      mesh: devices for systems that were trained in lanes; no bit depends on them.
      progress: called with (steps done, steps in all).

    Raises:
      InputError: if the entry is not of a SISA system.
      DivergenceError: if the training diverges.
    """
    entry = signed.entry if isinstance(signed, SignedEntry) else signed
    if parse_call(entry.method)[0] != SISA:
        raise InputError(f"{entry.method} is not of a SISA system; verify it with re_execute")

    def trained_again() -> str:
        removed = np.flatnonzero(recipe.weights == 0)
        lanes = dict(mode="batched", width=recipe.width, mesh=mesh)
        options = lanes if recipe.width else dict(mode="sequential")
        plan = recipe.plan(spec, dataset)
        return system_hash(train_sisa(plan, removed=removed, progress=progress, **options))

    return compare_links(entry, recipe, spec, dataset, salt, None, trained_again)
