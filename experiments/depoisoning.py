"""Repairs a model that was trained on swapped labels, and follows the repair.

python experiments/depoisoning.py --config=configs/pgu/depoisoning.py

The classes are paired at random, and a part of each gets the label of its partner. Results go to
the workdir: config.json, points.jsonl, progressions.md, progressions.png.
"""

import dataclasses

import from_config
import launch
import numpy as np
import workdir as workdirs
from absl import flags

import unroll
from unroll.errors import DivergenceError, InputError
from unroll.evaluation.plans import without_ids
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.progressions import Point, accuracies, poison_splits, recovery
from unroll.evaluation.rows import append_rows, read_rows, resume_rows
from unroll.evaluation.work import training, unlearning
from unroll.report.progressions import write_progressions

TEXT = (
    "Accuracy on the `poison` with its wrong labels, on the same images with their true ones "
    "(`recovered`), on the clean rest of the training set, and on the test set."
)


def run(config, workdir, store):
    """Measures every point that is not in the rows yet, then writes table and figure."""
    study = _poisoned(from_config.build_study(config), config.poisoned_fraction)
    path = workdir / "points.jsonl"
    points = [("retrain", None, at) for at in (0, max(config.epoch_counts))]
    points += [("original", "original", 0)]
    for label, text in config.repairs:
        points += [(label, text.format(at), at) for at in config.epoch_counts]
    launch.announce(_work(study, points))
    workdirs.prepare(workdir, config)
    rows = resume_rows(path, Point, lambda row: (row.label, row.seed, row.position), 1)
    done = {(row.label, row.seed, row.position) for row in rows}
    with ProgressDisplay().task("points") as report:
        for index, seed in enumerate(study.train_seeds):
            for number, (label, text, at) in enumerate(points):
                if (label, seed, at) not in done:
                    append_rows(path, [_point(study, seed, label, text, at, store)])
                report(index * len(points) + number + 1, len(study.train_seeds) * len(points))
    return write_progressions(read_rows(path, Point), workdir, config.experiment, "epochs", TEXT)


def _poisoned(study, fraction):
    """The study on a training set with swapped labels; to be forgotten is whoever has one."""
    train = study.train
    classes = np.random.default_rng(0).permutation(train.num_classes)
    if len(classes) % 2:
        raise InputError(f"{train.name} has {len(classes)} classes; pairs need an even number")
    for first, second in classes.reshape(-1, 2).tolist():
        train = unroll.data.swap_classes(train, first, second, fraction=fraction)
    train = dataclasses.replace(train, name=f"{study.train.name}+swapped({fraction})")
    return dataclasses.replace(study, train=train, forget=unroll.data.corrupted_ids(train))


def _point(study, seed, label, text, at, store):
    schedule = study.schedule(seed)
    place = dict(
        dataset=study.train.name, model=study.model_name, label=label, seed=seed, position=at
    )
    try:
        weights = without_ids(len(study.train), study.forget) if text is None else None
        trained = unroll.train(
            study.spec, study.train, schedule, seed=seed, weights=weights, store=store
        )
        if text is not None:
            method = unroll.methods.method(text)
            values = recovery(trained, study.forget, study.test, method, store)
        else:
            splits = poison_splits(study.train, study.forget, study.test)
            state = trained.state
            values = accuracies(trained, state.params, state.model_state, splits)
    except DivergenceError as error:
        return Point(**place, values={}, note=str(error))
    return Point(**place, values=values)


def _work(study, points):
    recipe = study.spec, study.train, study.schedule(0)
    yield training(*recipe, count=2 * len(study.train_seeds))
    for _, text, _ in points:
        if text not in (None, "original"):
            yield unlearning(unroll.methods.method(text), *recipe, study.epochs)


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)
    launch.launch(run)
