"""Certified removals one after the other, until the budget runs out.

  python experiments/certified_removal.py --config=configs/deletion/certified_digits.py
  python experiments/certified_removal.py --config=configs/deletion/certified_digits.py:smoke

Linear classifiers on pixels or, with `config.extractor`, on what the last layer of a network is
given, which is trained on a public part of the training set, of which nobody asks to be removed,
and never changes; or on random features of either, which are trained on nothing. Every
form of the bound in `config.bounds` and every pair of l2 and sigma in `config.settings` serves the
same requests. Results go to the workdir: config.json, removals.jsonl, certified.md, certified.png.
"""

import time

import from_config
import jax
import launch
import numpy as np
import workdir as workdirs
from absl import flags

import unroll
from unroll.calls import parse_call
from unroll.checks import whole_number
from unroll.deletion.certified import (
    FrozenFeatures,
    MustRetrain,
    train_certified,
    unit_rows,
)
from unroll.errors import InputError
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.rows import append_rows
from unroll.evaluation.work import training
from unroll.metrics.entanglement import penultimate_features
from unroll.report.certified import Removal, write_certified

_NEARLY_NOTHING = 1e-4


def run(config, workdir, store):
    """Serves the requests under every setting and returns the path of the page."""
    name, pair = _load(config)
    if config.extractor is not None:
        recipe = _extractor(config, pair[0])
        launch.announce([training(*recipe)])
    workdirs.prepare(workdir, config)
    display = ProgressDisplay()
    if config.extractor is None:
        data = name, *_of_classes(config, pair, [each.inputs for each in pair])
    else:
        data = name, *_extracted(config, pair, recipe, store, display)
    cells = [(bound, *pair) for bound in config.bounds for pair in config.settings]
    path = workdir / "removals.jsonl"
    path.unlink(missing_ok=True)
    rows = []
    with display.task("removals") as report:
        total = len(cells) * len(config.seeds)
        for number, (bound, l2, sigma) in enumerate(cells):
            for index, seed in enumerate(config.seeds):
                found = list(_sequence(config, data, bound, l2, sigma, seed))
                append_rows(path, found)
                rows += found
                report(number * len(config.seeds) + index + 1, total)
    return write_certified(rows, workdir, config.experiment)


def _load(config):
    """Name, and training and test set; everything is checked."""
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
    return both[0].name, both


def _of_classes(config, both, features):
    """Classes in words, and (features, labels) of the chosen classes of both sets.

    Args:
      config: the config.
      both: training and test set.
      features: of both, a row for each example.
    """
    chosen = tuple(config.classes) or tuple(range(both[0].num_classes))
    pairs = []
    for data, values in zip(both, features, strict=True):
        rows = np.flatnonzero(np.isin(data.labels, chosen))
        labels = np.searchsorted(np.sort(chosen), data.labels[rows])
        pairs.append((_features(values[rows], config), labels))
    words = "classes " + ", ".join(map(str, chosen))
    words += f", {config.random_features} random features" if config.random_features else ""
    return words, *pairs


def _extractor(config, train):
    """Specification, public part and schedule of the network whose features are used."""
    extractor, public = config.extractor, train.take(np.arange(_public(config, train)))
    per_epoch = unroll.data.steps_per_epoch(len(public), extractor.batch_size, extractor.partial)
    spec = from_config.build_spec(extractor, public, extractor.epochs * per_epoch)
    options = dict(partial=extractor.partial)
    schedule = unroll.data.make_schedule(
        0, len(public), extractor.batch_size, extractor.epochs, **options
    )
    return spec, public, schedule


def _public(config, train):
    whole_number("public", config.public)
    if config.public >= len(train):
        raise InputError(f"public={config.public} of {len(train)} examples leave none to remove")
    return config.public


def _extracted(config, both, recipe, store, display):
    """As `_of_classes`, of the private part, whose features owe it nothing but its own row."""
    with display.task("train the extractor") as report:
        state = unroll.train(*recipe, seed=0, store=store, progress=report).state
    private = both[0].take(np.arange(config.public, len(both[0])))
    features = [
        penultimate_features(recipe[0], state.params, state.model_state, each)
        for each in (private, both[1])
    ]
    words, (values, labels), test = _of_classes(config, (private, both[1]), features)
    source = f"{config.extractor.model} trained on {config.public} other examples"
    frozen = FrozenFeatures(values, source, trained_on=np.zeros(0, np.int64))
    return f"{words}, features of a {source}", (frozen, labels), test


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
