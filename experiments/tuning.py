"""Hyper-parameters of unlearning methods under an equal budget, on a development forget set.

  python experiments/tuning.py --config=configs/memorization/tuning_digits.py
  python experiments/tuning.py --config=configs/memorization/tuning_digits.py:smoke

The development forget set is that of experiments/rum.py with the same scores and sizes; or, with
`--config.scores=none`, `config.forget` without the examples of `config.test_forget`. Scores that
are not in the store are measured first. One half of the test set is for development.

Results go to the workdir: config.json, rows.jsonl, tuning.md, and best.json, which maps the name of
a method to its best candidate. The grids in `config.refined` are tried as RUM^F, low,
medium and high part in turn (`rum_f_...`), with the same budget. Models go to the
store; a killed sweep is simply started again.
"""

import dataclasses
import json

import launch
import numpy as np
import workdir as workdirs
from absl import flags
from measured_scores import (
    base_study,
    check_scores,
    halves,
    measured_scores,
    request,
    score_work,
)
from studies import run_recorded

import unroll
from unroll.calls import parse_call
from unroll.errors import InputError
from unroll.evaluation.plans import study_work
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.rows import append_rows, read_rows, resume_rows
from unroll.evaluation.tuning import (
    Trial,
    candidates,
    check_criterion,
    choose,
    development_ids,
    trials,
)
from unroll.memorization.refinement import forget_sets, random_scores
from unroll.memorization.rum import rum
from unroll.report.files import write_atomically
from unroll.report.tuning import write_tuning

NO_SCORES = "none"
PARTS = 3


def run(config, workdir, store):
    """Tries every candidate that is not in the rows yet; returns the path of the table."""
    study = draft(config)
    check_criterion(config.criterion)
    launch.announce(_work(config, study, store))
    workdirs.prepare(workdir, config)
    display = ProgressDisplay()
    if config.scores != NO_SCORES:
        study = _with_scores(config, study, store, display)
    path = workdir / "rows.jsonl"
    # A candidate has a row for each training seed, or is tried again.
    done = resume_rows(
        path, Trial, lambda row: (row.label, row.method_seed), len(study.train_seeds)
    )
    known = {row.place for row in done}
    left = [str(method) for method in study.compared if not _is_done(study, str(method), known)]
    if left or not known:
        chosen = tuple(method for method in study.compared if str(method) in left)
        remaining = dataclasses.replace(study, methods=chosen)
        for trial in trials(run_recorded(remaining, store, display.task)):
            if trial.place not in known:
                append_rows(path, [trial])
    rows = read_rows(path, Trial)
    chosen = choose(rows, config.criterion, config.most_cost)
    best = {choice.method: _text(choice.best) for choice in chosen if choice.best}
    text = json.dumps(best, indent=1) + "\n"
    write_atomically(workdir / "best.json", lambda file: file.write(text.encode()))
    return write_tuning(
        rows, workdir, study.name, criterion=config.criterion, most_cost=config.most_cost
    )


def draft(config):
    """The sweep as a study: its methods are the candidates. Without scores it is complete."""
    study = base_study(config)
    if config.scores == NO_SCORES:
        texts = config.forget, config.test_forget
        calls = [parse_call(text) for text in texts]
        chosen, reported = (unroll.data.select(study.train, kind, **rest) for kind, rest in calls)
        ids = development_ids(chosen, reported, len(study.train))
        described = f"{texts[0]} without {texts[1]}"
    else:
        check_scores(config, (config.scores,))
        ids = np.arange(PARTS * config.part_size)  # of the same size; which ones is not known yet
        described = f"{config.part_size} each of low, medium and high ({config.scores})"
    # The scores are not known yet, and a method may be wrong whatever they are.
    tried = _candidates(config, random_scores(len(study.train), 0))
    return request(config, study, ids, described, methods=tried, test=halves(study.test)[0])


def _candidates(config, scores):
    """What is tried: methods as they are, and those of `refined` part by part."""
    whole, refined = (
        [unroll.methods.method(text) for text in candidates(grids, config.budget)]
        for grids in (config.grids, config.refined)
    )
    if config.refined and config.scores == NO_SCORES:
        raise InputError("refined methods go by scores; give scores, or refined=()")
    shared = dict(scores_name=config.scores, tie_seed=config.tie_seed)
    parts = [
        rum(scores, method, PARTS, name=f"rum_f_{method.name}", **shared) for method in refined
    ]
    return (*whole, *parts)


def _text(best):
    """A candidate as a config names it: of RUM^F the method that is applied part by part."""
    return best.hyperparameters.get("methods", best.label)


def _with_scores(config, study, store, display):
    """The study on RUM's development set: like the one of its results, of other examples."""
    base = base_study(config)
    found = measured_scores(config, base, (config.scores,), store, display)[config.scores]
    options = dict(mid_rule=config.mid_rule, tie_seed=config.tie_seed)
    _, ids = forget_sets(found, config.part_size, **options)
    return dataclasses.replace(study, forget=ids, methods=_candidates(config, found))


def _work(config, study, store):
    if config.scores != NO_SCORES:
        yield from score_work(config, base_study(config), (config.scores,), store)
    yield from study_work(study, store)


def _is_done(study, label, known):
    return all(
        (label, seed, other) in known for seed in study.train_seeds for other in study.method_seeds
    )


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)
    launch.launch(run)
