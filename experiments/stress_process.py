"""The server as a process of its own: started, watched by its journal, killed, started again."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

SCRIPT = Path(__file__).parent / "serve_deletions.py"

# Runs a script with the clock of ledgers a day back.
_EARLIER = """
import datetime, pathlib, runpy, sys, types
import unroll.deletion.ledger as ledger
class Earlier(datetime.datetime):
    @classmethod
    def now(cls, zone=None):
        return super().now(zone) - datetime.timedelta(days=1)
ledger.datetime = types.SimpleNamespace(datetime=Earlier, UTC=datetime.UTC)
sys.argv = sys.argv[1:]
sys.path.insert(0, str(pathlib.Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclasses.dataclass(frozen=True)
class Serving:
    """How the server is started.

    Attributes:
      arguments: flags of `serve_deletions.py`, but for `--workdir` and `--store`.
      workdir: its results.
      store: its models.
    """

    arguments: tuple[str, ...]
    workdir: Path
    store: Path

    @property
    def journal(self) -> Path:
        """Where its journal lies."""
        return self.workdir / "journal.jsonl"

    def changed(self, *arguments: str, workdir: Path | None = None) -> Serving:
        """The same server with further arguments, or on another directory."""
        workdir = self.workdir if workdir is None else workdir
        return Serving((*self.arguments, *arguments), workdir, self.store)

    def start(self, *, earlier_clock: bool = False) -> Process:
        """Starts it and returns at once."""
        program = ["-c", _EARLIER] if earlier_clock else []
        # The last one of equal flags counts, so further arguments may name another store.
        flags = [f"--workdir={self.workdir}", f"--store={self.store}", *self.arguments]
        return Process([sys.executable, *program, str(SCRIPT), *flags])

    def run(self, *, earlier_clock: bool = False) -> tuple[int, list[str]]:
        """Runs it to its end; the exit code, and the lines that it wrote to standard error."""
        process = self.start(earlier_clock=earlier_clock)
        return process.wait(), process.errors()


class Process:
    """A process whose standard error goes to a file, so that it never waits for a reader."""

    def __init__(self, command: Sequence[str]):
        self._errors = tempfile.TemporaryFile()
        streams = dict(stdout=subprocess.DEVNULL, stderr=self._errors)
        self._process = subprocess.Popen(command, **streams)

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def send(self, number: int) -> None:
        """Sends it a signal."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Waits for its end and returns its exit code."""
        return self._process.wait()

    def kill(self) -> None:
        """Kills it (SIGKILL) and waits until it is gone."""
        self._process.kill()
        self._process.wait()

    def errors(self) -> list[str]:
        """What it wrote to standard error, as lines; once."""
        with self._errors as file:
            file.seek(0)
            return file.read().decode("utf-8", "replace").strip().splitlines()


class Tail:
    """Counts the lines of a file that grows, without reading it twice."""

    def __init__(self, path: Path):
        self._path, self._read, self.lines = path, 0, 0

    def update(self) -> int:
        """Number of lines by now; a file that is not there has none."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._read)
                new = file.read()
        except FileNotFoundError:
            return self.lines
        self._read += len(new)
        self.lines += new.count(b"\n")
        return self.lines


def kill_at(
    serving: Serving, records: int, delay: float, last: int, report: Callable[[int], None]
) -> tuple[bool, list[str]]:
    """Starts a server and kills it (SIGKILL) a delay after its journal has so many records.

    Args:
      serving: the server.
      records: number of records.
      delay: seconds.
      last: number of records at which it is killed at once, lest it ends by itself.
      report: called with the number of records by now.

    Returns:
      Whether it was killed, which it is not where it ended before, and its standard error.
    """
    tail = Tail(serving.journal)
    last = max(last, tail.update() + 1)
    process = serving.start()
    while tail.update() < records and process.running:
        report(tail.lines)
        time.sleep(0.005)
    end = time.monotonic() + delay
    while time.monotonic() < end and tail.update() < last and process.running:
        time.sleep(0.005)
    killed = process.running
    process.kill()
    return killed, process.errors()


def is_one_line_error(lines: Sequence[str]) -> bool:
    """Whether standard error ends with an error of one line, and holds no traceback."""
    errors = [line for line in lines if line.startswith("error: ")]
    return len(errors) == 1 and lines[-1] == errors[0] and not any("Traceback" in x for x in lines)
