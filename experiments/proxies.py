"""Unlearning errors beside the verification error, over a grid of models, penalties and batches.

python experiments/proxies.py --config=configs/unrolling/proxies.py
python experiments/proxies.py --config=configs/unrolling/proxies_training.py
python experiments/proxies.py --config=configs/unrolling/positions.py
"""

import functools

import from_config
import grids
import jax
import launch
import ml_collections
import numpy as np
import workdir as workdirs
from absl import flags

import unroll
from unroll.checks import whole_number
from unroll.data import make_schedule
from unroll.errors import DivergenceError
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.proxies import ProxyRow, fixed_order_schedule, measure, retrain_distance
from unroll.evaluation.rows import append_rows, read_rows, resume_rows
from unroll.evaluation.study import NULL_SEED
from unroll.evaluation.work import curvature, training
from unroll.metrics.outputs import accuracy
from unroll.report.proxies import write_proxies
from unroll.training.estimate import is_finished
from unroll.training.optimizer import sgd_rule
from unroll.training.predict import predict
from unroll.training.step import start_state
from unroll.unrolling.curvature import first_examples


def run(config, workdir, store):
    """Measures every run that is not in the rows yet, then writes tables and figures."""
    cells = list(grids.cells(config))
    recorded = [t for t in _record(config).snapshot_steps(config.steps) if t]
    _check(cells)  # every mistake shows before the first minute of work
    path = workdir / "proxies.jsonl"
    known = {row.cell for row in read_rows(path, ProxyRow)}
    launch.announce(_work(cells, config, store, known, len(recorded)))
    workdirs.prepare(workdir, config)
    finished = resume_rows(path, ProxyRow, lambda row: row.cell, len(recorded))
    done = {row.cell for row in finished}
    tasks = [(cell, seed) for cell in cells for seed in config.train_seeds]
    with ProgressDisplay().task("runs") as report:
        for number, (cell, seed) in enumerate(tasks, start=1):
            place = _place(cell, seed)
            if tuple(place.values()) not in done:
                append_rows(path, _rows(cell, seed, store, place, recorded))
            report(number, len(tasks))
    return write_proxies(read_rows(path, ProxyRow), workdir, title=config.experiment)


def _work(cells, config, store, known, recorded):
    """Original, twin, another retrain and sigmas of each new cell; pretraining once per seed."""
    pretrained = set()
    for cell in cells:
        train, _ = _data(cell.dataset, cell.corruption)
        seeds = [s for s in config.train_seeds if tuple(_place(cell, s).values()) not in known]
        schedule, _ = _schedule(cell, 0, len(train))
        recipe = from_config.build_spec(cell, train, cell.steps), train, schedule
        yield training(*recipe, count=3 * len(seeds))
        sigmas = (1 + recorded // cell.sigma_every) * len(seeds)
        yield curvature(*recipe, cell.curvature_examples, count=sigmas)
        for seed in seeds if cell.pretrain.epochs else ():
            spec, first = _pretraining(cell, seed, train)
            name = spec, train.name, seed
            if name not in pretrained and not is_finished(store, spec, train, first, seed=seed):
                yield training(spec, train, first)
            pretrained.add(name)


@functools.lru_cache(maxsize=2)
def _data(dataset, corruption):
    config = ml_collections.ConfigDict(
        # Which batch is forgotten follows from the schedule, which needs the data first.
        dict(dataset=dataset, corruption=corruption, forget="ids(ids=[0])")
    )
    return from_config.load_data(config)[:2]


def _check(cells):
    """Everything that can be wrong with a cell, without training."""
    built = set()
    for cell in cells:
        train, _ = _data(cell.dataset, cell.corruption)
        _schedule(cell, 0, len(train))
        sgd_rule(from_config.build_spec(cell, train, cell.steps).optimizer, cell.steps)
        whole_number("sigma_every", cell.sigma_every)
        if (cell.dataset, cell.model) not in built:  # it reads the data again
            study = cell.copy_and_resolve_references()
            study.forget = "ids(ids=[0])"
            from_config.build_study(study)
            built.add((cell.dataset, cell.model))
    grids.refuse_equal_cells([_place(cell, 0) for cell in cells])


def _place(cell, seed):
    train, _ = _data(cell.dataset, cell.corruption)
    return dict(
        dataset=train.name,
        model=cell.model,
        gamma=cell.objective.sd_gamma,
        seed=seed,
        forget_batch=_forget_batch(cell),
        position=cell.position,
    )


def _forget_batch(cell):
    """Its number; without one, the batch that stands at the position in the order of the seed."""
    return cell.position if cell.forget_batch is None else cell.forget_batch


def _schedule(cell, seed, num_examples):
    return fixed_order_schedule(
        seed, num_examples, cell.batch_size, cell.steps, _forget_batch(cell), cell.position
    )


def _record(config):
    return unroll.Record(every=config.record_every)


def _rows(cell, seed, store, place, recorded):
    train, test = _data(cell.dataset, cell.corruption)
    batch = first_examples(train, cell.curvature_examples)
    try:
        run_, twin, other, forget = _runs(cell, seed, store, train)
        measured = measure(run_, twin, forget, batch, cell.sigma_every)
        logits = predict(run_.spec, run_.state.params, run_.state.model_state, test)
    except DivergenceError as error:
        return [
            ProxyRow(**place, t=t, uses=0, curvature_batch=str(batch), note=str(error))
            for t in recorded
        ]
    ends = dict(
        retrain_distance=retrain_distance(twin, other),
        test_accuracy=accuracy(logits, test.labels),
    )
    return [ProxyRow(**place, curvature_batch=str(batch), **ends, **row) for row in measured]


def _runs(cell, seed, store, train):
    """Original, twin, a retrained model of another seed, and the forgotten ids."""
    spec = from_config.build_spec(cell, train, cell.steps)
    initial = _pretrained(cell, spec, seed, store, train)
    schedule, forget = _schedule(cell, seed, len(train))
    weights = np.ones(len(train), np.float32)
    weights[forget] = 0.0
    start = functools.partial(unroll.train, spec, train, initial=initial, store=store)
    record = _record(cell)
    original = start(schedule, seed=seed, record=record)
    twin = start(schedule, seed=seed, record=record, weights=weights)
    order, _ = _schedule(cell, NULL_SEED + seed, len(train))
    other = start(order, seed=NULL_SEED + seed, weights=weights)
    return original, twin, other, forget


def _pretrained(cell, spec, seed, store, train):
    """The first state: pretrained weights, or `None` for random ones."""
    if not cell.pretrain.epochs:
        return None
    recipe, schedule = _pretraining(cell, seed, train)
    first = unroll.train(recipe, train, schedule, seed=seed, store=store)
    return start_state(spec, jax.random.key(seed), first.state.params, first.state.model_state)


def _pretraining(cell, seed, train):
    """Specification and schedule of the training that makes the pretrained weights."""
    recipe = cell.copy_and_resolve_references()
    recipe.optimizer.learning_rate = cell.pretrain.learning_rate
    recipe.optimizer.schedule = cell.pretrain.schedule
    schedule = make_schedule(seed, len(train), cell.pretrain.batch_size, cell.pretrain.epochs)
    return from_config.build_spec(recipe, train, len(schedule)), schedule


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)
    launch.launch(run)
