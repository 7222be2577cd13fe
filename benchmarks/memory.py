"""Peak memory of training, Taylor series and metagradients, against steps and parameters.

  python benchmarks/memory.py
  python benchmarks/memory.py --smoke
  python benchmarks/memory.py --figure=docs/figures/memory.png

Each point is a process of its own. Its peak resident set, less that of a process which does the
same with a tiny model for a few steps, is what the arrays take; imports and the compiler fall out.
On Linux the C allocator is told to give back what is freed; else it keeps up to half as much again
of arrays below 32 MB, in an order that differs from run to run.
Points go to `<out>/memory.jsonl` as soon as they are measured, and are not measured again: a run
that was stopped goes on. Beside each stands what `unroll.evaluation.work` expects for it.
"""

import argparse
import dataclasses
import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import jax
import machine
import numpy as np
from rich.console import Console
from rich.table import Table

import unroll
from unroll.evaluation import work
from unroll.report.style import COLOURS, MUTED, new_figure, plain_axes
from unroll.training.estimate import footprint
from unroll.unrolling.metagradients import metagradients
from unroll.unrolling.outcomes import mean_loss
from unroll.unrolling.taylor import taylor_coefficients

ORDERS = {"taylor(order=1)": 1, "taylor(order=2)": 2, "taylor(order=3)": 3}
WORKS = ("training", *ORDERS, "metagradients")
BATCH, FEATURES, CLASSES, EXAMPLES = 8, 64, 10, 256


@dataclasses.dataclass(frozen=True)
class Point:
    """What one process does: a work on an MLP with two hidden layers of one width."""

    work: str
    steps: int
    width: int


@dataclasses.dataclass(frozen=True)
class Row:
    """A measured point.

    Attributes:
      work: what was done; see `WORKS`.
      steps: length T of the run.
      width: of both hidden layers.
      parameters: number of parameters.
      state: bytes of one state.
      peak: peak resident set of the process, bytes.
      expected: bytes that are expected of the arrays before the work starts.
      device: kind of device.
    """

    work: str
    steps: int
    width: int
    parameters: int
    state: int
    peak: int
    expected: int
    device: str

    @property
    def point(self) -> Point:
        """What was measured."""
        return Point(self.work, self.steps, self.width)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Lengths at one width, and widths at one length."""

    works: tuple[str, ...]
    steps: tuple[int, ...]
    at_width: int
    widths: tuple[int, ...]
    at_steps: int

    def points(self) -> list[Point]:
        """All points, those of the baselines first."""
        found = [baseline(name) for name in self.works]
        found += [Point(name, steps, self.at_width) for name in self.works for steps in self.steps]
        found += [Point(name, self.at_steps, width) for name in self.works for width in self.widths]
        return list(dict.fromkeys(found))


FULL = Grid(WORKS, (16, 64, 256, 1024), 1536, (1536, 2304, 3072, 4608), 64)
SMOKE = Grid(("training", "metagradients"), (16,), 1024, (1024,), 16)


# Of glibc. Unset, it rises to the size of what was freed, and such blocks are then kept.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def baseline(name: str) -> Point:
    """The same program with arrays of no size."""
    return Point(name, 4, 8)


def measure(point: Point) -> Row:
    """Does the work in this process and reads its peak."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
    labels = generator.integers(CLASSES, size=EXAMPLES).astype(np.int32)
    data = unroll.data.Dataset("random", inputs, labels, CLASSES)
    net = unroll.models.build("mlp", num_classes=CLASSES, hidden=(point.width, point.width))
    spec = unroll.TrainSpec(net, optimizer=unroll.optax_call("sgd", learning_rate=0.01))
    epochs = math.ceil(point.steps * BATCH / EXAMPLES)
    schedule = unroll.data.make_schedule(0, EXAMPLES, BATCH, epochs)[: point.steps]
    run = unroll.train(spec, data, schedule)
    if point.work in ORDERS:
        direction = np.zeros(EXAMPLES, np.float32)
        direction[:4] = -1.0
        taylor_coefficients(run, direction, ORDERS[point.work])
    elif point.work == "metagradients":
        metagradients(run, mean_loss(spec, data))
    peak = peak_bytes()  # before the estimate, which holds memory of its own
    state = run.state.params
    return Row(
        **dataclasses.asdict(point),
        parameters=unroll.models.parameter_count({"params": state}),
        state=sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
        peak=peak,
        expected=expected_bytes(point, spec, data, schedule),
        device=jax.devices()[0].device_kind,
    )


