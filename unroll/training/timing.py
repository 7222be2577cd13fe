"""Seconds of work without seconds of compilation.

Costs are compared with retraining. Compilation happens once per program and process, so it is
measured apart: jax reports the duration of every compilation to listeners, and a stopwatch takes
them off its own time.
"""

from __future__ import annotations

import time

import jax

_COMPILATION_EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
# (end, duration) of every compilation event of this process, in the order of their ends.
_events: list[tuple[float, float]] = []


def _listen(event: str, duration: float, **_: object) -> None:
    if event in _COMPILATION_EVENTS:
        _events.append((time.perf_counter(), duration))


jax.monitoring.register_event_duration_secs_listener(_listen)


class Stopwatch:
    """Wall-clock and compilation seconds since it was made.

    >>> watch = Stopwatch()
    >>> watch.seconds() >= 0
    True
    """

    def __init__(self):
        self._start = time.perf_counter()
        self._first_event = len(_events)

    def seconds(self) -> float:
        """Seconds so far without compilation."""
        return max(time.perf_counter() - self._start - self.compilation_seconds(), 0.0)

    def compilation_seconds(self) -> float:
        """Seconds so far in which something was traced, lowered or compiled.

        Events nest (tracing a function traces the functions that it calls), so the length of the
        union of their intervals is taken, not the sum.
        """
        total = 0.0
        covered_from = float("inf")
        for end, duration in reversed(_events[self._first_event :]):
            begin = max(end - duration, self._start)
            total += max(min(end, covered_from) - begin, 0.0)
            covered_from = min(covered_from, begin)
        return total
