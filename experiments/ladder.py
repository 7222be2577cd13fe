"""How far the Taylor series along the trajectory reaches, over a grid of recipes and forget sets.

python experiments/ladder.py --config=configs/unrolling/ladder.py
"""

import from_config
import grids
import launch
import workdir as workdirs
from absl import flags

import unroll
from unroll import tree
from unroll.checks import whole_number
from unroll.errors import DivergenceError, InputError
from unroll.evaluation.ladder import Rung, climb, without_numbers
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.rows import append_rows, read_rows, resume_rows
from unroll.evaluation.study import NULL_SEED
from unroll.evaluation.work import series, training
from unroll.report.ladder import write_ladder


def run(config, workdir, store):
    """Climbs every cell that is not in the rows yet, then writes table and figure."""
    del store  # cells are small and many; the rows are what is kept
    cells = list(grids.cells(config))
    whole_number("order", config.order)
    path = workdir / "ladder.jsonl"
    known = {rung.cell for rung in read_rows(path, Rung)}
    # Builds every cell, so that every mistake shows before the first minute of work.
    grids.refuse_equal_cells([_place(cell, from_config.build_study(cell), 0) for cell in cells])
    launch.announce(_work(cells, config, known))
    workdirs.prepare(workdir, config)
    finished = resume_rows(path, Rung, lambda rung: rung.cell, config.order + 1)
    done = {rung.cell for rung in finished}
    display = ProgressDisplay()
    with display.task("cells") as report:
        for number, cell in enumerate(cells):
            study = from_config.build_study(cell)
            for seed in config.train_seeds:
                place = _place(cell, study, seed)
                if tuple(place.values()) not in done:
                    append_rows(path, _climb(study, seed, config.order, place))
            report(number + 1, len(cells))
    return write_ladder(read_rows(path, Rung), workdir, title=config.experiment)


def _place(cell, study, seed):
    return dict(
        dataset=study.train.name,
        model=cell.model,
        optimizer=grids.optimizer_text(cell),
        epochs=cell.epochs,
        forget=cell.forget,
        seed=seed,
    )


def _work(cells, config, known):
    """Original, twin, another retrain and the series of one order more, for each new cell."""
    for cell in cells:
        study = from_config.build_study(cell)
        recipe = study.spec, study.train, study.schedule(0)
        places = [tuple(_place(cell, study, seed).values()) for seed in config.train_seeds]
        count = sum(place not in known for place in places)
        yield training(*recipe, count=3 * count)
        yield series(*recipe, config.order + 1, count=count)


def _climb(study, seed, order, place):
    size = len(study.forget)
    try:
        rungs = _measure(study, seed, order)
    except (DivergenceError, InputError) as error:
        rungs = without_numbers(order, str(error))
    return [Rung(**place, forget_size=size, **rung) for rung in rungs]


def _measure(study, seed, order):
    schedule = study.schedule(seed)
    run_ = unroll.train(study.spec, study.train, schedule, seed=seed)
    weights = unroll.Problem(run_, study.forget).twin_weights
    twin = unroll.train(study.spec, study.train, schedule, seed=seed, weights=weights)
    other = unroll.train(
        study.spec,
        study.train,
        study.schedule(NULL_SEED + seed),
        seed=NULL_SEED + seed,
        weights=weights,
    )
    apart = tree.distance(twin.state.params, other.state.params)
    rungs = climb(run_, twin, study.forget, order)
    return [dict(retrain_distance=apart / rung["no_unlearning"], **rung) for rung in rungs]


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)
    launch.launch(run)
