"""The work of a study that is still to be done: what its store does not hold yet.

Design: a plan lists the trainings as the study will call them, so that the store can be asked for
each by its address. Rejected: dry runs of the studies; every step of theirs would need a form that
does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from unroll.checkpoint import Store
from unroll.data.forget import retain_ids
from unroll.evaluation.cohorts import CohortStudy
from unroll.evaluation.study import NULL_SEED, Study, method_identity
from unroll.evaluation.work import Work, tangents, training, unlearning
from unroll.training.estimate import is_finished
from unroll.training.record import Record
from unroll.training.run import check_inputs, run_identity
from unroll.training.spec import TrainSpec, description_hash


class Training(NamedTuple):
    """A run of a study, by the arguments of `train`.

    Attributes:
      spec: how.
      schedule: int32 `[T, B]`.
      seed: of the run.
      weights: `[N]`, `None` for ones.
      record: which states are kept.
    """

    spec: TrainSpec
    schedule: np.ndarray
    seed: int
    weights: np.ndarray | None = None
    record: Record = Record()


def study_trainings(study: Study) -> Iterator[Training]:
    """All runs of a study on its training set: independents, originals, twins; see `run_study`."""
    retained = retain_ids(study.forget, len(study.train))
    for seed in study.independent_seeds:
        schedule = study.schedule(seed, retained)
        yield Training(study.independent_spec or study.spec, schedule, seed)
    twin = without_ids(len(study.train), study.forget)
    for seed in study.train_seeds:
        schedule = study.schedule(seed)
        yield Training(study.spec, schedule, seed, record=Record(every=study.record_every))
        yield Training(study.spec, schedule, seed, twin)


def study_work(study: Study, store: Store | None = None) -> Iterator[Work]:
    """Trainings and uses of methods of a study; see `run_study`."""
    everyone, spec = study.train, study.spec
    for run in study_trainings(study):
        options = dict(seed=run.seed, weights=run.weights, record=run.record)
        if not is_finished(store, run.spec, everyone, run.schedule, **options):
            in_memory = run.record.every and store is None
            kept = run.record.snapshot_steps(len(run.schedule)) if in_memory else ()
            yield training(run.spec, everyone, run.schedule, snapshots=len(kept))
    record = Record(every=study.record_every)
    for seed in study.train_seeds:
        schedule = study.schedule(seed)
        kept = record.snapshot_steps(len(schedule))
        identity = run_identity(spec, everyone, seed, *check_inputs(spec, everyone, schedule, None))
        address = description_hash(identity)
        for method in study.compared:
            for method_seed in study.method_seeds:
                asked = method_identity(method, method_seed, address, kept, study.forget)
                if store is None or 0 not in store.steps(description_hash(asked)):
                    yield unlearning(method, spec, everyone, schedule, study.epochs)


def cohort_work(study: CohortStudy, store: Store | None = None) -> Iterator[Work]:
    """Trainings and tangents of a study of cohorts; see `run_cohort_study`."""
    everyone, spec = study.train, study.spec
    independent = study.independent_spec or spec
    largest = max(study.union_sizes)
    for index, seed in enumerate(study.train_seeds):
        schedule = study.schedule(seed)
        unions = [study.ids(study.union(seed, size)) for size in study.union_sizes]
        for weights in (None, *(without_ids(len(everyone), ids) for ids in unions)):
            if not is_finished(store, spec, everyone, schedule, seed=seed, weights=weights):
                yield training(spec, everyone, schedule)
        null = NULL_SEED + index
        rest = retain_ids(study.ids(study.union(seed, largest)), len(everyone))
        other = study.schedule(null, rest)
        if not is_finished(store, independent, everyone, other, seed=null):
            yield training(independent, everyone, other)
        for order in study.orders:
            count = len(study.cohorts)
            yield tangents(spec, everyone, schedule, count, order, study.group_size)


def without_ids(count: int, ids: np.ndarray) -> np.ndarray:
    """Example weights `[count]` that are 0 on some ids and 1 elsewhere."""
    weights = np.ones(count, np.float32)
    weights[ids] = 0.0
    return weights
