"""Metagradients of a run against real deletions: the linear datamodelling score.

  python experiments/metagradients.py --config=configs/unrolling/metagradients.py
  python experiments/metagradients.py --config=configs/unrolling/metagradients.py:smoke

Results go to the workdir: config.json, effects.jsonl (predicted and actual change of each metric
under each deletion), prices.jsonl, smoothness.json, datamodelling.md and its figures. Models go to
the store, so a killed run is simply started again.
"""

import dataclasses
import json

import from_config
import grids
import launch
import workdir as workdirs
from absl import flags

import unroll
from unroll.checks import whole_number
from unroll.errors import InputError
from unroll.evaluation import datamodelling
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.rows import append_rows
from unroll.evaluation.work import ensemble, metagradient, training
from unroll.report.datamodelling import write_datamodelling
from unroll.training.estimate import is_finished
from unroll.unrolling.metagradients import metagradients
from unroll.unrolling.outcomes import mean_loss, point_losses
from unroll.unrolling.smoothness import smoothness
from unroll.unrolling.tracin import tracin


def run(config, workdir, store):
    """Attributes, deletes, retrains and compares; returns the path of the page."""
    study = from_config.build_study(config)
    _check(config)
    (seed,) = config.train_seeds
    metrics = _metrics(config, study, seed)
    sets = {
        fraction: datamodelling.random_deletions(study.train, config.deletions, fraction, seed)
        for fraction in config.fractions
    }
    launch.announce(_work(config, study, store, seed))
    workdirs.prepare(workdir, config)
    display = ProgressDisplay()
    with display.task("train") as report:
        original = unroll.train(
            study.spec,
            study.train,
            study.schedule(seed),
            seed=seed,
            record=unroll.Record(every=study.record_every),
            store=store,
            progress=report,
        )
    with display.task("smoothness check") as report:
        smooth = smoothness(
            original, probe=study.test, fraction=config.fractions[0], store=store, progress=report
        )
    (workdir / "smoothness.json").write_text(json.dumps(dataclasses.asdict(smooth), indent=1))
    attributions = _attribute(config, original, metrics, display)
    prices = [datamodelling.price(name, each) for name, each in attributions.items()]
    del attributions["metagradients, one metric"]
    effects = []
    for fraction, deletions in sets.items():
        with display.task(f"retrain without {fraction:.2g}") as report:
            real = datamodelling.delete_and_retrain(
                original, metrics, deletions, store=store, progress=report
            )
        effects += datamodelling.effects(
            original,
            attributions,
            real,
            dataset=study.train.name,
            model=study.model_name,
            optimizer=grids.optimizer_text(config),
            seed=seed,
            fraction=fraction,
        )
    for name, rows in (("effects", effects), ("prices", prices)):
        (workdir / f"{name}.jsonl").unlink(missing_ok=True)
        append_rows(workdir / f"{name}.jsonl", rows)
    return write_datamodelling(effects, prices, smooth, workdir, title=config.experiment)


def _check(config):
    """What would show only after the retraining, or never."""
    whole_number("deletions", config.deletions, least=3)  # a rank correlation needs as many
    if not config.fractions:
        raise InputError("fractions is empty; give the share of the training set to delete")
    if len(config.train_seeds) != 1:
        raise InputError(
            f"one run is attributed, but train_seeds={config.train_seeds}; give one seed, and "
            "another --workdir for each further one"
        )


def _work(config, study, store, seed):
    schedule, record = study.schedule(seed), unroll.Record(every=study.record_every)
    recipe = study.spec, study.train, schedule
    if not is_finished(store, *recipe, seed=seed, record=record):
        yield training(*recipe)
    yield dataclasses.replace(training(*recipe, count=2), at_most=True)  # smoothness
    numbers = 2 + config.test_points
    yield metagradient(*recipe, 1)
    yield metagradient(*recipe, numbers)
    yield metagradient(*recipe, numbers, share=1 / config.epochs)
    for _ in config.fractions:
        yield ensemble(*recipe, config.deletions + 1)


def _metrics(config, study, seed):
    points = unroll.data.random_ids(study.test, size=config.test_points, seed=seed)
    return [
        mean_loss(study.spec, study.test, "mean test loss"),
        mean_loss(study.spec, study.train.take(study.forget), "mean loss on the forget set"),
        point_losses(study.spec, study.test, points, datamodelling.POINTS),
    ]


def _attribute(config, original, metrics, display):
    last_epoch = original.steps - original.steps // config.epochs
    with display.task("metagradients, one metric") as report:
        single = metagradients(original, metrics[0], progress=report)
    with display.task("metagradients, all metrics") as report:
        found = metagradients(original, metrics, progress=report)
    with display.task("metagradients, last epoch only") as report:
        last = metagradients(original, metrics, start=last_epoch, progress=report)
    attributions = {
        "metagradients, one metric": single,
        datamodelling.METAGRADIENTS: found,
        "last epoch": last,
    }
    if config.optimizer.name == "sgd":
        attributions["tracin"] = tracin(original, metrics)
    return attributions


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)
    launch.launch(run)
