"""Which examples every stored thing depends on.

    record_run(store, run)                              after training, with the run at hand
    record_training(store, spec, data, schedule)        the same with the arguments of `train`
    record(store, address, {fingerprint: ids}, kind)    for anything else
    dependents(store, fingerprint, ids)                 what carries any of these examples
    purge.purge(store, fingerprint, ids, dry_run=False) removes it; hashes stay
    purge.check_purged(store, fingerprint, ids)         what still does: nothing

An entry of the store says in `identity.json` what it was computed from, but schedule and weights
only as hashes. `record_run` keeps those two arrays under their hashes, in `<root>/lineage/arrays`,
so the dependence of a run is derived from its identity and checked against it; it is not believed.
For the rest a file `lineage.json` beside `identity.json` says it. What says nothing depends on
everything of its data set; what does not even name that, on everything.

An example is used if a step takes it with a weight that is not zero. A model with statistics over
batches (`batch_stats`) depends on every example of its schedule whatever the weights, unless it is
recorded with `weighted_statistics=True`, as `models.layers.BatchNorm` is meant to be used. What an
approximate method made from a run carries all that the run carries; exact methods
(`EXACT_METHODS`) lose what they forget.

What a check does not show: `lineage.json` is a statement of who wrote it, guarded against damage
and not against lies; a data set made from another one (`Dataset.take`) has a fingerprint and ids of
its own and needs a purge of its own; copies elsewhere (backups, other stores, served models,
compiled programs' logs) are out of sight. Identities of what stays may list forgotten ids, as
numbers. Nobody may write to the store during a purge.

Design: dependence is derived again at every question. Rejected: a database of lineage beside the
store, which can go out of step with it in both directions.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unroll.checkpoint import Store
from unroll.data.dataset import Dataset
from unroll.data.ids import IdsLike, as_ids
from unroll.deletion.lineage_files import (
    IDENTITY,
    NOISE,
    decoded,
    encoded,
    entries,
    has_content,
    keep_array,
    load_array,
    read_identity,
    read_json,
    read_lineage,
    write_lineage,
)
from unroll.training.run import Run, check_inputs, run_identity
from unroll.training.spec import TrainSpec, description_hash
from unroll.training.step import initial_state

EXACT_METHODS = ("replay", "retrain")
"""Methods whose result is bit for bit that of a training without what they forget."""

DependsOn = Mapping[str, IdsLike | None]
"""By fingerprint of a data set the ids that something depends on; `None` for all of them."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dependence:
    """What an entry depends on.

    Attributes:
      parts: ids by fingerprint, int64 ascending, `None` for all ids; `None` instead of a mapping if
        that is unknown, which counts as everything of every data set.
      why: where this is known from.
      every_slot: whether weights of zero count as use, since the model has batch statistics.
    """

    parts: dict[str, np.ndarray | None] | None
    why: str
    every_slot: bool = False

    def on(self, fingerprint: str, ids: np.ndarray) -> bool:
        """Whether any of these examples is among them; of no examples, none is."""
        if self.parts is None:
            return len(ids) > 0
        if fingerprint not in self.parts:
            return False
        own = self.parts[fingerprint]
        return len(ids) > 0 if own is None else bool(np.isin(ids, own).any())


@dataclasses.dataclass(frozen=True)
class Dependent:
    """A stored thing that carries examples which were asked about.

    Attributes:
      path: its folder.
      kind: what it is, as far as that is known.
      why: how its dependence is known.
      size: bytes on the disk.
    """

    path: Path
    kind: str
    why: str
    size: int

    def __str__(self) -> str:
        return f"{self.path.name} ({self.kind}, {self.size / 2**10:.0f} KiB): {self.why}"


def trained_on(schedule: np.ndarray, weights: np.ndarray, every_slot: bool = False) -> np.ndarray:
    """Ids that a run depends on, int64 ascending.

    Args:
      schedule: int `[T, B]`, -1 for empty slots.
      weights: `[N]`.
      every_slot: whether examples of weight zero count too.
    """
    used = np.zeros(len(weights), bool)
    used[schedule[schedule >= 0]] = True
    return np.flatnonzero(used if every_slot else used & (weights != 0)).astype(np.int64)


