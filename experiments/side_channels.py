"""Side channels: what time, gradients and bytes of a deletion tell about what was deleted.

  python experiments/side_channels.py --config=configs/deletion/side_channels_digits.py
  python experiments/side_channels.py --config=configs/deletion/side_channels_digits.py:smoke

A SISA system serves requests for one example of a known slice, for two of the same shard or not,
and for none (an example that is not there), each from the same system, plainly and with constant
work; `single model` is the weighted run with weights of zero, whose work is constant as it is. What
is counted is worked out for all possible requests; what is measured takes a store of its own, that
is removed afterwards. Results go to the workdir: config.json, observations.jsonl, counted.jsonl,
side_channels.md, side_channels.png; a killed run is simply started again.
"""

import tempfile
import time
from pathlib import Path

import from_config
import launch
import numpy as np
import workdir as workdirs

import unroll
from unroll.checks import whole_number
from unroll.data.schedule import make_schedule
from unroll.deletion.side_channels import exact_leak, possible_requests
from unroll.deletion.sisa import SisaPlan, train_sisa
from unroll.errors import InputError
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.rows import append_rows, resume_rows
from unroll.evaluation.work import training
from unroll.report.side_channels import (
    NONE,
    ONE,
    SECRETS,
    TWO,
    Counted,
    Observation,
    write_side_channels,
)
from unroll.training.timing import Stopwatch

PLAIN, CONSTANT, SINGLE = "plain", "constant work", "single model"
# Sequential and batched training have different times and the same counts.
WAYS = (PLAIN, CONSTANT, f"{PLAIN}, batched", f"{CONSTANT}, batched", SINGLE)
BOUND = 2


def run(config, workdir, store):
    """Measures every way of serving for every seed, counts, and writes page and figure."""
    del store  # what it holds already would take no work
    train, _, _ = from_config.load_data(config)
    plans = [_plan(config, train, seed) for seed in config.train_seeds]
    schedule = make_schedule(0, len(train), config.batch_size, config.epochs)
    size = config.requests + config.pairs + config.absent
    count = size * len(plans)
    launch.announce([training(plans[0].spec, train, schedule, count=count)])
    workdirs.prepare(workdir, config)
    path, display = workdir / "observations.jsonl", ProgressDisplay()
    done = {row.cell for row in resume_rows(path, Observation, lambda row: row.cell, size)}
    for plan in plans:
        for way in WAYS:
            if (way, plan.seed) in done:
                continue
            with display.task(f"{way}, seed {plan.seed}") as report:
                append_rows(path, _observe(config, plan, way, workdir, report))
    single = int((schedule >= 0).sum()), len(schedule), 1
    counted = [row for plan in plans for row in _count(plan, single)]
    (workdir / "counted.jsonl").unlink(missing_ok=True)
    append_rows(workdir / "counted.jsonl", counted)
    rows = resume_rows(path, Observation, lambda row: row.cell, size)
    return write_side_channels(rows, counted, workdir, config.experiment)


def _plan(config, train, seed: int) -> SisaPlan:
    # Whatever is told apart comes twice or more; pairs are of one shard and of two in turn.
    for name, least in (("requests", 2), ("pairs", 4), ("absent", 2)):
        whole_number(name, config[name], least=least)
    if config.requests < 2 * config.slices or config.shards < 2:
        raise InputError("take two shards or more, and two requests or more for each slice")
    if 8 * config.shards > len(train):
        raise InputError(
            f"{config.shards} shards of {len(train)} examples leave no pairs to request; lower "
            "shards"
        )
    if 4 * (config.requests + 2 * config.pairs) > len(train):
        raise InputError(f"too many requests of {len(train)} examples; lower requests or pairs")
    return from_config.build_sisa_plan(config, train, config.shards, config.slices, seed)


def _requests(config, plan: SisaPlan) -> list[tuple[str, np.ndarray]]:
    """Kind and ids of the requests, in random order after one of each slice to warm up.

    No id comes twice: its stages would be in the store already, and take no work.
    """
    random, place = np.random.default_rng(plan.seed), plan.assignment
    warm = [(ONE, np.flatnonzero(place.slice == part)[-1:]) for part in range(config.slices)]
    taken = {int(ids[0]) for _, ids in warm}
    chosen = []
    for part in range(config.slices):
        members = random.permutation(np.flatnonzero(place.slice == part))
        fresh = [index for index in members.tolist() if index not in taken]
        count = len(range(part, config.requests, config.slices))
        chosen += [(ONE, np.array([index])) for index in fresh[:count]]
        taken.update(fresh[:count])
    while len(chosen) < config.requests + config.pairs:
        pair = random.choice(len(place), 2, replace=False)
        same = place.shard[pair[0]] == place.shard[pair[1]]
        if same == (len(chosen) % 2 == 0) and taken.isdisjoint(pair.tolist()):
            chosen.append((TWO, pair))
            taken.update(pair.tolist())
    chosen += [(NONE, np.zeros(0, np.int64))] * config.absent
    return [*warm, *(chosen[number] for number in random.permutation(len(chosen)))]


