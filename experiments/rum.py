"""RUM and its variants: is unlearning better part by part, by memorization?

  python experiments/rum.py --config=configs/memorization/rum_digits.py
  python experiments/rum.py --config=configs/memorization/rum_digits.py:smoke

The forget set holds the least, middle and most memorized examples by `config.scores`, exact scores
or a proxy. Exact scores are those of experiments/memorization.py with the same settings, store and
`--cpu_devices`; what is not there yet is trained first. One half of the test set is for development
and for proxies, results are of the other half.

Results go to the workdir: config.json, records.jsonl, report.md and report.html with all rows,
selection.json, rum.md and rum.png. A killed run is simply started again.
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
from unroll.evaluation.records import append_records, read_records
from unroll.evaluation.selector import select_methods
from unroll.evaluation.work import training, unlearning
from unroll.memorization.refinement import forget_sets, partition, random_scores
from unroll.memorization.rum import rum
from unroll.report import write_report
from unroll.report.files import write_atomically
from unroll.report.rum import write_rum

PARTS = 3


def run(config, workdir, store):
    """Scores, selects, unlearns by every variant and returns the path of the page."""
    study, texts = base_study(config), (config.scores, *config.partition_scores)
    _check(config, study, texts)
    launch.announce(_work(config, study, texts, store))
    workdirs.prepare(workdir, config)
    display = ProgressDisplay()
    scores = measured_scores(config, study, texts, store, display)
    forget, development = forget_sets(scores[config.scores], config.part_size, **_ties(config))
    held_out, judged = halves(study.test)
    selection = select_methods(
        request(
            config,
            study,
            development,
            "development",
            test=held_out,
            train_seeds=config.development_seeds,
        ),
        scores[config.scores],
        config.candidates,
        count=PARTS,
        search=config.search,
        retain_policy=config.retain_policy,
        tie_seed=config.tie_seed,
        store=store,
        progress=display.task,
    )
    chosen = json.dumps(dataclasses.asdict(selection), indent=1) + "\n"
    write_atomically(workdir / "selection.json", lambda file: file.write(chosen.encode()))
    rows = variants(config, scores, selection.methods)
    described = f"{config.part_size} each of low, medium and high ({config.scores})"
    study = request(config, study, forget, described, test=judged, methods=rows)
    for records in run_recorded(study, store, display.task):
        append_records(workdir / "records.jsonl", records)
    records = read_records(workdir / "records.jsonl")
    write_report(records, workdir, title=study.name, config=config.to_dict())
    notes = [_parts_note(scores[config.scores], forget, config)]
    return write_rum(records, workdir, study.name, selection, notes)


def variants(config, scores, selected):
    """All rows of the study besides the references, as built methods."""
    main = scores[config.scores]
    shared = dict(retain_policy=config.retain_policy, tie_seed=config.tie_seed)
    chance = random_scores(len(main), config.shuffle_seed)
    rows = []
    for text in config.methods:
        method = unroll.methods.method(text)
        # Each row has a name of its own, so that reports need not print the settings to tell them.
        shuffle = f"shuffle_{method.name}"
        rows.append(method)
        rows.append(rum(chance, method, PARTS, name=shuffle, scores_name="random", **shared))
        for score, values in scores.items():
            suffix = "" if score == config.scores else f"_by_{parse_call(score)[0]}"
            name = f"rum_f_{method.name}{suffix}"
            rows.append(rum(values, method, PARTS, name=name, scores_name=score, **shared))
    for text in config.refined_methods:
        method = unroll.methods.method(text)
        name = f"rum_f_tuned_{method.name}"
        rows.append(rum(main, method, PARTS, name=name, scores_name=config.scores, **shared))
    for name, texts in ("rum", config.hand_chosen), ("rum_auto", selected):
        chosen = [unroll.methods.method(text) for text in texts]
        rows.append(rum(main, chosen, name=name, scores_name=config.scores, **shared))
    return tuple(rows)


def _check(config, study, texts):
    """Everything that can be wrong, before the first training."""
    check_scores(config, texts)
    if len(config.hand_chosen) != PARTS:
        raise InputError(f"hand_chosen={config.hand_chosen} must name {PARTS} methods, low first")
    if set(config.development_seeds) & set(config.train_seeds):
        raise InputError("development_seeds must not be those of the results, train_seeds")
    if not config.candidates:
        raise InputError("candidates: name one method or more; original does nothing")
    drawn = random_scores(len(study.train), 0)
    forget_sets(drawn, config.part_size, **_ties(config))
    _draft(config, study)
    for text in config.candidates:
        rum(drawn, unroll.methods.method(text), PARTS, retain_policy=config.retain_policy)


def _ties(config):
    return dict(mid_rule=config.mid_rule, tie_seed=config.tie_seed)


def _draft(config, study):
    """A study of the same size as that of the results, whose forget set is not known yet."""
    names = (config.scores, *config.partition_scores)
    scores = {name: random_scores(len(study.train), 0) for name in names}
    rows = variants(config, scores, config.hand_chosen)
    return request(config, study, np.arange(PARTS * config.part_size), "draft", methods=rows)


def _work(config, study, texts, store):
    yield from score_work(config, study, texts, store)
    recipe = study.spec, study.train, study.schedule(0)
    yield training(*recipe, count=2 * len(config.development_seeds))
    scores = random_scores(len(study.train), 0)
    for text in config.candidates:
        whole = rum(scores, unroll.methods.method(text), PARTS, retain_policy=config.retain_policy)
        # A trial unlearns the parts up to its own: K (K + 1) / 2 of them, and this one prices K.
        trials = dataclasses.replace(unlearning(whole, *recipe, study.epochs), at_most=True)
        yield dataclasses.replace(
            trials, count=len(config.development_seeds) * (PARTS + 1) // 2, what="trial"
        )
    yield from study_work(_draft(config, study), store)


def _parts_note(scores, forget, config):
    parts = partition(scores, forget, PARTS, tie_seed=config.tie_seed)
    means = ", ".join(f"{np.mean(scores[part]):.3f}" for part in parts)
    return (
        f"Mean score ({config.scores}) of the low, medium and high part: {means}; of the whole "
        f"training set: {np.mean(scores):.3f}."
    )


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)
    launch.launch(run)
