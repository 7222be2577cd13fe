"""From a run and a deletion to entries of the ledger, and from an entry back by re-execution.

`deletion_entry` gathers all that determines the bits of a deletion; `re_execute` trains again
without the deleted examples and compares the parameters bit for bit, or names the link that fails.

What a re-execution shows: this program, on the listed data without the deleted examples, gives
exactly these parameters. It needs the data, the salt and the recipe, so it is for an auditor who is
trusted with them. It does not show that these parameters are served, nor anything about parameters
that an approximate method made: those entries are a record only. See `deletion.ledger` for the rest
of what no record proves.

What remains is committed to by a Merkle root, so a re-execution still works when the deleted
examples have been erased from the data set (their rows overwritten with zeros): rows of weight zero
do not enter the parameters. The fingerprint of the whole set then differs, and a note says so.

The same for a SISA system, with the same links, is in `deletion.evidence_sisa`.

Design: the recipe (schedule, weights, ids) lies beside the ledger, as one file of arrays under its
salted hash. It names the deleted ids, so it is not published. Rejected: the recipe inside the
entry; schedules are large, and the log is meant to be read by those who must not learn ids.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from unroll import checkpoint, tree
from unroll.calls import parse_call
from unroll.data.dataset import Dataset
from unroll.data.ids import as_ids
from unroll.deletion.entry import Entry, SignedEntry
from unroll.deletion.lineage import EXACT_METHODS, trained_on
from unroll.deletion.merkle import Proof, commit, prove_absence, salted_hash, salted_ids
from unroll.errors import InputError, StoreError
from unroll.problem import Problem, Unlearned
from unroll.training.run import Progress, Run, environment, train
from unroll.training.spec import TrainSpec, description_hash
from unroll.types import PyTree, TrainState

SISA = "sisa"
"""Name of the method in entries of SISA systems."""
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "unroll")


def parameter_hash(params: PyTree, model_state: PyTree) -> str:
    """Content hash of a model as it is served: parameters and other variables, no optimiser."""
    return tree.content_hash({"params": params, "model_state": model_state})


def package_versions() -> dict[str, str]:
    """Versions of what the bits of a run depend on; `none` for what runs without installation."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    return versions


@functools.cache
def code_version() -> dict[str, str]:
    """SHA-256 over all source files of the library, by name.

    A commit's name would say nothing about files that were changed since.
    """
    root = Path(checkpoint.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}|{len(content)}|".encode())
        digest.update(content)
    return {"source": digest.hexdigest()}


def circumstances(spec: TrainSpec) -> dict[str, Any]:
    """The fields `code`, `packages` and `environment` of an entry, as of now."""
    return dict(code=code_version(), packages=package_versions(), environment=environment(spec))