def _observe(config, plan: SisaPlan, way: str, workdir, report) -> list[Observation]:
    requests, rows = _requests(config, plan), []
    with tempfile.TemporaryDirectory(dir=workdir, prefix=".store-") as folder:
        serve = _single(config, plan) if way == SINGLE else _sisa(plan, way, folder)
        for number, (kind, ids) in enumerate(requests):
            root = Path(folder) / str(number) if way == SINGLE else Path(folder)
            before = _entries(root)
            watch, begun = Stopwatch(), time.perf_counter()
            gradients = serve(ids, root)
            seconds = {"seconds": watch.seconds()}
            seconds["seconds_with_compilation"] = time.perf_counter() - begun
            new = _entries(root) - before
            places = plan.assignment.shard[ids], plan.assignment.slice[ids]
            rows.append(
                Observation(
                    dataset=plan.dataset.name,
                    model=config.model,
                    way=way,
                    seed=plan.seed,
                    kind=kind,
                    slice=int(places[1].min()) if len(ids) else None,
                    shards=len(np.unique(places[0])),
                    example_gradients=gradients,
                    states=len(new),
                    bytes=sum(_size(root / name) for name in new),
                    **seconds,
                )
            )
            report(number + 1, len(requests))
    return rows[config.slices :]


def _sisa(plan: SisaPlan, way: str, folder: str):
    mode = "batched" if way.endswith("batched") else "sequential"
    system = train_sisa(plan, store=unroll.Store(Path(folder)), mode=mode)
    options = dict(constant_work=True, bound=BOUND) if way.startswith(CONSTANT) else {}

    def serve(ids, root):
        del root
        return system.delete(ids, **options)[1].example_gradients

    return serve


def _single(config, plan: SisaPlan):
    train = plan.dataset
    schedule = make_schedule(plan.seed, len(train), config.batch_size, config.epochs)
    spec = from_config.build_spec(config, train, len(schedule))

    def serve(ids, root):
        weights = np.ones(len(train), np.float32)
        weights[ids] = 0.0
        options = dict(seed=plan.seed, weights=weights, store=unroll.Store(root))
        return unroll.train(spec, train, schedule, **options).example_gradients

    return serve


def _entries(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.is_dir()} if root.exists() else set()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _count(plan: SisaPlan, single: tuple[int, ...]) -> list[Counted]:
    """What each counted quantity tells, over all requests, for each way of serving."""
    one, two = (possible_requests(plan.assignment, size) for size in (1, 2))
    kinds = {ONE: one, TWO: two, NONE: ([np.zeros(0, np.int64)], np.ones(1))}
    rows = []
    for way in (PLAIN, CONSTANT, SINGLE):
        work = {
            kind: [_work(plan, way, ids, single) for ids in requests]
            for kind, (requests, _) in kinds.items()
        }
        for secret, about in SECRETS.items():
            values = np.concatenate([_secret(plan, secret, kinds[kind][0], kind) for kind in about])
            # Kinds that are told apart are equally likely.
            weights = np.concatenate([kinds[kind][1] / kinds[kind][1].sum() for kind in about])
            for index, quantity in enumerate(("gradients", "steps", "states written")):
                observed = [each[index] for kind in about for each in work[kind]]
                leak = exact_leak(observed, values, weights)
                of_one = [each[index] for each in work[ONE]]
                rows.append(
                    Counted(
                        way=way,
                        seed=plan.seed,
                        secret=secret,
                        quantity=quantity,
                        chance=leak.chance,
                        accuracy=leak.accuracy.value,
                        auc=None if leak.auc is None else leak.auc.value,
                        entropy=leak.entropy,
                        bits=leak.bits.value,
                        mean=float(np.average(of_one, weights=one[1])),
                    )
                )
    return rows


def _work(plan: SisaPlan, way: str, ids, single: tuple[int, ...]) -> tuple[int, ...]:
    if way == SINGLE:
        # The schedule keeps its slots, and the last state is written.
        return single
    options = dict(constant_work=True, bound=BOUND) if way == CONSTANT else {}
    return plan.work(ids, **options)[:3]


def _secret(plan: SisaPlan, secret: str, requests, kind: str) -> np.ndarray:
    place, about = plan.assignment, SECRETS[secret]
    if len(about) > 1:
        return np.full(len(requests), about.index(kind))
    if kind == ONE:
        return np.array([place.slice[ids[0]] for ids in requests])
    return np.array([len(np.unique(place.shard[ids])) > 1 for ids in requests], np.int64)


if __name__ == "__main__":
    launch.launch(run)
