"""What makes unlearning hard: forget sets by memorization and by entanglement, some methods each.

  python experiments/difficulty.py --config=configs/memorization/difficulty_digits.py
  python experiments/difficulty.py --config=configs/memorization/difficulty_digits.py:smoke

Entanglement is that of the features of the original of the first training seed. Scores as in
experiments/rum.py. Results go to the workdir: config.json, records.jsonl, sets.jsonl, report.md and
report.html with a section for each forget set, difficulty.md and difficulty.png.
"""

import launch
import numpy as np
import workdir as workdirs
from absl import flags
from measured_scores import (
    base_study,
    check_scores,
    first_run,
    measured_scores,
    request,
    score_work,
)
from studies import run_recorded

import unroll
from unroll.errors import InputError
from unroll.evaluation.difficulty import AXES, LEVELS, difficulty_sets
from unroll.evaluation.plans import study_work
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.records import append_records, read_records
from unroll.evaluation.rows import append_rows
from unroll.memorization.refinement import groups, random_scores
from unroll.metrics.entanglement import penultimate_features
from unroll.report import write_report
from unroll.report.difficulty import write_difficulty


def run(config, workdir, store):
    """Runs a study for each of the six forget sets and returns the path of the page."""
    study, texts = base_study(config), (config.scores,)
    check_scores(config, texts)
    _check_size(config, study)
    launch.announce(_work(config, study, texts, store))
    workdirs.prepare(workdir, config)
    display = ProgressDisplay()
    scores = measured_scores(config, study, texts, store, display)[config.scores]
    with display.task("train") as report:
        features = _features(study, store, report)
    sets = difficulty_sets(
        scores, features, config.part_size, mid_rule=config.mid_rule, tie_seed=config.tie_seed
    )
    (workdir / "sets.jsonl").unlink(missing_ok=True)
    append_rows(workdir / "sets.jsonl", sets)
    for each in sets:
        own = request(config, study, np.array(each.ids), each.description)
        for records in run_recorded(own, store, display.task):
            append_records(workdir / "records.jsonl", records)
    records = read_records(workdir / "records.jsonl")
    write_report(records, workdir, title=study.name, config=config.to_dict())
    return write_difficulty(records, sets, workdir, study.name)


def _features(study, store, report):
    run = first_run(study, unroll.train, store, report)
    return penultimate_features(study.spec, run.state.params, run.state.model_state, study.train)


def _check_size(config, study):
    """What would show only after the scores."""
    scores = random_scores(len(study.train), 0)
    groups(scores, config.part_size, mid_rule=config.mid_rule, tie_seed=config.tie_seed)
    if not study.compared:
        raise InputError("methods: name one or more; doing nothing is always there")


def _work(config, study, texts, store):
    yield from score_work(config, study, texts, store)
    for number in range(len(AXES) * len(LEVELS)):
        # Which examples are forgotten is not known yet; the work is that of any so many.
        forget = (number + np.arange(config.part_size)) % len(study.train)
        yield from study_work(request(config, study, forget, "draft"), store)


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)
    launch.launch(run)
