"""SISA: exact deletion by shards and slices, its accuracy, storage and cost.

  python experiments/sisa.py --config=configs/deletion/sisa_digits.py
  python experiments/sisa.py --config=configs/deletion/sisa_digits.py:smoke

For each number of shards S and of slices R a system is trained, one example is deleted, then the
rest of the forget set, and the result is compared with a system trained from scratch without it.
S = R = 1 is the single model, whose deletion is retraining. Streams of requests are simulated
beside it and compared with theory.

Results go to the workdir: config.json, sisa.jsonl, costs.jsonl, sisa.md and sisa.png. States of all
stages lie in the store; a killed run is simply started again.
"""

import from_config
import launch
import numpy as np
import workdir as workdirs

from unroll.checks import whole_number
from unroll.data.schedule import make_schedule
from unroll.deletion.aggregation import aggregate
from unroll.deletion.costs import slice_epochs
from unroll.deletion.sisa import SisaPlan
from unroll.deletion.tradeoff import CostRow, SisaRow, measure_cost, measure_sisa
from unroll.errors import DivergenceError, InputError
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.rows import append_rows, read_rows, resume_rows
from unroll.evaluation.work import training
from unroll.report.sisa import write_sisa


def run(config, workdir, store):
    """Measures every system that is not in the rows yet, simulates, and writes page and figure."""
    train, test, forget = from_config.load_data(config)
    _check(config, forget)
    plans = [
        from_config.build_sisa_plan(config, train, shards, slices, seed)
        for shards in config.shards
        for slices in config.slices
        for seed in config.train_seeds
    ]
    path, size = workdir / "sisa.jsonl", len(config.aggregations)
    known = {row.cell for row in read_rows(path, SisaRow)}
    schedule = make_schedule(0, len(train), config.batch_size, config.epochs)
    left = [plan for plan in plans if _cell(plan) not in known]
    # The system, its deletions, and one from scratch, each at most one training of a single model.
    launch.announce(training(plan.spec, train, schedule, count=3) for plan in left)
    workdirs.prepare(workdir, config)
    done = {row.cell for row in resume_rows(path, SisaRow, lambda row: row.cell, size)}
    display = ProgressDisplay()
    for plan in plans:
        shards, slices, seed = _cell(plan)
        if (shards, slices, seed) in done:
            continue
        with display.task(f"S={shards} R={slices} seed {seed}") as report:
            rows = _measure(config, plan, forget, test, store, report)
        names = dict(dataset=train.name, model=config.model, forget=config.forget)
        place = dict(shards=shards, slices=slices, seed=seed)
        append_rows(path, [SisaRow(**names, **place, **row) for row in rows])
    with display.task("simulate requests") as report:
        costs = _costs(config, len(train), report)
    (workdir / "costs.jsonl").unlink(missing_ok=True)
    append_rows(workdir / "costs.jsonl", costs)
    return write_sisa(read_rows(path, SisaRow), costs, workdir, config.experiment)


def _check(config, forget) -> None:
    if len(forget) < 2:
        raise InputError("forget two examples or more: one alone, then the rest")
    for aggregation in config.aggregations:
        aggregate(np.zeros((1, 1, 2)), aggregation)
    for batch in config.request_batches:
        if config.requests % whole_number("request_batches", batch):
            raise InputError(f"{config.requests} requests do not fill batches of {batch}")


def _cell(plan: SisaPlan) -> tuple[int, int, int]:
    return plan.assignment.shards, plan.assignment.slices, plan.seed


def _measure(config, plan, forget, test, store, report) -> list[dict]:
    try:
        return measure_sisa(
            plan,
            forget,
            test,
            config.aggregations,
            epochs=config.epochs,
            mode=config.mode,
            store=store,
            progress=report,
        )
    except DivergenceError as error:
        return [dict(aggregation=name, note=str(error)) for name in config.aggregations]


def _costs(config, examples: int, report) -> list[CostRow]:
    cells = [
        (stream, assignment, shards, slices, batch)
        for stream in ("uniform", "exponential", "adversarial")
        for assignment in config.request_assignments
        # Only an exponential stream has probabilities to be aware of.
        if assignment == "random" or stream == "exponential"
        for shards in config.shards
        for slices in config.slices
        for batch in config.request_batches
    ]
    rows = []
    for number, (stream, assignment, shards, slices, batch) in enumerate(cells):
        rows.append(
            measure_cost(
                examples,
                shards,
                slice_epochs(config.epochs, slices),
                single_epochs=config.epochs,
                stream=stream,
                assignment=assignment,
                requests=config.requests,
                batch=batch,
                rate=config.request_rate,
                draws=config.draws,
            )
        )
        report(number + 1, len(cells))
    return rows


if __name__ == "__main__":
    launch.launch(run)
