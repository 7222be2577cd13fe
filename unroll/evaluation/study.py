"""A study: one deletion request, several training seeds, several methods, all compared honestly.

For each training seed: train the original with recording, retrain its twin, let every method
unlearn, and judge each result against the twin and against independently retrained models. The
rows `original` (do nothing), `retrain` (the twin) and `retrain_vs_retrain` (an independent retrain
judged as if it were unlearned) are always there, whatever methods were asked for.

Two oracles, never mixed (field `oracle` of the records):
- `twin`: same key, same schedule, forget weights 0. Distances between parameters are measured
  against it, and the gaps to it are free of seed noise.
- `independent`: other keys, the forget set absent from the schedule. Gaps to their mean are what an
  observer without the training key could see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from unroll import methods, tree
from unroll.checkpoint import FORMAT, Store
from unroll.data.dataset import Dataset
from unroll.data.forget import check_forget_ids, retain_ids
from unroll.data.schedule import make_schedule
from unroll.errors import DivergenceError, InputError
from unroll.evaluation.judge import Judge, Model
from unroll.evaluation.records import NULL, ORIGINAL, RETRAIN, Record
from unroll.problem import Method, Problem, Unlearned
from unroll.training import record as recording
from unroll.training.run import Progress, Run, source_hash, train
from unroll.training.spec import TrainSpec, description_hash

INDEPENDENT_SEED = 1_000_000
"""Seeds of the independent oracles start here; training seeds must lie below."""
NULL_SEED = 2_000_000
"""Seeds of the retrains of the null row start here."""


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """What to run.

    Attributes:
      name: name of the experiment, as it appears in the records.
      train: the training set.
      test: the test set.
      spec: how to train.
      forget: ids to forget.
      forget_description: what was forgotten, in words, for example `random(fraction=0.01)`.
      model_name: name of the model in the records.
      methods: methods to compare, as texts that `unroll.methods.method` reads, or built; `original`
        and `retrain` are always there, named or not.
      epochs: passes over the training set.
      batch_size: slots per step.
      partial: what happens to the last batch of an epoch, `pad` or `drop`.
      train_seeds: one original model each; schedule, initialisation and noise follow from it.
      method_seeds: one application of every method each.
      independents: number of independent oracles, at least 2. The null row has retrains of its
        own beside them, one for each training seed: oracles judged against one another would have
        gaps that cancel.
      independent_spec: how to train without the forget set, where that differs from `spec`: a
        learning-rate schedule that ends with the run needs fewer steps then.
      record_every: steps between snapshots of the original run.

    Raises:
      InputError: on bad forget ids, an unknown method, no seed or one twice, or fewer than two
        independents.
    """

    name: str
    train: Dataset
    test: Dataset
    spec: TrainSpec
    forget: np.ndarray
    forget_description: str
    model_name: str
    methods: tuple[str | Method, ...] = ("taylor(order=1)", "taylor(order=2)")
    epochs: int = 10
    batch_size: int = 32
    partial: str = "pad"
    train_seeds: tuple[int, ...] = (0, 1, 2)
    method_seeds: tuple[int, ...] = (0,)
    independents: int = 3
    independent_spec: TrainSpec | None = None
    record_every: int = 50

    def __post_init__(self):
        ids = check_forget_ids(self.forget, len(self.train))
        object.__setattr__(self, "forget", ids)
        if not self.train_seeds or not self.method_seeds:
            raise InputError("a study needs at least one training seed and one method seed")
        if self.independents < 2:
            raise InputError("independents must be 2 or more: one retrain is no distribution")
        if not all(0 <= seed < INDEPENDENT_SEED for seed in self.train_seeds):
            raise InputError(f"training seeds must lie between 0 and {INDEPENDENT_SEED - 1}")
        if len(set(self.train_seeds)) < len(self.train_seeds):
            raise InputError(
                f"train_seeds={tuple(self.train_seeds)} has a seed twice: a copy is no repetition"
            )
        _ = self.compared

    @property
    def compared(self) -> list[Method]:
        """The methods besides `original` and `retrain`, which every study has anyway."""
        chosen = [methods.method(each) if isinstance(each, str) else each for each in self.methods]
        return [method for method in chosen if method.name not in (ORIGINAL, RETRAIN)]

    @property
    def independent_seeds(self) -> list[int]:
        """Seeds of the independent oracles, then those of the retrains of the null row."""
        seeds = [INDEPENDENT_SEED + index for index in range(self.independents)]
        return seeds + [NULL_SEED + index for index in range(len(self.train_seeds))]

    def schedule(self, seed: int, ids: int | np.ndarray | None = None) -> np.ndarray:
        """Schedule of a training seed, over all training examples or the given ids."""
        ids = len(self.train) if ids is None else ids
        return make_schedule(seed, ids, self.batch_size, self.epochs, partial=self.partial)


TaskProgress = Callable[[str], contextlib.AbstractContextManager[Progress]]
"""Opens a progress display for one task; see `unroll.evaluation.progress`."""


@contextlib.contextmanager
def silent(description: str) -> Iterator[Progress]:
    """A progress display that shows nothing."""
    del description
    yield lambda done, total: None


def run_study(
    study: Study, store: Store | None = None, progress: TaskProgress = silent
) -> Iterator[list[Record]]:
    """Runs a study and yields the records of each model as soon as it is judged.

    With a store everything that is finished is read back, so a killed study goes on where it was.

    Args:
      study: what to run.
      store: where runs, retrained models and unlearned models live.
      progress: opens a progress display for each task.

    Raises:
      DivergenceError: if an original or a retrained model diverges. A method that diverges, or
        whose assumptions the run does not meet, gets records with a note instead of a value.
    """
    judge = Judge(study.spec, study.train, study.test, study.forget)
    seeds, runs = study.independent_seeds, []
    for number, seed in enumerate(seeds, start=1):
        with progress(f"independent retrain {number}/{len(seeds)}") as report:
            runs.append(_train_independent(study, seed, store, report))
    models = [judge.model(run.state.params, run.state.model_state) for run in runs]
    oracles, nulls = models[: study.independents], models[study.independents :]
    for seed, null, run in zip(study.train_seeds, nulls, runs[study.independents :], strict=True):
        yield from _SeedStudy(study, seed, judge, oracles, store, progress).records(null, run)


def _train_independent(study, seed, store, report) -> Run:
    retain = retain_ids(study.forget, len(study.train))
    return train(
        study.independent_spec or study.spec,
        study.train,
        study.schedule(seed, retain),
        seed=seed,
        store=store,
        progress=report,
    )


def _train(study, seed, schedule, store, report, weights=None, every=0) -> Run:
    return train(
        study.spec,
        study.train,
        schedule,
        seed=seed,
        weights=weights,
        record=recording.Record(every=every),
        store=store,
        progress=report,
    )


class _SeedStudy:
    """The part of a study that belongs to one training seed."""

    def __init__(self, study, seed, judge, independents, store, progress):
        self.study, self.seed, self.judge = study, seed, judge
        self.independents, self.store, self.progress = independents, store, progress
        schedule = study.schedule(seed)
        with progress(f"seed {seed}: train") as report:
            self.run = _train(study, seed, schedule, store, report, every=study.record_every)
        self.problem = Problem(self.run, study.forget, store=store)
        weights = self.problem.twin_weights
        with progress(f"seed {seed}: retrain") as report:
            self.twin_run = _train(study, seed, schedule, store, report, weights=weights)
        self.original, self.twin = (
            judge.model(run.state.params, run.state.model_state)
            for run in (self.run, self.twin_run)
        )

    def records(self, null: Model, null_run: Run) -> Iterator[list[Record]]:
        yield list(self._curve(ORIGINAL, self.run)) + list(self._curve(RETRAIN, self.twin_run))
        twin = self.twin_run
        for method, model, gradients, seconds in (
            (ORIGINAL, self.original, 0, 0.0),
            (RETRAIN, self.twin, twin.example_gradients, twin.seconds),
            (NULL, null, null_run.example_gradients, null_run.seconds),
        ):
            yield self._row((method, {}, 0), model, self._costs(gradients, seconds))
        for method in self.study.compared:
            for method_seed in self.study.method_seeds:
                yield self._judge(method, method_seed)

    def _judge(self, method: Method, method_seed: int) -> list[Record]:
        identity = (method.name, method.hyperparameters, method_seed)
        try:
            with self.progress(f"seed {self.seed}: {method}") as report:
                result = apply_method(
                    method, method_seed, self.problem, self.store, report, own_kinds=True
                )
            return self._judged(identity, result)
        except (DivergenceError, InputError) as error:
            # A method that fails on this run is a row of missing values; the others are not lost.
            missing = {"value": None, "note": str(error)}
            return [
                dataclasses.replace(record, **missing)
                for record in self._row(identity, self.original, {})
            ]

    def _judged(self, identity, result: Unlearned) -> list[Record]:
        costs = self._costs(result.example_gradients, result.seconds)
        note, own = result.info.get("warning"), result.own
        if own is None:
            model = self.judge.model(result.params, result.model_state)
            return self._row(identity, model, costs, note)
        model, original, twin = (
            self.judge.model(*variables, own.spec)
            for variables in ((result.params, result.model_state), own.original, own.twin)
        )
        return self._row(identity, model, costs, note, (original, twin), own.words)

    def _row(self, identity, model, costs, note=None, coupled=None, own_kind=None) -> list[Record]:
        original, twin = coupled or (self.original, self.twin)
        compared = self.judge.compare(model, original, twin, self.independents, own_kind)
        common = self._common(*identity)
        return [Record(**{"note": note, **found}, **costs, **common) for found in compared]

    def _costs(self, example_gradients: float, seconds: float) -> dict[str, float | None]:
        reference = self.twin_run
        return dict(
            cost_ratio_gradients=example_gradients / reference.example_gradients,
            cost_ratio_seconds=seconds / reference.seconds,
            seconds=seconds,
        )

    def _common(self, method, hyperparameters, method_seed) -> dict[str, Any]:
        return dict(
            experiment=self.study.name,
            dataset=self.study.train.name,
            model=self.study.model_name,
            forget=self.study.forget_description,
            forget_size=len(self.study.forget),
            method=method,
            hyperparameters=hyperparameters,
            train_seed=self.seed,
            method_seed=method_seed,
        )

    def _curve(self, method: str, run: Run, points: int = 200) -> Iterator[Record]:
        """Training losses, averaged over equal stretches so that a long run fits a report.

        Padded batches are left out: their loss is a sum over fewer examples divided by B.
        """
        common = self._common(method, {}, 0)
        full = np.flatnonzero((run.schedule >= 0).all(axis=1))
        steps = full if len(full) else np.arange(run.steps)
        for stretch in np.array_split(steps, min(points, len(steps))):
            value, at = float(np.mean(run.losses[stretch])), float(stretch.mean())
            yield Record(metric="training_loss", split=None, value=value, at=at, **common)


def method_identity(
    method: Method, seed: int, run: str, snapshots: Iterable[int], forget: np.ndarray
) -> dict[str, Any]:
    """What determines the result of a method, as a JSON-able dictionary.

    Args:
      method: with its hyper-parameters; the code of its file counts, and that of the files of the
        methods that it applies (`method.unlearn.methods`).
      seed: of the method's key.
      run: address of the run.
      snapshots: its recorded steps.
      forget: ids to forget.
    """
    return {
        "format": FORMAT,
        "run": run,
        "snapshots": [int(step) for step in snapshots],
        "forget": [int(index) for index in forget],
        "method": method.name,
        "hyperparameters": method.hyperparameters,
        "seed": seed,
        "code": _code(method),
    }


def _code(method: Method) -> Any:
    own = source_hash(inspect.getmodule(method.unlearn))
    inner = getattr(method.unlearn, "methods", ())
    return [own, *map(_code, inner)] if inner else own


def apply_method(
    method: Method,
    seed: int,
    problem: Problem,
    store: Store | None,
    progress: Progress | None,
    *,
    own_kinds: bool = False,
) -> Unlearned:
    """Applies a method, or reads its result back if the store has it.

    The address is the hash of `method_identity`. Models of another kind than the run's are not
    stored here: what they are made of is in the store already.

    Args:
      method: which.
      seed: of its key.
      problem: what to forget.
      store: where results lie.
      progress: called with (steps done, steps in all).
      own_kinds: whether the caller can deal with models that are not of the run's specification.

    Raises:
      InputError: if it cannot, and the method makes one.
      DivergenceError: if the result is not finite.
    """
    if method.own_kind and not own_kinds:
        raise InputError(
            f"{method} makes a model of its own kind, which is judged in a study only "
            "(experiments/unlearn.py); leave it out here"
        )
    if store is None or method.own_kind:
        return method(jax.random.key(seed), problem, progress)
    run = problem.run
    identity = method_identity(method, seed, run.address, run.snapshots, problem.forget)
    address = description_hash(identity)
    state = problem.run.state
    target = {"params": state.params, "model_state": state.model_state}
    entry = store.read(address, 0, target)
    if entry is not None:
        value, metadata = entry
        return Unlearned(**value, **metadata)
    result = method(jax.random.key(seed), problem, progress)
    if not tree.is_finite(result.params):
        raise DivergenceError(f"{method} ended with parameters that are not finite")
    store.describe(address, identity)
    store.write(
        address,
        0,
        {"params": result.params, "model_state": result.model_state},
        {
            "example_gradients": result.example_gradients,
            "info": result.info,
            "seconds": result.seconds,
        },
    )
    return result
