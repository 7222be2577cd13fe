"""Penalties that make unlearning easier, each at several strengths: what they buy and cost.

python experiments/penalties.py --config=configs/unrolling/penalties.py

With a `shadow_dataset` the privacy risk score of the forget set is measured instead.
"""

import dataclasses
import json

import from_config
import grids
import launch
import workdir as workdirs
from absl import flags

import unroll
from unroll.errors import DivergenceError, InputError
from unroll.evaluation.penalties import (
    FINE_TUNING,
    TRAINING,
    Outcome,
    measure,
    penalty_of,
    step_cost,
    train_stage,
)
from unroll.evaluation.privacy import ORIGINAL, RETRAINED, RiskRow, score, shadow_histograms
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.rows import append_rows, read_rows, resume_rows
from unroll.evaluation.work import curvature, training, unlearning
from unroll.report.penalties import write_penalties, write_privacy
from unroll.training.optimizer import sgd_rule
from unroll.unrolling.curvature import first_examples

FINE_TUNING_SEED = 3_000_000
"""Schedules of the second horizon are drawn from seeds that start here."""
SHADOW_SEED = 4_000_000
"""Seeds of the shadow models start here."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One recipe with one penalty, for all seeds."""

    config: object
    study: unroll.Study
    tuned: unroll.TrainSpec | None
    shadow: tuple | None

    @property
    def place(self) -> dict:
        name, strength = penalty_of(self.study.spec.objective)
        return dict(
            dataset=self.study.train.name,
            model=self.config.model,
            forget=self.config.forget,
            penalty=name,
            strength=float(strength),
        )


def run(config, workdir, store):
    """Measures every cell that is not in the rows yet, then writes table and figure."""
    cells = _cells(config)  # every mistake shows before the first minute of work
    private = bool(config.shadow_dataset)
    kind, name = (RiskRow, "privacy") if private else (Outcome, "penalties")
    path = workdir / f"{name}.jsonl"
    launch.announce(_work(cells, config, {row.cell for row in read_rows(path, kind)}))
    workdirs.prepare(workdir, config)
    horizons = (TRAINING, FINE_TUNING) if config.fine_tuning_epochs else (TRAINING,)
    models = (ORIGINAL, RETRAINED, *config.methods)
    size = len(horizons) * (len(models) if private else 1)
    done = {row.cell for row in resume_rows(path, kind, lambda row: row.cell, size)}
    with ProgressDisplay().task("cells") as report:
        for number, cell in enumerate(cells):
            for seed in config.train_seeds:
                place = {**cell.place, "seed": seed}
                if tuple(place.values()) in done:
                    continue
                try:
                    rows = _measure(cell, seed, store if config.keep_runs else None)
                except DivergenceError as error:
                    rows = [
                        dict(horizon=horizon, note=str(error), **({"method": m} if private else {}))
                        for horizon in horizons
                        for m in (models if private else (None,))
                    ]
                append_rows(path, [kind(**place, **row) for row in rows])
            report(number + 1, len(cells))
    write = write_privacy if private else write_penalties
    return write(read_rows(path, kind), workdir, title=config.experiment)


def _work(cells, config, known):
    """Run, twin and methods of each horizon of each new cell, and what is measured on them."""
    for cell in cells:
        study = cell.study
        places = [tuple({**cell.place, "seed": seed}.values()) for seed in config.train_seeds]
        count = sum(place not in known for place in places)
        stages = [(study.spec, study.schedule(0), study.epochs)]
        if cell.tuned is not None:
            again = _fine_tuning(cell)
            stages.append((cell.tuned, again.schedule(0), again.epochs))
        for spec, schedule, epochs in stages:
            recipe = spec, study.train, schedule
            yield training(*recipe, count=2 * count)
            for method in study.compared:
                work = unlearning(method, *recipe, epochs)
                yield dataclasses.replace(work, count=count)
            if cell.shadow is None:
                sizes = config.curvature_examples, config.curvature_chunk
                yield curvature(*recipe, *sizes, count=(4 if config.proxies else 2) * count)
        if cell.shadow is not None:
            members = cell.shadow[0]
            yield training(study.spec, members, study.schedule(0, len(members)), count=count)


def _cells(config) -> list[Cell]:
    """One for each recipe; the data of recipes that differ only in the objective is read once."""
    studies, found = {}, []
    for one in grids.cells(config):
        key = json.dumps(
            {k: str(v) for k, v in one.to_dict().items() if k != "objective"}, sort_keys=True
        )
        if key not in studies:
            studies[key] = from_config.build_study(one), _shadow(one)
        study, shadow = studies[key]
        steps = len(study.schedule(0))
        study = dataclasses.replace(study, spec=from_config.build_spec(one, study.train, steps))
        penalty_of(study.spec.objective)
        if shadow is None:  # eta t sigma and the proxies are those of plain SGD
            sgd_rule(study.spec.optimizer, steps)
        tuned = None
        if one.fine_tuning_epochs:
            slow = one.copy_and_resolve_references()
            slow.optimizer.learning_rate = one.fine_tuning_rate
            tuned = from_config.build_spec(slow, study.train, steps)
        found.append(Cell(one, study, tuned, shadow))
    if not found:
        raise InputError("the grid has no cells; give variants")
    grids.refuse_equal_cells([cell.place for cell in found])
    return found


def _shadow(config):
    if not config.shadow_dataset:
        return None
    shadow = config.copy_and_resolve_references()
    shadow.dataset = config.shadow_dataset
    members, nonmembers, _ = from_config.load_data(shadow)
    return members, nonmembers


def _measure(cell: Cell, seed: int, store) -> list[dict]:
    """The measured fields of all rows of one seed."""
    study, config = cell.study, cell.config
    first = train_stage(
        TRAINING, study.spec, study.train, study.schedule(seed), study.forget, seed, store=store
    )
    stages = [first]
    if cell.tuned is not None:
        schedule = _fine_tuning(cell).schedule(FINE_TUNING_SEED + seed)
        stages.append(
            train_stage(
                FINE_TUNING,
                cell.tuned,
                study.train,
                schedule,
                study.forget,
                seed,
                start=first.twin,
                store=store,
            )
        )
    if cell.shadow is not None:
        return _scores(cell, seed, stages)
    batch = first_examples(study.train, config.curvature_examples, config.curvature_chunk)
    cost = step_cost(study.spec, first.run)
    return [
        dict(
            horizon=stage.horizon,
            step_cost=cost,
            **measure(stage, study.test, study.methods, batch, proxies=config.proxies),
        )
        for stage in stages
    ]


def _fine_tuning(cell: Cell) -> unroll.Study:
    """The study with the epochs and batches of the second horizon."""
    return dataclasses.replace(
        cell.study,
        epochs=cell.config.fine_tuning_epochs,
        batch_size=cell.config.fine_tuning_batch_size,
    )


def _scores(cell: Cell, seed: int, stages) -> list[dict]:
    study, (members, nonmembers) = cell.study, cell.shadow
    shadow_seed = SHADOW_SEED + seed
    histograms = shadow_histograms(
        study.spec,
        members,
        nonmembers,
        study.schedule(shadow_seed, len(members)),
        shadow_seed,
    )
    return [
        dict(horizon=stage.horizon, **row)
        for stage in stages
        for row in score(stage, study.test, histograms, study.methods)
    ]


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)
    launch.launch(run)