def peak_bytes() -> int:
    """Peak resident set of this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def expected_bytes(point: Point, spec, data, schedule) -> int:
    """What `unroll.evaluation.work` says of the point; two states of the run are recorded."""
    recipe = spec, data, schedule
    if point.work == "training":
        asked = work.training(*recipe)
    elif point.work in ORDERS:
        asked = work.series(*recipe, ORDERS[point.work])
    else:
        asked = work.metagradient(*recipe, 1, snapshots=2)
    found = asked.memory(spec, footprint(*recipe))
    return found.device + found.host


def read(path: Path) -> list[Row]:
    """Rows that were measured before."""
    if not path.exists():
        return []
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def measure_missing(points: list[Point], path: Path, console: Console) -> list[Row]:
    """Measures the points that have no row yet, each in a process of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {row.point for row in read(path)}
    for number, point in enumerate(points, start=1):
        if point in done:
            continue
        console.print(f"{number}/{len(points)}: {point}", highlight=False)
        answer = subprocess.run(
            [sys.executable, __file__, "--point", json.dumps(dataclasses.asdict(point))],
            capture_output=True,
            text=True,
            env={**os.environ, **_ALLOCATOR},
        )
        if answer.returncode:
            sys.exit(f"error: {point}: {answer.stderr.strip().splitlines()[-1]}")
        with path.open("a", encoding="utf-8") as file:
            file.write(answer.stdout.strip().splitlines()[-1] + "\n")
    return [row for row in read(path) if row.point in points]


def above_baseline(rows: list[Row]) -> dict[Point, float]:
    """Peak of each point less its baseline's, bytes."""
    peaks = {row.point: row.peak for row in rows}
    return {
        row.point: max(row.peak - peaks[baseline(row.work)], 0)
        for row in rows
        if row.point != baseline(row.work)
    }


def exponent(along: list[int], values: list[float]) -> float | None:
    """p of the fit `value ~ along^p`; `None` with fewer than two points."""
    if len(along) < 2 or min(values) <= 0:
        return None
    return float(np.polyfit(np.log(along), np.log(values), 1)[0])


def series_of(grid: Grid, rows: list[Row], name: str, axis: str) -> list[Row]:
    """The rows of a work along one axis of the grid, ascending."""
    fixed = ("width", grid.at_width) if axis == "steps" else ("steps", grid.at_steps)
    found = [row for row in rows if row.work == name and getattr(row, fixed[0]) == fixed[1]]
    wanted = grid.steps if axis == "steps" else grid.widths
    return sorted(
        (row for row in found if getattr(row, axis) in wanted), key=lambda row: getattr(row, axis)
    )