@dataclasses.dataclass(frozen=True, eq=False)
class AnyRecipe:
    """What recipes of all kinds have.

    Attributes:
      seed: of the run.
      weights: float32 `[N]`, of the run that is to result: zero where an example was deleted.
      forget: int64, the ids of this deletion; empty for a run.
    """

    seed: int
    weights: np.ndarray
    forget: np.ndarray

    @property
    def hash(self) -> str:
        """Content hash, unsalted: not for publication."""
        return tree.content_hash(self._arrays())

    @property
    def remaining(self) -> np.ndarray:
        """Ids that the result depends on, int64 ascending."""
        raise NotImplementedError

    @property
    def order(self) -> Any:
        """Arrays that say in which order examples are read; `Entry.schedule` is their hash."""
        raise NotImplementedError

    @property
    def method(self) -> str | None:
        """The method that it is of, as `Entry.method` has it; `None` if it may be of several."""
        return None

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {name: np.asarray(value) for name, value in vars(self).items()}
        return {**arrays, "seed": np.int64(self.seed)}

    def save(self, folder: str | os.PathLike, name: str) -> Path:
        """Writes `<folder>/<name>.npz`, whole or not at all; `name` is the entry's `recipe`."""
        path = _recipe_path(folder, name)
        temporary = path.with_name(f".{name}-{uuid.uuid4().hex}.npz")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(temporary, **self._arrays())
            temporary.chmod(0o600)
            os.replace(temporary, path)
        except OSError as error:
            raise StoreError(f"cannot write {path} ({error.strerror})") from None
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike, name: str) -> Self:
        """Reads what `save` wrote.

        Raises:
          InputError: if it is missing or cannot be read.
        """
        path = _recipe_path(folder, name)
        try:
            with np.load(path, allow_pickle=False) as file:
                fields = {field.name: file[field.name] for field in dataclasses.fields(cls)}
            return cls(**{name: cls._restored(name, array) for name, array in fields.items()})
        except FileNotFoundError:
            raise InputError(f"there is no recipe {path}; it is kept with the ledger") from None
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is damaged ({error}); restore it from a copy") from None

    @classmethod
    def _restored(cls, name: str, array: np.ndarray) -> Any:
        """A field from its array."""
        return int(array) if name == "seed" else array


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe(AnyRecipe):
    """What a re-execution needs besides the data and the specification. It names the ids: private.

    Attributes:
      seed: of the run.
      weights: float32 `[N]`, of the run that is to result: zero where an example was deleted.
      forget: int64, the ids of this deletion; empty for a run.
      schedule: int32 `[T, B]`.
    """

    schedule: np.ndarray

    @property
    def remaining(self) -> np.ndarray:
        """Ids that the result depends on, int64 ascending."""
        return trained_on(self.schedule, self.weights)

    @property
    def order(self) -> np.ndarray:
        """The schedule."""
        return self.schedule


def _recipe_path(folder: str | os.PathLike, name: str) -> Path:
    return Path(folder) / f"{name}.npz"


def run_entry(
    run: Run, salt: bytes, *, metrics: Mapping[str, Any] | None = None
) -> tuple[Entry, Recipe]:
    """The entry of a training run, and its recipe.

    Args:
      run: a finished run.
      salt: from `keys.load_salt`.
      metrics: what else to log; published, so without ids.

    Raises:
      InputError: if the metrics cannot be written.
    """
    recipe = Recipe(run.seed, run.weights, np.zeros(0, np.int64), run.schedule)
    changes = dict(
        kind="run",
        method="train",
        initial=run.initial,
        data_before=None,
        parameters_before=None,
        parameters_after=parameter_hash(run.state.params, run.state.model_state),
    )
    return compose_entry(recipe, run.spec, run.dataset, salt, metrics, **changes), recipe


def deletion_entry(
    problem: Problem,
    result: Unlearned,
    method: str,
    salt: bytes,
    *,
    metrics: Mapping[str, Any] | None = None,
) -> tuple[Entry, Recipe]:
    """The entry of a deletion from a run, and its recipe.

    Args:
      problem: the run before, and the ids to forget.
      result: what the method returned.
      method: its name with arguments, for example `replay`; published.
      salt: from `keys.load_salt`.
      metrics: what else to log; published, so without ids.

    Raises:
      InputError: if nothing is to be forgotten, the method cannot be read, or the metrics cannot be
        written.
    """
    parse_call(method)
    if not len(problem.forget):
        raise InputError("a deletion without ids is none; log the run instead")
    run = problem.run
    recipe = Recipe(run.seed, problem.twin_weights, problem.forget, run.schedule)
    before = trained_on(run.schedule, run.weights)
    changes = dict(
        kind="deletion",
        method=method,
        initial=run.initial,
        data_before=commit(run.dataset, before, salt).root,
        parameters_before=parameter_hash(run.state.params, run.state.model_state),
        parameters_after=parameter_hash(result.params, result.model_state),
    )
    return compose_entry(recipe, run.spec, run.dataset, salt, metrics, **changes), recipe


def compose_entry(
    recipe: AnyRecipe,
    spec: TrainSpec,
    dataset: Dataset,
    salt: bytes,
    metrics: Mapping[str, Any] | None,
    **fields: Any,
) -> Entry:
    """An entry from a recipe, and the fields that do not follow from it.

    Raises:
      InputError: if it cannot be written.
    """
    return Entry(
        requests=salted_ids(salt, recipe.forget),
        dataset=dataset.fingerprint,
        data_after=commit(dataset, recipe.remaining, salt).root,
        spec=description_hash(spec.describe()),
        schedule=_salted_array(salt, "schedule", recipe.order),
        weights=_salted_array(salt, "weights", recipe.weights),
        seed=recipe.seed,
        recipe=salted_hash(salt, "recipe", recipe.hash.encode()),
        metrics=dict(metrics or {}),
        **circumstances(spec),
        **fields,
    )


