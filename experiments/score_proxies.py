"""Cheap proxies of memorization against exact scores: agreement and cost.

  python experiments/score_proxies.py --config=configs/memorization/proxies_digits.py
  python experiments/score_proxies.py --config=configs/memorization/proxies_digits.py:smoke

The exact scores are those of experiments/memorization.py with the same settings and store; what is
not there yet is trained first. `--cpu_devices` must then be the same, too. One half of the test set
is held out for proxies that train on it, the other half is what accuracies are of.

Results go to the workdir: config.json, rows.jsonl, scores.npz, score_proxies.md and its figures.
"""

import dataclasses

import from_config
import launch
import measured_scores
import workdir as workdirs
from absl import flags
from memorization_config import subset_recipe

import unroll
from unroll.data import make_schedule
from unroll.errors import InputError
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.rows import append_rows, read_rows
from unroll.evaluation.score_proxies import (
    Comparison,
    ScoreProxyRow,
    compare,
    events_overhead,
    half_scores,
)
from unroll.evaluation.work import training
from unroll.memorization.scores import save_scores, scores_of
from unroll.memorization.subject import Subject
from unroll.memorization.subsets import train_on_subsets
from unroll.metrics.outputs import accuracy
from unroll.report.score_proxies import write_score_proxies
from unroll.training.events import train_with_events
from unroll.training.predict import predict


def run(config, workdir, store):
    """Scores, trains the originals, measures all proxies and returns the path of the page."""
    study = measured_scores.base_study(config)
    recipe = subset_recipe(config, study.train)
    _check(config)
    launch.announce(_work(config, study, store))
    workdirs.prepare(workdir, config)
    display = ProgressDisplay()
    with display.task(f"train {recipe.models} models") as report:
        models = train_on_subsets(recipe, study.test, store=store, progress=report)
    scores = scores_of(models, config.measure)
    save_scores(workdir / "scores.npz", scores)
    comparison = Comparison(scores, half_scores(models), config.top_shares)
    held_out, judged = measured_scores.halves(study.test)
    path, values = workdir / "rows.jsonl", {}
    path.unlink(missing_ok=True)
    for augment in config.augmentations:
        spec = _spec(config, study.train, augment)
        overhead = events_overhead(spec, study.train, _schedule(config, study.train, 0))
        for seed in config.train_seeds:
            name = f"seed {seed}" + (", augmented" if augment else "")
            with display.task(f"{name}: train") as report:
                subject = _subject(config, study, spec, seed, held_out, store, report)
            state = subject.run.state
            logits = predict(spec, state.params, state.model_state, judged)
            with display.task(f"{name}: proxies") as report:
                pairs = compare(
                    comparison,
                    subject,
                    config.proxies,
                    model=config.model,
                    test_accuracy=accuracy(logits, judged.labels),
                    events_seconds=overhead,
                    progress=report,
                )
                for row, found in pairs:
                    append_rows(path, [row])
                    if found is not None:
                        values.setdefault(row.proxy, found)  # of the first run, for the figure
    rows = read_rows(path, ScoreProxyRow)
    return write_score_proxies(rows, values, scores.values, workdir, study.name)


def _check(config):
    """What would show only after the exact scores."""
    measured_scores.check_scores(config, config.proxies)
    if not config.proxies or not config.augmentations or not config.train_seeds:
        raise InputError("proxies, augmentations and train_seeds need at least one entry each")
    for share in config.top_shares:
        if not 0 < share <= 1:
            raise InputError(f"top_shares: {share} must be above 0 and at most 1")


def _work(config, study, store):
    yield from measured_scores.score_work(config, study, (measured_scores.EXACT,), store)
    for augment in config.augmentations:
        spec = _spec(config, study.train, augment)
        schedule = _schedule(config, study.train, 0)
        # Beside the original, proxies that train models of their own: about as much again.
        count = 2 * len(config.train_seeds)
        recorded = config.epochs // config.record_epochs
        work = training(spec, study.train, schedule, count=count, snapshots=recorded)
        yield dataclasses.replace(work, at_most=True)


def _schedule(config, train, seed):
    return make_schedule(seed, len(train), config.batch_size, config.epochs)


def _spec(config, train, augment):
    variant = config.copy_and_resolve_references()
    variant.augment = augment
    return from_config.build_spec(variant, train, len(_schedule(config, train, 0)))


def _subject(config, study, spec, seed, held_out, store, report):
    schedule = _schedule(config, study.train, seed)
    every = config.record_epochs * (len(schedule) // config.epochs)
    run_, events = train_with_events(
        spec,
        study.train,
        schedule,
        seed=seed,
        record=unroll.Record(every=every),
        store=store,
        progress=report,
    )
    return Subject(run_, events, held_out, store)


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)
    flags.adopt_module_key_flags(measured_scores)
    launch.launch(run)
