"""What online tangents cost, and how close the deletion of cohorts by addition comes to retraining.

For each training seed: train once with the tangents of all cohorts, delete growing unions of them,
and compare each with the twin that was retrained without the union. The unions are nested, one
cohort, two, four, as requests come in; which cohorts they hold differs from seed to seed.

Beside every deletion stand doing nothing, the twin, and an independent retrain (another key, the
forgotten examples absent from its schedule), judged as if it were the result of a deletion.

Design: the rows of a union are a section of their own (`forget="cohorts(union=4)"`), so every
report of the library can read them; what all cohorts cost together has the section
`cohorts(registered=20)`. Rejected: an independent retrain per union. It lies as far from the twin
whatever a small union holds, and would double the retraining; one without the largest union, which
has seen none of the smaller ones either, is judged for all.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from unroll.calls import format_call
from unroll.checkpoint import Store
from unroll.checks import whole_number
from unroll.data.cohorts import register_cohorts
from unroll.data.dataset import Dataset
from unroll.data.forget import retain_ids
from unroll.data.ids import make_generator
from unroll.data.schedule import make_schedule
from unroll.errors import DivergenceError, InputError
from unroll.evaluation.records import NULL, ORIGINAL, RETRAIN, Record
from unroll.evaluation.study import INDEPENDENT_SEED, NULL_SEED, TaskProgress, silent
from unroll.metrics.outputs import accuracy
from unroll.metrics.verification import relative_verification_error, verification_error
from unroll.training.predict import predict
from unroll.training.run import Run, train
from unroll.training.spec import TrainSpec
from unroll.types import TrainState
from unroll.unrolling.tangents import CohortTangents, train_with_tangents

TANGENTS = "cohort_tangents"
"""Method name of a deletion by adding tangents."""
COSTS = ("training_seconds_per_cohort", "training_gradients_per_cohort", "bytes_per_cohort")
"""Metrics of what a cohort costs before any deletion; the first two in trainings of the model."""
_REPETITIONS = 5


@dataclasses.dataclass(frozen=True, eq=False)
class CohortStudy:
    """What to run.

    Attributes:
      name: name of the experiment, as it appears in the records.
      train: the training set.
      test: the test set.
      spec: how to train.
      cohorts: disjoint sets of ids by name.
      model_name: name of the model in the records.
      orders: orders of the tangents, each trained for itself so that its cost is measured.
      union_sizes: numbers of cohorts to delete together.
      epochs: passes over the training set.
      batch_size: slots per step.
      partial: what happens to the last batch of an epoch, `pad` or `drop`.
      train_seeds: one original model each.
      group_size: tangents in one vmap, see `train_with_tangents`.
      independent_spec: how to train without the largest union, where that differs from `spec`.

    Raises:
      InputError: on bad cohorts, an order other than 1 and 2, a union of more cohorts than there
        are, or no seed.
    """

    name: str
    train: Dataset
    test: Dataset
    spec: TrainSpec
    cohorts: Mapping[str, np.ndarray]
    model_name: str
    orders: tuple[int, ...] = (1, 2)
    union_sizes: tuple[int, ...] = (1, 2, 4, 8)
    epochs: int = 10
    batch_size: int = 32
    partial: str = "pad"
    train_seeds: tuple[int, ...] = (0, 1, 2)
    group_size: int | None = None
    independent_spec: TrainSpec | None = None

    def __post_init__(self):
        registered = register_cohorts(self.cohorts, len(self.train))
        object.__setattr__(self, "cohorts", registered)
        if not self.orders or not set(self.orders) <= {1, 2}:
            raise InputError(f"orders of the tangents are 1 and 2; got {self.orders}")
        if not self.union_sizes or not self.train_seeds:
            raise InputError("a study needs at least one size of union and one training seed")
        for size in self.union_sizes:
            if whole_number("union_sizes", size) > len(registered):
                raise InputError(f"a union of {size} cohorts of {len(registered)}: register more")
        if not all(0 <= seed < INDEPENDENT_SEED for seed in self.train_seeds):
            raise InputError(f"training seeds must lie between 0 and {INDEPENDENT_SEED - 1}")
        largest = sum(sorted(map(len, registered.values()))[-max(self.union_sizes) :])
        if largest >= len(self.train):
            raise InputError("the largest union is the whole training set; retain some of it")

    def union(self, seed: int, size: int) -> tuple[str, ...]:
        """Names of the cohorts that are deleted: the first `size` in an order of the seed's."""
        order = make_generator(seed, "unions").permutation(len(self.cohorts))
        names = list(self.cohorts)
        return tuple(names[number] for number in order[:size])

    def ids(self, names: tuple[str, ...]) -> np.ndarray:
        """Ids of all examples of some cohorts."""
        return np.concatenate([self.cohorts[name] for name in names])

    def schedule(self, seed: int, ids: int | np.ndarray | None = None) -> np.ndarray:
        """Schedule of a seed, over all training examples or the given ids."""
        ids = len(self.train) if ids is None else ids
        return make_schedule(seed, ids, self.batch_size, self.epochs, partial=self.partial)


