"""Deletes several parts of the training set one after the other from the same model.

python experiments/removal_sequence.py --config=configs/pgu/removal_sequence.py

Results go to the workdir: config.json, points.jsonl, progressions.md, progressions.png.
"""

import from_config
import launch
import numpy as np
import workdir as workdirs
from absl import flags

import unroll
from unroll.errors import DivergenceError, InputError
from unroll.evaluation.plans import without_ids
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.progressions import Point, accuracies, removal_sequence
from unroll.evaluation.rows import append_rows, read_rows, resume_rows
from unroll.evaluation.work import training, unlearning
from unroll.report.progressions import write_progressions

TEXT = (
    "Accuracy on the `part` that was deleted last, on everything `forgotten` so far, on what is "
    "`retained`, and on the test set. `clipped`: mass of negative eigenvalues of the retained "
    "moments, largest over the layers. `drift`: their distance from the current model's own."
)


def run(config, workdir, store):
    """Measures every sequence that is not in the rows yet, then writes table and figure."""
    study = from_config.build_study(config)
    parts = np.array_split(np.random.default_rng(0).permutation(study.forget), config.deletions)
    if any(len(sequence) != 3 for sequence in config.sequences):
        raise InputError("each of config.sequences is three texts: label, basis, method")
    sequences = [("retrain", None, None), *config.sequences]
    path = workdir / "points.jsonl"
    launch.announce(_work(study, config))
    workdirs.prepare(workdir, config)
    rows = resume_rows(path, Point, lambda row: (row.label, row.seed), len(parts))
    done = {(row.label, row.seed) for row in rows}
    with ProgressDisplay().task("sequences") as report:
        for index, seed in enumerate(study.train_seeds):
            for number, (label, basis, text) in enumerate(sequences):
                if (label, seed) not in done:
                    append_rows(path, _points(study, seed, parts, basis, text, label, store))
                report(index * len(sequences) + number + 1, len(study.train_seeds) * len(sequences))
    title = config.experiment
    return write_progressions(read_rows(path, Point), workdir, title, "deletions", TEXT)


def _points(study, seed, parts, basis, text, label, store):
    schedule = study.schedule(seed)
    original = unroll.train(study.spec, study.train, schedule, seed=seed, store=store)
    place = dict(dataset=study.train.name, model=study.model_name, label=label, seed=seed)
    try:
        if text is None:
            found = list(_retrained(study, seed, schedule, parts, store))
        else:
            method = unroll.methods.method(text)
            found = list(removal_sequence(original, parts, study.test, method, basis, store))
    except DivergenceError as error:
        return [Point(**place, position=at, values={}, note=str(error)) for at in _at(parts)]
    return [
        Point(**place, position=at, values=values)
        for at, values in zip(_at(parts), found, strict=True)
    ]


def _at(parts):
    return range(1, len(parts) + 1)


def _retrained(study, seed, schedule, parts, store):
    for count in _at(parts):
        gone = np.concatenate(parts[:count])
        weights = without_ids(len(study.train), gone)
        twin = unroll.train(
            study.spec, study.train, schedule, seed=seed, weights=weights, store=store
        )
        splits = {
            "part": study.train.take(parts[count - 1]),
            "forgotten": study.train.take(gone),
            "retained": study.train.take(np.flatnonzero(weights)),
            "test": study.test,
        }
        yield accuracies(twin, twin.state.params, twin.state.model_state, splits)


def _work(study, config):
    recipe = study.spec, study.train, study.schedule(0)
    yield training(*recipe, count=len(study.train_seeds) * (1 + config.deletions))
    for *_, text in config.sequences:
        yield unlearning(unroll.methods.method(text), *recipe, study.epochs)


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)
    launch.launch(run)
