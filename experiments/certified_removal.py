"""Certified removals one after the other, until the budget runs out.

  python experiments/certified_removal.py --config=configs/deletion/certified_digits.py
  python experiments/certified_removal.py --config=configs/deletion/certified_digits.py:smoke

Linear classifiers on pixels, or on random features of them, which are trained on nothing. Every
form of the bound in `config.bounds` and every pair of l2 and sigma in `config.settings` serves the
same requests. Results go to the workdir: config.json, removals.jsonl, certified.md, certified.png.
"""

import time

import jax
import launch
import numpy as np
import workdir as workdirs
from absl import flags

import unroll
from unroll.calls import parse_call
from unroll.checks import whole_number
from unroll.deletion.certified import MustRetrain, train_certified, unit_rows
from unroll.errors import InputError
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.rows import append_rows
from unroll.report.certified import Removal, write_certified

_NEARLY_NOTHING = 1e-4


def run(config, workdir, store):
    """Serves the requests under every setting and returns the path of the page."""
    del store
    data = _load(config)
    cells = [(bound, *pair) for bound in config.bounds for pair in config.settings]
    workdirs.prepare(workdir, config)
    path = workdir / "removals.jsonl"
    path.unlink(missing_ok=True)
    rows = []
    with ProgressDisplay().task("removals") as report:
        total = len(cells) * len(config.seeds)
        for number, (bound, l2, sigma) in enumerate(cells):
            for index, seed in enumerate(config.seeds):
                found = list(_sequence(config, data, bound, l2, sigma, seed))
                append_rows(path, found)
                rows += found
                report(number * len(config.seeds) + index + 1, total)
    return write_certified(rows, workdir, config.experiment)


def _load(config):
    """Name, classes in words, and (features, labels) of training and test set."""
    whole_number("removals", config.removals)
    whole_number("random_features", config.random_features, least=0)
    name, options = parse_call(config.dataset)
    both = unroll.data.load(name, **options)
    if both[0].inputs.dtype == np.int32:
        raise InputError(f"{both[0].name} holds tokens; choose images or features")
    classes = tuple(config.classes)
    known = set(range(both[0].num_classes))
    if classes and (len(set(classes)) < 2 or set(classes) - known):
        raise InputError(f"classes={classes} must be two or more of {sorted(known)}, or ()")
    chosen = classes or tuple(sorted(known))
    pairs = []
    for data in both:
        rows = np.flatnonzero(np.isin(data.labels, chosen))
        labels = np.searchsorted(np.sort(chosen), data.labels[rows])
        pairs.append((_features(data.inputs[rows], config), labels))
    words = "classes " + ", ".join(map(str, chosen))
    words += f", {config.random_features} random features" if config.random_features else ""
    return both[0].name, words, *pairs


def _features(inputs, config):
    rows = unit_rows(inputs / np.float64(255) if inputs.dtype == np.uint8 else inputs)
    if not config.random_features:
        return rows
    drawn = np.random.default_rng(0).normal(size=(rows.shape[1], config.random_features))
    return unit_rows(np.maximum(rows @ drawn, 0.0))


def _sequence(config, data, bound, l2, sigma, seed):
    """A row before the first removal and after every one that the budget covers."""
    name, words, (features, labels), (test, expected) = data
    options = dict(l2=l2, epsilon=config.epsilon, delta=config.delta, bound=bound)
    options |= dict(calibration=config.calibration, key=jax.random.key(seed))

    def accuracy(model):
        return float(np.mean(model.predict(test) == expected))

    plain = accuracy(train_certified(features, labels, sigma=_NEARLY_NOTHING, **options))
    model = train_certified(features, labels, sigma=sigma, **options)
    order = np.random.default_rng(seed).permutation(len(labels))[: config.removals]
    seconds, waiting = 0.0, list(order)
    while True:
        watch = time.perf_counter()
        following, answer = model.remove(waiting[:1]) if waiting else (model, None)
        elapsed = time.perf_counter() - watch
        last = isinstance(answer, MustRetrain)
        served = len(order) - len(waiting)
        if served % config.every == 0 or last or not waiting:
            watch = time.perf_counter()
            fresh, _ = model.retrain()
            yield Removal(
                dataset=name,
                classes=words,
                bound=bound,
                l2=l2,
                sigma=sigma,
                seed=seed,
                removals=served,
                budget=model.settings.budget,
                residual_bound=model.residual_bound,
                residual=model.true_residual(),
                distance_bound=model.distance_bound,
                distance=float(np.linalg.norm(model.weights - model.optimum())),
                accuracy=accuracy(model),
                retrained_accuracy=accuracy(fresh),
                plain_accuracy=plain,
                seconds=seconds,
                retrain_seconds=time.perf_counter() - watch,
                last=last,
            )
        if last or not waiting:
            return
        model, seconds, waiting = following, elapsed, waiting[1:]


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)
    launch.launch(run)
