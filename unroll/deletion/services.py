"""Models that forget, as a server sees them: immutable, each deletion gives another one.

    after, work = service.without([17, 4])                        exact
    after, work = service.approximately([17, 4], "taylor")        until the next exact one
    service.predict(dataset)                                      scores [M, C]

`SisaService` is a SISA system, `SingleModel` one run, whose exact deletion is the weighted run with
zero weights: schedule and seed are kept, and the compiled program too, since weights are an
argument of it.

Design: a model is a pure function of what was removed, and an approximate one of that at the last
exact point besides: every approximation starts from the last exact run and takes back all that was
removed since, at once. So an application that was killed is done again and gives the same bits, in
whatever groups the deletions came; and the error of an approximation does not build up on that of
the one before. Rejected: approximating from the last approximation, which is cheaper by nothing
(methods read the recorded run, which an approximate model does not have) and depends on the groups.

Methods that read retained examples or statistics of the training set are refused: both are taken
from the recorded run's data, where examples of former deletions still lie.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from unroll import methods, tree
from unroll.checkpoint import Store
from unroll.data.dataset import Dataset
from unroll.data.ids import IdsLike, as_ids
from unroll.deletion import lineage
from unroll.deletion.aggregation import aggregate
from unroll.deletion.entry import Entry
from unroll.deletion.evidence import (
    AnyRecipe,
    Recipe,
    deletion_entry,
    parameter_hash,
    run_entry,
)
from unroll.deletion.evidence_sisa import sisa_entry, sisa_run_entry
from unroll.deletion.lineage_sisa import purge_removed, record_sisa
from unroll.deletion.sisa import Sisa, SisaPlan
from unroll.errors import InputError
from unroll.problem import Problem, Unlearned
from unroll.training.predict import predict
from unroll.training.record import Record
from unroll.training.run import Progress, Run, environment, run_identity, train
from unroll.training.spec import TrainSpec
from unroll.types import Params, PyTree

_UNREADABLE = {"retain", "held_out", "statistics"}
_LOOKED_AT = {"run", "forget", *_UNREADABLE}
WEIGHTED = True
"""Batch normalisation of this library weighs its statistics, see `models.layers.BatchNorm`. Another
one lets deleted examples through, and a model that has it must not be served by `SingleModel`."""


class Work(NamedTuple):
    """What a deletion took, and what an approximate one says of itself.

    Attributes:
      example_gradients: evaluations, whatever of them a store held already.
      seconds: of the work, compilation not counted.
      estimates: of an approximation: `distance`, how far it moved from the last exact model, and
        every number that the method's `info` holds, but for measured seconds, which no policy may
        decide on. Empty for an exact deletion.
    """

    example_gradients: float
    seconds: float
    estimates: Mapping[str, float] = {}


class Service(Protocol):
    """What a server needs of a model.

    Attributes:
      examples: size of the training set.
      removed: ids that the model is to be without, exactly or not, int64 ascending.
      hash: of the model as it is served, hex.
    """

    examples: int
    removed: np.ndarray
    hash: str

    def describe(self) -> dict[str, Any]:
        """What determines the model besides what was removed, JSON-able."""

    def without(self, ids: IdsLike, *, progress: Progress | None = None) -> tuple[Service, Work]:
        """The exact model without these examples, and without all that was removed before."""

    def approximately(
        self, ids: IdsLike, method: str, *, progress: Progress | None = None
    ) -> tuple[Service, Work]:
        """An approximation of it."""

    def check_method(self, method: str) -> None:
        """Raises `InputError` if it cannot be approximated by this method."""

    def predict(self, dataset: Dataset) -> np.ndarray:
        """Scores `[M, C]` of the classes."""


class Approximation(NamedTuple):
    """A model that took ids back approximately, from the last exact run."""

    ids: np.ndarray
    params: Params
    model_state: PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class SingleModel:
    """One run; see the module docstring.

    Attributes:
      run: the last exact one. Its weights are 0 for what was deleted and 1 for all else.
      record: which states of later runs to keep, as methods need them; of none by default.
      store: where runs are kept, so that a server that starts again need not train.
      approximation: what has been taken back since; `None` where the run itself is served.
      seed: of the methods, where they draw anything.

    Raises:
      InputError: if the run has other weights.
    """

    run: Run
    record: Record = Record()
    store: Store | None = None
    approximation: Approximation | None = None
    seed: int = 0

    def __post_init__(self):
        if not np.isin(self.run.weights, (0.0, 1.0)).all():
            raise InputError(
                "a run with weights other than 0 and 1 cannot be served; train it without weights"
            )

    @property
    def examples(self) -> int:
        """Size of the training set."""
        return len(self.run.dataset)

    @functools.cached_property
    def deleted(self) -> np.ndarray:
        """Ids that are gone exactly, ascending."""
        return np.flatnonzero(self.run.weights == 0).astype(np.int64)

    @functools.cached_property
    def removed(self) -> np.ndarray:
        """Those, and the ids that are gone approximately, ascending."""
        return np.union1d(self.deleted, self._since)

    @property
    def _since(self) -> np.ndarray:
        return np.zeros(0, np.int64) if self.approximation is None else self.approximation.ids

    @property
    def params(self) -> Params:
        """Parameters that are served."""
        if self.approximation is not None:
            return self.approximation.params
        return self.run.state.params

    @property
    def model_state(self) -> PyTree:
        """Other variables that are served."""
        if self.approximation is not None:
            return self.approximation.model_state
        return self.run.state.model_state

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of parameters and other variables, as the ledger has it."""
        return parameter_hash(self.params, self.model_state)

    def describe(self) -> dict[str, Any]:
        """See `describe_single`."""
        run = self.run
        recipe = run.spec, run.dataset, run.schedule, run.seed, run.initial
        return describe_single(*recipe, record=self.record, method_seed=self.seed)

    def without(
        self, ids: IdsLike, *, progress: Progress | None = None
    ) -> tuple[SingleModel, Work]:
        """The run with weight 0 for these ids and for all that was removed before."""
        new = self._new(ids)
        run, weights = self.run, self.run.weights.copy()
        weights[np.union1d(new, self._since)] = 0.0
        if not weights.any():
            raise InputError("no example would be left; retain at least one")
        twin = train(
            run.spec,
            run.dataset,
            run.schedule,
            seed=run.seed,
            weights=weights,
            initial=None if run.initial is None else run.snapshots[0],
            record=self.record,
            store=self.store,
            progress=progress,
        )
        made = dataclasses.replace(self, run=twin, approximation=None)
        return made, Work(twin.example_gradients, twin.seconds)

    def approximately(
        self, ids: IdsLike, method: str, *, progress: Progress | None = None
    ) -> tuple[SingleModel, Work]:
        """The last exact run, from which a method takes back all that was removed since."""
        chosen = approximate_method(method)
        since = np.union1d(self._since, self._new(ids))
        problem = Problem(self.run, since, store=self.store)
        result = chosen(jax.random.key(self.seed), problem, progress)
        made = Approximation(since, result.params, result.model_state)
        moved = tree.distance(result.params, self.run.state.params)
        numbers = {k: float(v) for k, v in result.info.items() if _is_estimate(k, v)}
        work = Work(result.example_gradients, result.seconds, {**numbers, "distance": moved})
        return dataclasses.replace(self, approximation=made), work

    def check_method(self, method: str) -> methods.Method:
        """The method of a text, tried once on no example at all.

        Raises:
          InputError: if there is none, it reads what may hold deleted examples, or it does not go
            with the run. Found at the first deletion, that would be too late: it is accepted then.
        """
        chosen = approximate_method(method)
        chosen(jax.random.key(self.seed), Problem(self.run, [], store=self.store))
        return chosen

    def _new(self, ids: IdsLike) -> np.ndarray:
        new = np.unique(as_ids(ids, self.examples, name="deletion"))
        again = np.intersect1d(new, self.removed)
        if len(again):
            raise InputError(f"deletion: id {again[0]} is already deleted; leave it out")
        return new

    def predict(self, dataset: Dataset) -> np.ndarray:
        """Logits float32 `[M, C]`."""
        return predict(self.run.spec, self.params, self.model_state, dataset)

    def training_entry(self, salt: bytes) -> tuple[Entry, Recipe]:
        """What a ledger begins with."""
        return run_entry(self.run, salt)

    def deletion_entry(self, after: SingleModel, salt: bytes) -> tuple[Entry, Recipe]:
        """What a ledger says of the step from the last exact run to another exact one."""
        state = after.run.state
        problem = Problem(self.run, np.setdiff1d(after.deleted, self.deleted))
        result = Unlearned(state.params, state.model_state, after.run.example_gradients)
        return deletion_entry(problem, result, "retrain", salt)

    def record_lineage(self) -> None:
        """Writes down in the store what the run depends on."""
        lineage.record_run(_needed(self.store), self.run, weighted_statistics=WEIGHTED)

    def purge(self) -> None:
        """Removes from the store all that depends on deleted examples, and proves it."""
        purge_removed(_needed(self.store), self.run, weighted_statistics=WEIGHTED)