def table_cells(grid: Grid, rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and body of the table: MB measured (expected), and the exponents of the fits."""
    used = above_baseline(rows)
    state = next(row.state for row in rows if row.width == grid.at_width)
    header = ["MB measured (expected)"]
    header += [f"T = {steps}" for steps in grid.steps] + ["grows as T^"]
    parameters = {row.width: row.parameters for row in rows}
    widths = [width for width in grid.widths if width != grid.at_width]
    header += [f"P = {parameters[width] / 1e6:.2g} M" for width in widths] + ["grows as P^"]
    body = []
    for name in grid.works:
        along = series_of(grid, rows, name, "steps")
        across = series_of(grid, rows, name, "width")
        rest = [row for row in across if row.width != grid.at_width]
        cells = [name, *(_cell(row, used) for row in along)]
        cells += [_power([row.steps for row in along], [used[row.point] for row in along])]
        cells += [_cell(row, used) for row in rest]
        cells += [_power([r.parameters for r in across], [used[r.point] for r in across])]
        body.append(cells)
    caption = (
        f"P = {parameters[grid.at_width] / 1e6:.2g} M along T (a state is {state / 1e6:.3g} MB), "
        f"T = {grid.at_steps} along P; batch {BATCH}."
    )
    return [caption, *header], body


def _cell(row: Row, used: dict[Point, float]) -> str:
    return f"{used[row.point] / 1e6:.0f} ({row.expected / 1e6:.0f})"


def _power(along: list[int], values: list[float]) -> str:
    found = exponent(along, values)
    return "" if found is None else f"{found:.2f}"


def markdown(grid: Grid, rows: list[Row]) -> str:
    """The table as markdown."""
    (caption, *header), body = table_cells(grid, rows)
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *body)]
    lines.insert(1, "|---|" + "---:|" * (len(header) - 1))
    where = machine.describe()
    device = where["device_kind"] if where["device"] != "cpu" else "no accelerator"
    place = f"{where['cores']} cores of {where['cpu']}, {device}, jax {where['jax']}."
    return "\n".join([f"{caption} {place}", "", *lines, ""])


def draw(grid: Grid, rows: list[Row], path: Path) -> None:
    """Peak in states against T, and in bytes against P."""
    used = above_baseline(rows)
    figure = new_figure(9.6, 4.2)
    figure.set_layout_engine("constrained")
    along, across = figure.subplots(1, 2)
    for name, colour in zip(grid.works, COLOURS, strict=False):
        line = series_of(grid, rows, name, "steps")
        along.plot(
            [row.steps for row in line],
            [used[row.point] / row.state for row in line],
            marker="o",
            color=colour,
            label=name,
        )
        line = series_of(grid, rows, name, "width")
        megabytes = [used[row.point] / 1e6 for row in line]
        across.plot([row.parameters for row in line], megabytes, marker="o", color=colour)
    reverse = series_of(grid, rows, "metagradients", "steps")
    if reverse:
        last = reverse[-1]
        scale = used[last.point] / last.state / math.sqrt(last.steps)
        guide = [scale * math.sqrt(steps) for steps in grid.steps]
        along.plot(grid.steps, guide, color=MUTED, ls=":", label="proportional to $\\sqrt{T}$")
    along.set_xlabel("steps T")
    along.set_ylabel("peak memory, states")
    across.set_xlabel("parameters P")
    across.set_ylabel("peak memory, MB")
    for axes in (along, across):
        axes.set_xscale("log", base=2 if axes is along else 10)
        axes.set_yscale("log")
        plain_axes(axes)
    sizes = sorted({row.parameters for row in rows if row.point in used})
    across.set_xticks(sizes, [f"{size / 1e6:.1f} M" for size in sizes])
    across.minorticks_off()
    along.legend(frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="few and small points: seconds")
    parser.add_argument("--out", type=Path, help="runs/memory, with -smoke, by default")
    parser.add_argument("--figure", type=Path, help="<out>/memory.png by default")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(dataclasses.asdict(measure(Point(**json.loads(arguments.point))))))
        return
    grid = SMOKE if arguments.smoke else FULL
    out = arguments.out or Path("runs") / ("memory-smoke" if arguments.smoke else "memory")
    console = Console(stderr=True)
    rows = measure_missing(grid.points(), out / "memory.jsonl", console)
    draw(grid, rows, arguments.figure or out / "memory.png")
    (out / "memory.md").write_text(markdown(grid, rows), encoding="utf-8")
    (caption, *header), body = table_cells(grid, rows)
    table = Table(*header, caption=caption)
    for cells in body:
        table.add_row(*cells)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
