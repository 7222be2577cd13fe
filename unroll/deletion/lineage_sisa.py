"""What the stages of a SISA system depend on, written down in its store; purges after deletions.

    record_sisa(store, system)       after training and after each deletion
    purge_removed(store, system)     removes what carries deleted examples, proves that nothing does

A stage lies in the store as a run on a data set of its own, so its identity says nothing in terms
of the training set's ids. What it has read is known to the plan: the slices so far of its shard,
less what was deleted. Stages that read no deleted example stay where they are, and further
deletions start from them, bit for bit as if nothing had been purged.

Design: the lineage of a stage is written only after its address was found to follow from the plan,
so a record cannot be put on an entry of another content. Rejected: keeping stages' schedules
and deriving ids from them; they hold places in a shard, which mean nothing without the plan.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from unroll.checkpoint import Store
from unroll.deletion.lineage import Dependent, record, record_run
from unroll.deletion.lineage_files import read_identity
from unroll.deletion.purge import check_purged, purge
from unroll.deletion.sisa import Sisa
from unroll.errors import StoreError
from unroll.training.run import Run, array_hash

KIND = "SISA stage"


def record_sisa(store: Store, system: Sisa, *, fingerprint: str | None = None) -> None:
    """Writes down what the stored stages of a system depend on.

    Stages of an earlier state of the system keep the lineage that was written then, so this is
    called for each of them. What was never recorded counts as depending on everything.

    Args:
      store: where the system's states lie.
      system: a trained system.
      fingerprint: of the training set that the ids count in, if deleted rows were erased since.

    Raises:
      StoreError: if the store says of a stage that it is another one than the plan's.
    """
    plan = system.plan
    fingerprint = fingerprint or plan.dataset.fingerprint
    kept = plan.kept(system.removed)
    for constituent in system.present:
        for number, address in enumerate(constituent.addresses):
            identity = None if address is None else read_identity(store.root / address)
            if identity is None:
                continue  # without examples, or damaged: then it counts as depending on all
            stage = plan.stage(constituent.shard, number, kept, constituent.state)
            found = {"dataset": stage.data.fingerprint, "schedule": array_hash(stage.schedule)}
            if any(identity.get(name) != value for name, value in found.items()):
                raise StoreError(
                    f"{store.root / address} is not of {stage}; give the plan it is of"
                )
            ids = plan.assignment.members(constituent.shard, number, kept)
            record(store, address, {fingerprint: ids}, KIND)


def purge_removed(
    store: Store,
    model: Sisa | Run,
    *,
    fingerprint: str | None = None,
    folders: Iterable[str | os.PathLike] = (),
    weighted_statistics: bool = False,
    dry_run: bool = False,
) -> list[Dependent]:
    """Removes from a store all that depends on what a model is without, and proves it.

    For services: called with the model that a deletion left, after that is acknowledged. Whoever
    goes on after a kill trains with `removed=` or weights of zero at once: what came before is
    gone.

    Args:
      store: where the service's states lie.
      model: the SISA system, or the run whose weights of zero are the deleted examples.
      fingerprint: of the training set that the ids count in, if deleted rows were erased since.
      folders: further folders, as in `purge`.
      weighted_statistics: as in `record_run`.
      dry_run: only list.

    Returns:
      What was removed.

    Raises:
      InputError: as `purge` does.
      StoreError: if something cannot be removed, or is left; the message names it.
    """
    if isinstance(model, Sisa):
        removed, data = model.removed, model.plan.dataset
        record_sisa(store, model, fingerprint=fingerprint)
    else:
        removed, data = np.flatnonzero(model.weights == 0), model.dataset
        record_run(store, model, weighted_statistics=weighted_statistics)
    name, folders = fingerprint or data.fingerprint, list(folders)
    found = purge(store, name, removed, folders=folders, dry_run=dry_run)
    left = [] if dry_run else check_purged(store, name, removed, folders=folders)
    if left:
        raise StoreError(f"after a purge {len(left)} entries are left, the first is {left[0]}")
    return found