@dataclasses.dataclass(frozen=True, eq=False)
class SisaService:
    """A SISA system, which deletes exactly and only so.

    Attributes:
      sisa: the system.
      aggregation: how its models make one prediction.

    Raises:
      InputError: on an unknown aggregation.
    """

    sisa: Sisa
    aggregation: str = "vote"

    def __post_init__(self):
        aggregate(np.zeros((1, 1, 2)), self.aggregation)

    @property
    def examples(self) -> int:
        """Size of the training set."""
        return len(self.sisa.plan.dataset)

    @property
    def removed(self) -> np.ndarray:
        """Ids that are gone, ascending."""
        return self.sisa.removed

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the states of all constituents."""
        return self.sisa.hash

    def describe(self) -> dict[str, Any]:
        """See `describe_sisa`."""
        sisa = self.sisa
        return describe_sisa(sisa.plan, sisa.mode, sisa.width, self.aggregation)

    def without(
        self, ids: IdsLike, *, progress: Progress | None = None
    ) -> tuple[SisaService, Work]:
        """The system of which the stages that read these ids were trained again."""
        sisa, cost = self.sisa.delete(ids, progress=progress)
        work = Work(cost.example_gradients, cost.seconds)
        return dataclasses.replace(self, sisa=sisa), work

    def approximately(
        self, ids: IdsLike, method: str, *, progress: Progress | None = None
    ) -> tuple[SisaService, Work]:
        """Refused, as `check_method` says."""
        del ids, progress
        raise _only_exact(method)

    def check_method(self, method: str) -> None:
        """There is none.

        Raises:
          InputError: always.
        """
        raise _only_exact(method)

    def predict(self, dataset: Dataset) -> np.ndarray:
        """Scores float64 `[M, C]`."""
        return self.sisa.predict(dataset, self.aggregation)

    def training_entry(self, salt: bytes) -> tuple[Entry, AnyRecipe]:
        """What a ledger begins with."""
        return sisa_run_entry(self.sisa, salt)

    def deletion_entry(self, after: SisaService, salt: bytes) -> tuple[Entry, AnyRecipe]:
        """What a ledger says of the step from this system to another one."""
        ids = np.setdiff1d(after.removed, self.removed)
        return sisa_entry(self.sisa, after.sisa, ids, salt)

    def record_lineage(self) -> None:
        """Writes down in the store what each stage depends on."""
        record_sisa(_needed(self.sisa.store), self.sisa)

    def purge(self) -> None:
        """Removes from the store all that depends on deleted examples, and proves it."""
        purge_removed(_needed(self.sisa.store), self.sisa)


def describe_single(
    spec: TrainSpec,
    dataset: Dataset,
    schedule: np.ndarray,
    seed: int,
    initial: str | None = None,
    *,
    record: Record,
    method_seed: int = 0,
) -> dict[str, Any]:
    """What determines a single model and its approximations, before it is trained.

    That is the identity of the run with all its examples, and what methods read besides: the states
    that are kept, and their own seed.
    """
    ones = np.ones(len(dataset), np.float32)
    return {
        "kind": "single",
        "record": dataclasses.asdict(record),
        "method_seed": method_seed,
        **run_identity(spec, dataset, seed, schedule, ones, initial),
    }


def describe_sisa(plan: SisaPlan, mode: str, width: int, aggregation: str) -> dict[str, Any]:
    """What determines a SISA system and its predictions, before it is trained."""
    return {
        "kind": "sisa",
        "dataset": plan.dataset.fingerprint,
        **plan.describe(),
        "mode": mode,
        "width": width,
        "aggregation": aggregation,
        **environment(plan.spec),
    }


def approximate_method(text: str) -> methods.Method:
    """The method of a text, if a served model can be approximated by it.

    Raises:
      InputError: if there is none, it looks at no example, or at what may hold deleted ones.
    """
    chosen = methods.method(text)
    if not chosen.needs & _LOOKED_AT:
        raise InputError(f"{text} takes nothing back; choose another method, or batches")
    unreadable = sorted(chosen.needs & _UNREADABLE)
    if unreadable:
        raise InputError(
            f"{text} reads {' and '.join(unreadable)}, where examples of former deletions still "
            "lie; choose a method that reads the run or the forget set alone"
        )
    return chosen


def _is_estimate(name: str, value: Any) -> bool:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return number and not name.endswith("seconds")


def _only_exact(method: str) -> InputError:
    return InputError(
        f"a SISA system deletes exactly, not by {method}; choose the policy immediately or "
        "batches, or serve a single model"
    )


def _needed(store: Store | None) -> Store:
    if store is None:
        raise InputError("a purge needs a store; give the service one")
    return store