def run_cohort_study(
    study: CohortStudy, store: Store | None = None, progress: TaskProgress = silent
) -> Iterator[list[Record]]:
    """Runs a study and yields its records as soon as they exist.

    With a store everything that is finished is read back, so a killed study goes on where it was.

    Args:
      study: what to run.
      store: where runs and tangents live.
      progress: opens a progress display for each task.

    Raises:
      DivergenceError: if a model diverges. Tangents that do are rows of missing values.
    """
    for seed in study.train_seeds:
        yield from _SeedStudy(study, seed, store, progress).records()


class _SeedStudy:
    """The part of a study that belongs to one training seed."""

    def __init__(self, study: CohortStudy, seed: int, store: Store | None, progress: TaskProgress):
        self.study, self.seed, self.store, self.progress = study, seed, store, progress
        self.schedule = study.schedule(seed)

    def records(self) -> Iterator[list[Record]]:
        run = self._train("train", self.schedule, self.seed)
        tangents = {order: self._tangents(order) for order in self.study.orders}
        null = self._independent()
        seconds = [run.seconds]
        for size in self.study.union_sizes:
            names = self.study.union(self.seed, size)
            weights = np.ones(len(self.study.train), np.float32)
            weights[self.study.ids(names)] = 0
            title = f"retrain without {size}"
            twin = self._train(title, self.schedule, self.seed, weights=weights)
            seconds.append(twin.seconds)
            yield self._references(names, run, twin, null)
            for order, result in tangents.items():
                yield self._deletion(names, order, result, run, twin)
        # Trainings of one length; the median, since those of small models take milliseconds.
        for order, result in tangents.items():
            yield self._costs(order, result, run, float(np.median(seconds)))

    def _train(self, title, schedule, seed, spec=None, weights=None) -> Run:
        study = self.study
        with self.progress(f"seed {self.seed}: {title}") as report:
            settings = dict(seed=seed, weights=weights, store=self.store, progress=report)
            return train(spec or study.spec, study.train, schedule, **settings)

    def _tangents(self, order: int) -> CohortTangents | str:
        """The tangents of all cohorts, or why there are none."""
        study = self.study
        with self.progress(f"seed {self.seed}: tangents of order {order}") as report:
            try:
                return train_with_tangents(
                    study.spec,
                    study.train,
                    self.schedule,
                    study.cohorts,
                    seed=self.seed,
                    order=order,
                    group_size=study.group_size,
                    store=self.store,
                    progress=report,
                )
            except DivergenceError as error:
                return str(error)

    def _independent(self) -> Run:
        """A retrain under another key, without the largest union."""
        study = self.study
        seed = NULL_SEED + study.train_seeds.index(self.seed)
        ids = study.ids(study.union(self.seed, max(study.union_sizes)))
        schedule = study.schedule(seed, retain_ids(ids, len(study.train)))
        return self._train("independent retrain", schedule, seed, spec=study.independent_spec)

    def _references(self, names, run: Run, twin: Run, null: Run) -> list[Record]:
        note = None
        if len(names) < max(self.study.union_sizes):
            note = f"retrained without the largest union, of {max(self.study.union_sizes)} cohorts"
        rows = []
        for method, model, why in (
            (ORIGINAL, run, None),
            (RETRAIN, twin, None),
            (NULL, null, note),
        ):
            costs = dict(
                cost_ratio_gradients=model.example_gradients / twin.example_gradients,
                cost_ratio_seconds=model.seconds / twin.seconds,
                seconds=model.seconds,
            )
            if method == ORIGINAL:
                costs = dict(cost_ratio_gradients=0.0, cost_ratio_seconds=0.0, seconds=0.0)
            rows += self._judged(names, model.state, run, twin, why, method=method, **costs)
        return rows

    def _deletion(self, names, order, result, run: Run, twin: Run) -> list[Record]:
        identity = dict(method=TANGENTS, hyperparameters={"order": order})
        if isinstance(result, str):
            missing = self._judged(names, run.state, run, twin, None, **identity)
            return [dataclasses.replace(row, value=None, note=result) for row in missing]
        state, seconds = _timed(lambda: result.delete(names))
        return self._judged(
            names,
            state,
            run,
            twin,
            result.info.get("warning"),
            cost_ratio_gradients=0.0,
            cost_ratio_seconds=seconds / twin.seconds,
            seconds=seconds,
            **identity,
        )

    def _judged(self, names, state: TrainState, run, twin, note, **fields) -> list[Record]:
        original, oracle = run.state.params, twin.state.params
        scale = verification_error(original, oracle)
        found = {
            "verification_error": verification_error(state.params, oracle),
            "no_unlearning_distance": scale,
            "relative_verification_error": relative_verification_error(
                state.params, oracle, original
            )
            if scale
            else None,
        }
        logits = predict(self.study.spec, state.params, state.model_state, self.study.test)
        common = dict(
            forget=format_call("cohorts", {"union": len(names)}),
            forget_size=len(self.study.ids(names)),
            **fields,
        )
        rows = [
            self._record(
                metric=metric,
                value=value,
                oracle="twin",
                note=note if value is not None else "not defined: original and twin are equal",
                **common,
            )
            for metric, value in found.items()
        ]
        value = accuracy(logits, self.study.test.labels)
        return [
            *rows,
            self._record(metric="accuracy", split="test", value=value, note=note, **common),
        ]

    def _costs(self, order: int, result: CohortTangents | str, run, training) -> list[Record]:
        count, note, values = len(self.study.cohorts), None, (None,) * len(COSTS)
        if isinstance(result, str):
            note = result
        else:
            values = (
                result.seconds / training / count,
                result.example_gradients / run.example_gradients / count,
                result.bytes_per_cohort,
            )
        return [
            self._record(
                forget=format_call("cohorts", {"registered": count}),
                forget_size=sum(map(len, self.study.cohorts.values())),
                method=TANGENTS,
                hyperparameters={"order": order},
                metric=metric,
                value=value,
                note=note,
            )
            for metric, value in zip(COSTS, values, strict=True)
        ]

    def _record(self, **fields: Any) -> Record:
        defaults = dict(
            experiment=self.study.name,
            dataset=self.study.train.name,
            model=self.study.model_name,
            hyperparameters={},
            train_seed=self.seed,
            method_seed=0,
            split=None,
        )
        return Record(**{**defaults, **fields})


def _timed(function):
    """The result of a function, and its median seconds over a few calls."""
    seconds = []
    for _ in range(_REPETITIONS):
        begin = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - begin)
    return result, float(np.median(seconds))