def record(store: Store, address: str, depends_on: DependsOn, kind: str) -> None:
    """Writes down what a stored thing depends on.

    Args:
      store: where it is, or will be.
      address: of the entry.
      depends_on: ids by fingerprint of their data set; `None` for all. An empty mapping says that
        it depends on no example at all.
      kind: what it is, for reports.

    Raises:
      InputError: if an id is negative.
    """
    write_lineage(store.root / address, kind, _checked(depends_on))


def record_folder(folder: str | os.PathLike, depends_on: DependsOn, kind: str = "report") -> None:
    """Like `record` for a folder outside the store, such as the workdir of an experiment."""
    write_lineage(Path(folder).resolve(), kind, _checked(depends_on))


def record_run(
    store: Store,
    run: Run,
    *,
    weighted_statistics: bool = False,
    initial: DependsOn | None = None,
) -> None:
    """Writes down what a run and its snapshots depend on, so that it can be derived again.

    Args:
      store: the store that the run was trained with.
      run: the run.
      weighted_statistics: the model's batch statistics leave out examples of weight zero.
      initial: what the state depends on that the run started from, `{}` for none of this project's
        data. Without it a run that was given a state depends on everything.
    """
    recipe = (run.spec, run.dataset, run.seed, run.schedule, run.weights, run.initial)
    before = None if initial is None else _checked(initial)
    every_slot = bool(run.state.model_state) and not weighted_statistics
    _record_recipe(store, recipe, before, every_slot)


def record_training(
    store: Store,
    spec: TrainSpec,
    dataset: Dataset,
    schedule: np.ndarray,
    *,
    seed: int = 0,
    weights: np.ndarray | None = None,
    weighted_statistics: bool = False,
) -> str:
    """Like `record_run`, with the arguments of `train`, be it before, during or after training.

    Returns:
      The address that the run has, or will have.

    Raises:
      InputError: if the arguments do not fit together.
    """
    schedule, weights = check_inputs(spec, dataset, schedule, weights)
    first = jax.ShapeDtypeStruct((1, *dataset.example_shape), dataset.inputs.dtype)
    made = jax.eval_shape(lambda inputs: initial_state(spec, jax.random.key(0), inputs), first)
    every_slot = bool(made.model_state) and not weighted_statistics
    return _record_recipe(store, (spec, dataset, seed, schedule, weights, None), None, every_slot)


def _record_recipe(store: Store, recipe: tuple, before, every_slot: bool) -> str:
    """Keeps the arrays, the identity and the lineage of a run; returns its address."""
    _, dataset, _, schedule, weights, initial = recipe
    for array in (schedule, weights):
        keep_array(store, array)
    ids = trained_on(schedule, weights, every_slot)
    parts = _united([{dataset.fingerprint: ids}, before or {}])
    if initial is not None and before is None:
        parts = None
    identity = run_identity(*recipe)
    address = description_hash(identity)
    store.describe(address, identity)
    extra = {"every_slot": every_slot, "initial": None if before is None else encoded(before)}
    write_lineage(store.root / address, "run", parts, extra)
    return address


def dependence(store: Store, address: str) -> Dependence:
    """What an entry depends on, by the rules of the module."""
    return dependence_of(store, store.root / address)


def dependents(
    store: Store, fingerprint: str, ids: IdsLike, *, folders: Iterable[str | os.PathLike] = ()
) -> list[Dependent]:
    """Everything in a store, and of some folders, that depends on any of the examples.

    Args:
      store: the store; every entry in it is looked at.
      fingerprint: of the data set that the ids count in.
      ids: ids of examples.
      folders: further folders (workdirs); one without `lineage.json` counts as dependent.

    Raises:
      InputError: if an id is negative.
    """
    ids = as_ids(ids)
    found = []
    for path in [*entries(store.root), *(Path(folder).resolve() for folder in folders)]:
        if has_content(path):
            known = dependence_of(store, path)
            if known.on(fingerprint, ids):
                found.append(Dependent(path, kind_of(path), known.why, _size(path)))
    return found