def _salted_array(salt: bytes, purpose: str, arrays: PyTree) -> str:
    return salted_hash(salt, purpose, tree.content_hash(arrays).encode())


@dataclasses.dataclass(frozen=True)
class Link:
    """One thing that was compared.

    Attributes:
      name: `recipe`, `method`, `requests`, `spec`, `seed`, `schedule`, `weights`, `initial`,
        `dataset`, `remaining data`, `environment`, `code`, or `parameters`.
      holds: whether it agrees; `None` where that alone decides nothing, or nothing was compared.
      message: what was found.
    """

    name: str
    holds: bool | None
    message: str

    def __str__(self) -> str:
        mark = {True: "holds", False: "FAILS", None: "note"}[self.holds]
        return f"{self.name}: {mark}: {self.message}"


@dataclasses.dataclass(frozen=True)
class Verification:
    """What a re-execution found, link by link."""

    links: tuple[Link, ...]

    @property
    def failing(self) -> tuple[Link, ...]:
        """The links that fail."""
        return tuple(link for link in self.links if link.holds is False)

    @property
    def holds(self) -> bool:
        """Whether the parameters came out equal, from the recorded materials."""
        return not self.failing and Link("parameters", True, _EQUAL) in self.links


_EQUAL = "training again gives the same bits"


