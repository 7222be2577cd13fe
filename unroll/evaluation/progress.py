"""Progress of long work: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import rich.console
import rich.progress

from unroll.training.run import Progress

_LINE_SECONDS = 10.0


class ProgressDisplay:
    """Shows tasks with an estimate of the time left.

    Args:
      console: where to show them; standard error by default.

    Example:
      display = ProgressDisplay()
      with display.task("train") as report:
          run = unroll.train(..., progress=report)
    """

    def __init__(self, console: rich.console.Console | None = None):
        self.console = console or rich.console.Console(stderr=True)

    @contextlib.contextmanager
    def task(self, description: str) -> Iterator[Progress]:
        """Opens the display of one task and yields its callback `(done, total)`."""
        if self.console.is_terminal:
            with self._bar(description) as report:
                yield report
        else:
            yield self._lines(description)

    @contextlib.contextmanager
    def _bar(self, description: str) -> Iterator[Progress]:
        columns = (
            rich.progress.TextColumn("{task.description:<40}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
        )
        with rich.progress.Progress(*columns, console=self.console) as bar:
            task = bar.add_task(description, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    def _lines(self, description: str) -> Progress:
        begin = last = time.monotonic()

        def report(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < _LINE_SECONDS and done < total:
                return
            last = now
            left = (now - begin) * (total - done) / max(done, 1)
            ending = f"{left:.0f} s left" if done < total else f"done in {now - begin:.1f} s"
            self.console.print(
                f"{description}: {done}/{total}, {ending}", highlight=False, soft_wrap=True
            )

        return report
