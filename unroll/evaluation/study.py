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
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from unroll import methods, tree
from unroll.checkpoint import FORMAT, Store
from unroll.data.dataset import Dataset
from unroll.data.forget import check_forget_ids, retain_ids
from unroll.data.schedule import make_schedule
from unroll.errors import DivergenceError, InputError
from unroll.evaluation.judge import Judge
from unroll.evaluation.records import NULL, ORIGINAL, RETRAIN, Record
from unroll.problem import Method, Problem, Unlearned
from unroll.training import record as recording
from unroll.training.run import Progress, Run, train
from unroll.training.spec import TrainSpec, description_hash

INDEPENDENT_SEED = 1_000_000
"""Seeds of the independent retrains start here, far from any training seed."""


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
      methods: methods to compare, as `unroll.methods.method` reads them; `original` and `retrain`
        are always there, named or not.
      epochs: passes over the training set.
      batch_size: slots per step.
      partial: what happens to the last batch of an epoch, `pad` or `drop`.
      train_seeds: one original model each; schedule, initialisation and noise follow from it.
      method_seeds: one application of every method each.
      independents: number of independent retrains, at least 2.
      record_every: steps between snapshots of the original run.

    Raises:
      InputError: on bad forget ids, an unknown method, no seed, or fewer than two independents.
    """

    name: str
    train: Dataset
    test: Dataset
    spec: TrainSpec
    forget: np.ndarray
    forget_description: str
    model_name: str
    methods: tuple[str, ...] = ("taylor(order=1)", "taylor(order=2)")
    epochs: int = 10
    batch_size: int = 32
    partial: str = "pad"
    train_seeds: tuple[int, ...] = (0, 1, 2)
    method_seeds: tuple[int, ...] = (0,)
    independents: int = 3
    record_every: int = 50

    def __post_init__(self):
        ids = check_forget_ids(self.forget, len(self.train))
        object.__setattr__(self, "forget", ids)
        if not self.train_seeds or not self.method_seeds:
            raise InputError("a study needs at least one training seed and one method seed")
        if self.independents < 2:
            raise InputError("independents must be 2 or more: the null row compares two retrains")
        for text in self.methods:
            methods.method(text)

    @property
    def compared(self) -> list[Method]:
        """The methods besides `original` and `retrain`, which every study has anyway."""
        chosen = [methods.method(text) for text in self.methods]
        return [method for method in chosen if method.name not in (ORIGINAL, RETRAIN)]

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
      DivergenceError: if an original or a retrained model diverges. A method that diverges gets
        records without a value and a note instead.
    """
    judge = Judge(study.spec, study.train, study.test, study.forget)
    retain = retain_ids(study.forget, len(study.train))
    retrains = []
    for index in range(study.independents):
        seed = INDEPENDENT_SEED + index
        with progress(f"independent retrain {index + 1}/{study.independents}") as report:
            run = _train(study, seed, study.schedule(seed, retain), store, report)
        retrains.append((judge.model(run.state.params, run.state.model_state), run))
    for index, seed in enumerate(study.train_seeds):
        yield from _SeedStudy(study, seed, judge, retrains, store, progress).records(index)


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

    def __init__(self, study, seed, judge, retrains, store, progress):
        self.study, self.seed, self.judge = study, seed, judge
        self.retrains, self.store, self.progress = retrains, store, progress
        self.independents = [model for model, _ in retrains]
        schedule = study.schedule(seed)
        with progress(f"seed {seed}: train") as report:
            self.run = _train(study, seed, schedule, store, report, every=study.record_every)
        self.problem = Problem(self.run, study.forget, study.test, store=store)
        weights = self.problem.twin_weights
        with progress(f"seed {seed}: retrain") as report:
            self.twin_run = _train(study, seed, schedule, store, report, weights=weights)
        self.original, self.twin = (
            judge.model(run.state.params, run.state.model_state)
            for run in (self.run, self.twin_run)
        )

    def records(self, index: int) -> Iterator[list[Record]]:
        yield list(self._curve(ORIGINAL, self.run)) + list(self._curve(RETRAIN, self.twin_run))
        twin = self.twin_run
        yield self._row(ORIGINAL, {}, 0, self.original, self.independents, self._costs(0, 0.0))
        costs = self._costs(twin.example_gradients, twin.seconds)
        yield self._row(RETRAIN, {}, 0, self.twin, self.independents, costs)
        null, null_run = self.retrains[index % len(self.retrains)]
        others = [model for model in self.independents if model is not null]
        costs = self._costs(null_run.example_gradients, null_run.seconds)
        yield self._row(NULL, {}, 0, null, others, costs)
        for method in self.study.compared:
            for method_seed in self.study.method_seeds:
                yield self._judge(method, method_seed)

    def _judge(self, method: Method, method_seed: int) -> list[Record]:
        identity = (method.name, method.hyperparameters, method_seed)
        try:
            with self.progress(f"seed {self.seed}: {method}") as report:
                result = apply_method(method, method_seed, self.problem, self.store, report)
            model = self.judge.model(result.params, result.model_state)
        except DivergenceError as error:
            row = self._common(*identity)
            metric = "relative_verification_error"
            return [
                Record(metric=metric, split=None, value=None, oracle="twin", note=str(error), **row)
            ]
        costs = self._costs(result.example_gradients, result.seconds)
        return self._row(
            *identity, model, self.independents, costs, note=result.info.get("warning")
        )

    def _row(self, method, hyperparameters, method_seed, model, independents, costs, note=None):
        common = self._common(method, hyperparameters, method_seed)
        return [
            Record(**{"note": note, **found}, **costs, **common)
            for found in self.judge.compare(model, self.original, self.twin, independents)
        ]

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


def apply_method(
    method: Method, seed: int, problem: Problem, store: Store | None, progress: Progress | None
) -> Unlearned:
    """Applies a method, or reads its result back if the store has it.

    The address covers the run, the forget set, the method with its hyper-parameters, and the seed.
    """
    if store is None:
        return method(jax.random.key(seed), problem, progress)
    identity = {
        "format": FORMAT,
        "run": problem.run.address,
        "snapshots": [int(step) for step in problem.run.snapshots],
        "forget": [int(index) for index in problem.forget],
        "method": method.name,
        "hyperparameters": method.hyperparameters,
        "seed": seed,
    }
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