def re_execute(
    signed: SignedEntry | Entry,
    recipe: Recipe,
    spec: TrainSpec,
    dataset: Dataset,
    salt: bytes,
    *,
    initial: TrainState | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Trains again what an entry describes and compares the parameters bit for bit.

    Nothing is trained if the materials are not those of the entry. Nothing is read from a store,
    so the result owes nothing to what the provider kept; a deletion by `replay` is checked by
    training from the start, which gives the same bits.

    Args:
      signed: an entry of kind `run`, or a deletion by an exact method.
      recipe: see `Recipe.load`.
      spec: the specification.
      dataset: the training set; deleted rows may be overwritten.
      salt: from `keys.load_salt`.
      initial: the state that the run started from, if it was given one.
      progress: called with (steps done, steps in all).

    Raises:
      InputError: if the entry is of an approximate method, whose parameters no training gives.
      DivergenceError: if the training diverges.
    """
    entry = signed.entry if isinstance(signed, SignedEntry) else signed
    name, _ = parse_call(entry.method)
    if name == SISA:
        raise InputError(f"{entry.method} is of a SISA system; verify it with re_execute_sisa")
    if entry.kind == "deletion" and name not in EXACT_METHODS:
        raise InputError(
            f"{entry.method} is not exact, so training again cannot give its parameters; only "
            f"{', '.join(EXACT_METHODS)} and {SISA} can be verified"
        )

    def trained_again() -> str:
        options = dict(seed=recipe.seed, weights=recipe.weights, initial=initial)
        again = train(spec, dataset, recipe.schedule, progress=progress, **options)
        return parameter_hash(again.state.params, again.state.model_state)

    start = None if initial is None else tree.content_hash(tree.to_host(initial))
    return compare_links(entry, recipe, spec, dataset, salt, start, trained_again)


def compare_links(
    entry: Entry,
    recipe: AnyRecipe,
    spec: TrainSpec,
    dataset: Dataset,
    salt: bytes,
    initial: str | None,
    trained_again: Callable[[], str],
) -> Verification:
    """Compares materials, surroundings and, if the materials are the entry's, the parameters.

    Args:
      entry: what is verified.
      recipe: see `AnyRecipe`.
      spec: the specification.
      dataset: the training set.
      salt: from `keys.load_salt`.
      initial: content hash of the state at the start, if one was given.
      trained_again: trains and returns the hash of the parameters.
    """
    links = [*_materials(entry, recipe, spec, dataset, salt, initial), *_surroundings(entry, spec)]
    if any(link.holds is False for link in links):
        message = "not trained again: the materials are not those of the entry"
        return Verification((*links, Link("parameters", None, message)))
    return Verification((*links, _compared_parameters(entry, trained_again(), links)))


def check_parameters(entry: Entry, params: PyTree, model_state: PyTree) -> Link:
    """Whether a model is the one that an entry logs, without training."""
    holds = parameter_hash(params, model_state) == entry.parameters_after
    message = "the model is the logged one" if holds else "the model is not the logged one"
    return Link("parameters", holds, message)


def prove_absences(recipe: AnyRecipe, dataset: Dataset, salt: bytes) -> list[Proof]:
    """Proofs that the ids of a deletion are not among what remains; see `merkle.verify`.

    They hold for the root `data_after` of the entry and name its `requests`, so somebody who knows
    neither ids nor data can check them.

    Raises:
      InputError: if an id is still used.
    """
    commitment = commit(dataset, recipe.remaining, salt)
    return [prove_absence(commitment, example) for example in recipe.forget]


def _materials(entry, recipe, spec, dataset, salt, initial) -> Iterator[Link]:
    def same(name: str, found: Any, what: str) -> Link:
        holds = found == getattr(entry, name)
        return Link(name, holds, f"the {what} is {'' if holds else 'not '}the recorded one")

    whole = same("recipe", salted_hash(salt, "recipe", recipe.hash.encode()), "recipe")
    yield whole
    if recipe.method is not None:
        yield same("method", recipe.method, "method")
    yield same("requests", salted_ids(salt, recipe.forget), "list of deleted ids")
    yield same("spec", description_hash(spec.describe()), "specification")
    yield same("seed", recipe.seed, "seed")
    yield same("schedule", _salted_array(salt, "schedule", recipe.order), "schedule")
    yield same("weights", _salted_array(salt, "weights", recipe.weights), "list of weights")
    yield same("initial", initial, "state at the start")
    if whole.holds:  # another recipe may name ids that the data set does not have
        yield from _data_links(entry, recipe, dataset, salt)


def _data_links(entry, recipe, dataset, salt) -> Iterator[Link]:
    size = len(recipe.weights)
    if len(dataset) != size:
        message = f"the data set has {len(dataset)} examples, the recorded one {size}"
        yield Link("dataset", False, message)
        return
    remaining = recipe.remaining
    if np.isin(as_ids(recipe.forget), remaining).any():
        yield Link("remaining data", False, "a deleted example is still used")
        return
    holds = commit(dataset, remaining, salt).root == entry.data_after
    message = "what remains is the recorded data" if holds else "what remains was changed"
    if dataset.fingerprint == entry.dataset:
        yield Link("dataset", True, "the data set is the recorded one")
    else:
        changed = "outside of what remains (erased rows)" if holds else "in what remains"
        yield Link("dataset", None, f"the data set differs from the recorded one {changed}")
    yield Link("remaining data", holds, message)


def _surroundings(entry: Entry, spec: TrainSpec) -> Iterator[Link]:
    """What may change the bits, and need not: notes."""
    here = json.loads(json.dumps({**environment(spec), "packages": package_versions()}))
    there = {**entry.environment, "packages": entry.packages}
    other = sorted(name for name in here | there if here.get(name) != there.get(name))
    message = f"{', '.join(other)} differ, so bits may differ" if other else "the same"
    yield Link("environment", None if other else True, message)
    same_code = entry.code == code_version()
    message = "the same" if same_code else "the library's source differs, so bits may differ"
    yield Link("code", True if same_code else None, message)


def _compared_parameters(entry: Entry, found: str, links: list[Link]) -> Link:
    if found == entry.parameters_after:
        return Link("parameters", True, _EQUAL)
    reasons = [link.name for link in links if link.holds is None and link.name != "dataset"]
    message = f"training again gives {found[:12]}, not the recorded {entry.parameters_after[:12]}"
    if reasons:
        message += f"; {' and '.join(reasons)} differ, which may be why"
    return Link("parameters", False, message)
