"""How time grows: with models, steps, cohorts, deletion requests, and over devices.

  python benchmarks/scale.py
  python benchmarks/scale.py --rows models,devices --repetitions 5
  python benchmarks/scale.py --smoke

Each point is the wall time of a call of the library without compilation, which is kept beside it;
one turn before is not counted. Points are appended to `points.jsonl` in the output folder as soon
as they exist. The table (`scale.md`) and the figure (`scale.png`) show the last of each that this
machine measured, so `--rows` adds to them or renews a part. On the CPU, devices are virtual: they
share its cores, and each number of them has a process of its own; on an accelerator they are the
first of those that are there.
"""

import argparse
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import growth
import jax
import machine as machines
import numpy as np
from cases import Case, make_case
from growth import Point
from rich.console import Console
from work import Settings

import unroll
from unroll.data.cohorts import random_cohorts
from unroll.evaluation.rows import append_rows, read_rows
from unroll.training.devices import model_mesh
from unroll.training.timing import Stopwatch
from unroll.unrolling.tangents import CohortTangents, train_with_tangents

Turn = Callable[[], object]
Series = tuple[str, tuple[int, ...], Callable[[int], Turn]]
"""Name, sizes, and what makes the call that is timed for a size."""

VIRTUAL_DEVICES = (1, 2, 4)
_REQUEST = 3
"""Examples in a deletion request."""


