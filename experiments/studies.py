"""Running a study so that what it stores can be purged: what every experiment with studies shares.

Design: the lineage of a training is written before it is trained, so a run that is killed leaves
nothing that counts as depending on everything. Rejected: a report's folder recorded here too; only
an experiment knows which other data its pages are made of.
"""

from collections.abc import Iterator

import unroll
from unroll.deletion.lineage import record_training
from unroll.evaluation.plans import study_trainings
from unroll.evaluation.records import Record
from unroll.evaluation.study import TaskProgress


def run_recorded(
    study: unroll.Study, store: unroll.Store, progress: TaskProgress
) -> Iterator[list[Record]]:
    """`unroll.run_study`, with what each training depends on, see `unroll.deletion.purge`."""
    for each in study_trainings(study):
        # Models of configs weight the statistics of their batches, see `models.layers.BatchNorm`.
        options = dict(seed=each.seed, weights=each.weights, weighted_statistics=True)
        record_training(store, each.spec, study.train, each.schedule, **options)
    yield from unroll.run_study(study, store, progress)
