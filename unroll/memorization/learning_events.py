"""Learning events as proxies: how confidently an example was classified while it was learned.

    mean over all visits of p_y, max_c p_c, the entropy, or [argmax = y]      arXiv 2410.16516
    number of changes from correct to wrong                                   arXiv 1812.05159

An example that must be memorized is learned late, so that its means over the run stay low. The
entropy is the positive one here and grows with memorization; the reference code of the paper stores
its negative, which falls.

Design: pure functions of the events that `unroll.training.events` collects. Rejected: the outputs
of the final model alone, which tell apart little once all of the training set is fitted.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from unroll.memorization.subject import Measurement, Proxy
from unroll.training.events import Events


def _of_events(name: str, direction: int, values: Callable[[Events], np.ndarray]) -> Proxy:
    def measure(subject, progress):
        del progress  # nothing to wait for
        events = subject.events
        return Measurement(values(events), 0, {"visits": float(events.visits.mean())})

    return Proxy(name, {}, direction, frozenset({"events"}), measure)


def confidence() -> Proxy:
    """Mean probability of the label, in [0, 1]; falls with memorization."""
    return _of_events("confidence", -1, lambda events: events.confidence)


def max_confidence() -> Proxy:
    """Mean probability of the likeliest class, in [1/C, 1]; falls with memorization."""
    return _of_events("max_confidence", -1, lambda events: events.max_confidence)


def entropy() -> Proxy:
    """Mean entropy in nats, in [0, log C]; grows with memorization."""
    return _of_events("entropy", 1, lambda events: events.entropy)


def binary_accuracy() -> Proxy:
    """Share of the visits at which the example was classified correctly; falls."""
    return _of_events("binary_accuracy", -1, lambda events: events.accuracy)


def forgetting_events() -> Proxy:
    """Number of changes from correct to wrong; grows with memorization.

    An example that was never classified correctly was never forgotten either. It counts its number
    of visits, more than any other can have, as in arXiv 1812.05159, where it is put last.
    """
    return _of_events("forgetting_events", 1, forgetting_counts)


def forgetting_counts(events: Events) -> np.ndarray:
    """Changes from correct to wrong, and the number of visits where there was no correct one."""
    return np.where(events.accuracy == 0, events.visits, events.forgetting)
