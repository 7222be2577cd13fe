"""The speed of this library beside what would be used instead: one table of ratios.

  pip install -e ".[peers]"
  python benchmarks/compare.py
  python benchmarks/compare.py --rows mlp_step,cnn_step --repetitions 15
  python benchmarks/compare.py --smoke

Rows are measured one after the other, each in a process of its own, so that no row finds another's
threads, memory or compiled programs. Each is appended to `rows.jsonl` in the output folder as soon
as it exists, and the table, printed and written to `table.md`, shows the last of each row that this
machine measured; so `--rows` adds to the table or renews a part of it. On a GPU the other side is
compiled with `torch.compile`.
"""

import argparse
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

import machine as machines
import table
from rich.console import Console
from work import NotHereError, Row, Settings, Work, make_row, missing_row
from works import WORKS

from unroll.evaluation.rows import append_rows, read_rows

_ROWS = "rows.jsonl"
_DEVICES = "--xla_force_host_platform_device_count"


def measure(work: Work, settings: Settings, path: Path) -> Row:
    """Measures a row in this process and appends it to the file."""
    machine, begin = machines.describe(), time.perf_counter()
    try:
        outcome = work.measure(settings)
        row = make_row(work, settings, machine, outcome, time.perf_counter() - begin)
    except NotHereError as error:
        row = missing_row(work, settings, machine, str(error))
    except Exception as error:  # the other rows are still worth measuring; the run ends with 1
        traceback.print_exc()
        note = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        row = missing_row(work, settings, machine, note, failed=True)
    append_rows(path, [row])
    return row


def measure_apart(work: Work, arguments: argparse.Namespace, path: Path) -> None:
    """Measures a row in a process of its own, which appends it to the file."""
    command = [sys.executable, __file__, "--rows", work.name, "--out", str(arguments.out)]
    command += ["--repetitions", str(arguments.repetitions), "--here"]
    command += ["--smoke"] if arguments.smoke else []
    code = subprocess.run(command, env=_environment(work)).returncode
    if code:  # killed, for want of memory perhaps, before it could write its row
        settings = Settings(smoke=arguments.smoke)
        note = f"its process ended with code {code}"
        append_rows(path, [missing_row(work, settings, machines.describe(), note, failed=True)])


def _environment(work: Work) -> dict[str, str]:
    """Virtual devices for an ensemble of small dense networks, one for each core of the CPU.

    A step of such a network keeps to one core, and so does a batch of them. Convolutions use all
    cores by themselves, and are slower spread over devices.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if work.name == "mlp_ensemble" and _DEVICES not in flags:
        flags = f"{flags} {_DEVICES}={machines.describe()['cores']}".strip()
    return {**os.environ, "XLA_FLAGS": flags}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [work.name for work in WORKS]
    parser.add_argument("--rows", default=",".join(names), help=f"some of {', '.join(names)}")
    parser.add_argument("--repetitions", type=int, default=7, help="turns of each side")
    parser.add_argument("--smoke", action="store_true", help="tiny work; figures mean nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="results")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    parsed.rows = parsed.rows.split(",")
    unknown = [name for name in parsed.rows if name not in names]
    if unknown:
        parser.error(f"unknown row {unknown[0]!r}; choose among {', '.join(names)}")
    if parsed.repetitions < 1:
        parser.error("--repetitions must be 1 or more")
    return parsed


def main() -> int:
    arguments = parse()
    # jax would take three quarters of a GPU's memory for itself, before PyTorch has any.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / _ROWS
    chosen = [work for work in WORKS if work.name in arguments.rows]
    if arguments.here:
        device = machines.describe()["device"]
        settings = Settings(arguments.repetitions, device, arguments.smoke)
        for work in chosen:
            measure(work, settings, path)
        return 0
    console = Console()
    for number, work in enumerate(chosen, start=1):
        console.print(f"{number}/{len(chosen)} {work.name}: {work.title}", highlight=False)
        measure_apart(work, arguments, path)
    machine = machines.describe()
    rows = table.latest(read_rows(path, Row), machine, arguments.smoke)
    table.write(arguments.out / "table.md", rows, machine)
    # Without a terminal rich assumes 80 columns, too few for the figures.
    console = Console(width=None if console.is_terminal else 150)
    console.print(table.console_table(rows, machine))
    console.print(f"table: {arguments.out / 'table.md'}", highlight=False)
    return int(any(rows[work.name].failed for work in chosen))


if __name__ == "__main__":
    sys.exit(main())
