"""Turn-about timing: both sides in one process, neither ever beside the other."""

from collections.abc import Callable

import numpy as np
from work import DifferentWorkError, Settings

Measure = Callable[[], float]
"""Does the work once and returns the figure of that turn, in seconds per unit of work."""


def turn_about(
    ours: Measure, theirs: Measure, settings: Settings
) -> tuple[list[float], list[float]]:
    """Figures of both sides, one pair for each repetition.

    Each side has one turn before that is not counted: it compiles, and fills caches. A smoke test
    does without.
    """
    if not settings.smoke:
        ours()
        theirs()
    pairs = [(ours(), theirs()) for _ in range(settings.repetitions)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def agree(what: str, ours, theirs, tolerance: float) -> str:
    """Says how well two sequences of numbers agree, relative to their size.

    Raises:
      DifferentWorkError: if they differ by more than the tolerance.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if not ours.size or ours.shape != theirs.shape:
        raise DifferentWorkError(f"{what}: {ours.shape} of ours against {theirs.shape} of theirs")
    scale = np.maximum(np.maximum(np.abs(ours), np.abs(theirs)), 1e-12)
    worst = np.max(np.abs(ours - theirs) / scale)
    if not worst <= tolerance:  # so that a NaN does not pass
        raise DifferentWorkError(f"{what} differ by {worst:.1e}, more than {tolerance:g}")
    return f"{what} agree to {worst:.0e}"
