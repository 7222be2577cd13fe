"""Trains with the tangents of registered cohorts, deletes unions of them, compares with retraining.

python experiments/cohorts.py --config=configs/unrolling/cohorts.py

Results go to the workdir: config.json, records.jsonl, cohorts.md, cohorts.png.
"""

import from_config
import launch
import workdir as workdirs
from absl import flags

import unroll
from unroll.calls import parse_call
from unroll.data.cohorts import group_cohorts, random_cohorts
from unroll.data.options import call_with_options
from unroll.errors import InputError
from unroll.evaluation.cohorts import CohortStudy, run_cohort_study
from unroll.evaluation.plans import cohort_work
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.records import append_records, read_records
from unroll.report.cohorts import write_cohorts


def run(config, workdir, store):
    """Runs the study of a config and returns the path of its page."""
    study = _study(config)
    launch.announce(cohort_work(study, store))
    workdirs.prepare(workdir, config)
    path = workdir / "records.jsonl"
    for records in run_cohort_study(study, store, ProgressDisplay().task):
        append_records(path, records)
    return write_cohorts(read_records(path), workdir, study.name, config.to_dict())


def _study(config):
    single = config.copy_and_resolve_references()
    with single.unlocked():
        single.forget = "ids(ids=(0,))"  # a study of one deletion request has to have one
    base = from_config.build_study(single)
    cohorts = _cohorts(config.cohorts, base.train)
    largest = sorted(map(len, cohorts.values()))[-max(config.union_sizes) :]
    retained = max(len(base.train) - sum(largest), 1)
    steps = config.epochs * unroll.data.steps_per_epoch(retained, config.batch_size, config.partial)
    shared = {
        name: getattr(base, name)
        for name in "name train test spec model_name epochs batch_size partial train_seeds".split()
    }
    return CohortStudy(
        **shared,
        cohorts=cohorts,
        orders=config.orders,
        union_sizes=config.union_sizes,
        group_size=config.group_size,
        independent_spec=from_config.build_spec(config, base.train, steps),
    )


def _cohorts(text, train):
    name, options = parse_call(text)
    if name == "random":
        return call_with_options(random_cohorts, name, len(train), **options)
    if name == "groups":
        return call_with_options(group_cohorts, name, train, **options)
    raise InputError(f"unknown cohorts {name!r}; choose random(count=, fraction=) or groups")


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)
    launch.launch(run)