def _schedule(case: Case, steps: int, seed: int = 0) -> np.ndarray:
    """Whole epochs and a part of one, in the order of a seed."""
    epoch = unroll.data.steps_per_epoch(len(case.data), case.batch)
    epochs = -(-steps // epoch)
    return unroll.data.make_schedule(seed, len(case.data), case.batch, epochs)[:steps]


def models(settings: Settings) -> Iterable[Series]:
    """An ensemble with seeds and schedules of its own, batched and one model after the other."""
    for kind, name, steps, sizes in (
        ("mlp", "MLP", settings.choose(450, 4), settings.choose((1, 4, 16, 64, 256), (1, 2))),
        ("small_cnn", "CNN", settings.choose(8, 2), settings.choose((1, 4, 16), (1, 2))),
    ):
        case = make_case(settings, kind)
        for mode in ("batched", "sequential"):
            make = functools.partial(_ensemble, case, steps, mode)
            yield f"{name}, {steps} steps, {mode}", sizes, make


def _ensemble(case: Case, steps: int, mode: str, count: int, mesh=None) -> Turn:
    schedules = np.stack([_schedule(case, steps, seed) for seed in range(count)])
    options = dict(seeds=tuple(range(count)), mode=mode, mesh=mesh)
    return functools.partial(unroll.train_ensemble, case.spec, case.data, schedules, **options)


def steps(settings: Settings) -> Iterable[Series]:
    """A training, and the first-order series along it."""
    for kind, name, sizes in (
        ("mlp", "MLP", settings.choose((50, 500, 5000), (2, 4))),
        ("small_cnn", "CNN", settings.choose((4, 16, 64), (2, 4))),
    ):
        case = make_case(settings, kind)
        yield f"{name}, training", sizes, functools.partial(_training, case)
        yield f"{name}, taylor(order=1)", sizes, functools.partial(_series, case)


def _training(case: Case, length: int) -> Turn:
    return functools.partial(unroll.train, case.spec, case.data, _schedule(case, length))


def _series(case: Case, length: int) -> Turn:
    run = _training(case, length)()
    # In use from the first step on, so that the whole run is expanded.
    problem = unroll.Problem(run, run.schedule[0, :_REQUEST])
    return functools.partial(unroll.unlearn, "taylor(order=1)", problem)


def cohorts(settings: Settings) -> Iterable[Series]:
    """Training with the tangents of so many cohorts."""
    for kind, name, order, length, sizes in (
        ("mlp", "MLP", 1, settings.choose(90, 2), settings.choose((1, 4, 16, 64), (1, 2))),
        ("mlp", "MLP", 2, settings.choose(90, 2), settings.choose((1, 2, 4, 8), (1, 2))),
        ("small_cnn", "CNN", 1, settings.choose(4, 2), settings.choose((1, 4, 16), (1, 2))),
    ):
        case = make_case(settings, kind)
        make = functools.partial(_tangents, case, length, order)
        yield f"{name}, {length} steps, order {order}", sizes, make


def _tangents(case: Case, length: int, order: int, count: int) -> Turn:
    named = random_cohorts(len(case.data), count=count, fraction=1 / 100)
    schedule = _schedule(case, length)
    arguments = (case.spec, case.data, schedule, named)
    return functools.partial(train_with_tangents, *arguments, order=order)


def requests(settings: Settings) -> Iterable[Series]:
    """A sequence of deletion requests to one run, each for all that is to be forgotten by then."""
    for kind, name, length, sizes in (
        ("mlp", "MLP", settings.choose(450, 4), settings.choose((1, 4, 16, 64), (1, 2))),
        ("small_cnn", "CNN", settings.choose(16, 2), settings.choose((1, 4, 16), (1, 2))),
    ):
        case = make_case(settings, kind)
        run = _training(case, length)()
        for method in ("taylor(order=1)", "replay"):
            make = functools.partial(_answers, run, method)
            yield f"{name}, {length} steps, {method}", sizes, make
        registered = _tangents(case, length, 1, max(sizes))()
        yield f"{name}, registered cohorts", sizes, functools.partial(_deletions, registered)


def _answers(run: unroll.Run, method: str, count: int) -> Turn:
    # In use from the first step on, so that no request is answered by a part of the run.
    first = run.schedule[0]
    ids = np.concatenate([first, np.setdiff1d(np.arange(len(run.dataset)), first)])

    def turn():
        for number in range(1, count + 1):
            unroll.unlearn(method, unroll.Problem(run, ids[: _REQUEST * number]))

    return turn


def _deletions(registered: CohortTangents, count: int) -> Turn:
    names = list(registered.cohorts)

    def turn():
        for number in range(1, count + 1):
            registered.delete(names[:number])

    return turn


def devices(settings: Settings) -> Iterable[Series]:
    """A batched ensemble over the devices of this process; over more and more that are real."""
    everything = jax.local_devices()
    sizes = (len(everything),)
    if settings.device != "cpu":
        sizes = tuple(2**power for power in range(len(everything).bit_length()))
    for kind, name, length, count in (
        ("mlp", "MLP", settings.choose(450, 4), settings.choose(64, 4)),
        ("small_cnn", "CNN", settings.choose(8, 2), settings.choose(8, 4)),
    ):
        case = make_case(settings, kind)

        def make(size, case=case, length=length, count=count):
            return _ensemble(case, length, "batched", count, model_mesh(everything[:size]))

        yield f"{count} {name}s, {length} steps", sizes, make


WORKS = {work.__name__: work for work in (models, steps, cohorts, requests, devices)}


def measure(work: str, settings: Settings, path: Path) -> None:
    """Measures all points of a work in this process and appends them to the file."""
    machine = machines.describe()
    for series, sizes, make in WORKS[work](settings):
        for size in sizes:
            turn, watch = make(size), Stopwatch()
            turn()
            compilation = watch.compilation_seconds()
            seconds = [_seconds(turn) for _ in range(settings.repetitions)]
            point = Point(work, series, size, seconds, compilation, settings.smoke, machine)
            append_rows(path, [point])
            print(f"{work}: {series}: {size}: {growth.spread(seconds)} s", flush=True)


def _seconds(turn: Turn) -> float:
    watch = Stopwatch()
    turn()
    return watch.seconds()


def measure_virtual_devices(arguments: argparse.Namespace) -> None:
    """The work `devices`, with a process for each number of virtual devices."""
    command = [sys.executable, __file__, "--rows", "devices", "--here", "--out", str(arguments.out)]
    command += ["--repetitions", str(arguments.repetitions)]
    command += ["--smoke"] if arguments.smoke else []
    for count in VIRTUAL_DEVICES[:2] if arguments.smoke else VIRTUAL_DEVICES:
        flag = f"--xla_force_host_platform_device_count={count}"
        subprocess.run(command, env={**os.environ, "XLA_FLAGS": flag}, check=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default=",".join(WORKS), help=f"some of {', '.join(WORKS)}")
    parser.add_argument("--repetitions", type=int, default=3, help="turns that are counted")
    parser.add_argument("--smoke", action="store_true", help="tiny work; figures mean nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/scale"), help="results")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    parsed.rows = parsed.rows.split(",")
    unknown = [name for name in parsed.rows if name not in WORKS]
    if unknown:
        parser.error(f"unknown row {unknown[0]!r}; choose among {', '.join(WORKS)}")
    if parsed.repetitions < 1:
        parser.error("--repetitions must be 1 or more")
    return parsed


def main() -> None:
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "points.jsonl"
    settings = Settings(arguments.repetitions, jax.default_backend(), arguments.smoke)
    for work in arguments.rows:
        if work == "devices" and settings.device == "cpu" and not arguments.here:
            measure_virtual_devices(arguments)
        else:
            measure(work, settings, path)
    if not arguments.here:
        machine = machines.describe()
        points = growth.latest(read_rows(path, Point), machine, arguments.smoke)
        growth.write(arguments.out, points, machine)
        Console(width=130).print(growth.console_table(points, machine))


if __name__ == "__main__":
    main()