def _checked(depends_on: DependsOn) -> dict[str, np.ndarray | None]:
    return {
        fingerprint: None if ids is None else np.unique(as_ids(ids))
        for fingerprint, ids in depends_on.items()
    }


def _united(many: Iterable[Mapping[str, np.ndarray | None]]) -> dict[str, np.ndarray | None]:
    union: dict[str, np.ndarray | None] = {}
    for parts in many:
        for fingerprint, ids in parts.items():
            if fingerprint in union and ids is not None and union[fingerprint] is not None:
                ids = np.union1d(union[fingerprint], ids)
            elif fingerprint in union:
                ids = None
            union[fingerprint] = ids
    return union


def dependence_of(store: Store, path: Path) -> Dependence:
    identity, lineage = read_identity(path), read_lineage(path)
    if identity is not None and identity.get("program") == "single":
        return _of_run(store, identity, lineage)
    if lineage is not None:
        return Dependence(decoded(lineage["depends_on"]), "as recorded", lineage["every_slot"])
    if identity is None:
        return Dependence(None, "nothing says what it is")
    return _derived(store, identity)


def _of_run(store: Store, identity: dict, lineage: dict | None) -> Dependence:
    arrays = [load_array(store, identity[name]) for name in ("schedule", "weights")]
    every_slot = True if lineage is None else lineage["every_slot"]
    if any(array is None for array in arrays):
        if lineage is not None:
            return Dependence(decoded(lineage["depends_on"]), "as recorded", every_slot)
        if "initial" in identity:
            return Dependence(None, "a run from an unknown state, without lineage")
        return Dependence({identity["dataset"]: None}, "a run without lineage", every_slot)
    own = {identity["dataset"]: trained_on(*arrays, every_slot)}
    why = "its schedule" if every_slot else "its schedule and weights"
    if "initial" not in identity:
        return Dependence(own, why, every_slot)
    if lineage is None or lineage["initial"] is None:
        return Dependence(None, "a run from an unknown state", every_slot)
    return Dependence(_united([own, decoded(lineage["initial"])]), why, every_slot)


def _derived(store: Store, identity: dict) -> Dependence:
    """Of an entry without lineage: what its identity names, and all that its run carries."""
    source = identity.get("run")
    if isinstance(source, str):
        run = dependence_of(store, store.root / source)
        if run.parts is None:
            return Dependence(None, f"made from {source[:12]}: {run.why}")
        parts = dict(run.parts)
        if identity.get("method") in EXACT_METHODS and not run.every_slot:
            described = read_identity(store.root / source) or {}
            own = described.get("dataset")
            if parts.get(own) is not None:
                parts[own] = np.setdiff1d(parts[own], as_ids(identity["forget"]))
        named = {each: None for each in _fingerprints(identity)}
        return Dependence(_united([parts, named]), f"made from {source[:12]}", run.every_slot)
    found = {each: None for each in _fingerprints(identity)}
    if not found or _starts_elsewhere(identity):
        return Dependence(None, "its data are not named")
    return Dependence(found, "no lineage: everything of its data set")


def _fingerprints(identity: Any) -> Iterator[str]:
    """Fingerprints of data sets anywhere in an identity."""
    if isinstance(identity, dict):
        for name, value in identity.items():
            if name in ("dataset", "evaluated") and isinstance(value, str):
                yield value
            elif name != "spec":
                yield from _fingerprints(value)


def _starts_elsewhere(identity: Any) -> bool:
    """Whether a state that is known by its hash only went into it."""
    return isinstance(identity, dict) and (
        "initial" in identity
        or any(_starts_elsewhere(value) for name, value in identity.items() if name != "spec")
    )


def kind_of(path: Path) -> str:
    lineage = read_lineage(path)
    if lineage is not None:
        return lineage["kind"]
    if set(read_json(path / IDENTITY) or ()) == {NOISE}:
        return NOISE
    identity = read_identity(path) or {}
    if "method" in identity:
        return f"result of {identity['method']}"
    return str(identity.get("kind", identity.get("program", "unknown"))).replace("single", "run")


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.lstat().st_size for file in files if file.is_file())
