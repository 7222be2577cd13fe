"""One server and its queue: how long requests wait when deletions take time.

    begin_g = max(end_{g-1}, ready_g)     end_g = begin_g + service_g      groups g, one at a time
    wait_i  = end_{group of i} - arrival_i

(Lindley's recursion, for requests that are applied in groups.) For Poisson arrivals of rate r and a
constant service s < 1 / r the mean wait is s + r s^2 / (2 (1 - r s)), the formula of Pollaczek and
Khinchine, which a test holds against it.

Design: service times are given, for example counted gradients times seconds per gradient, so that
the queue of a stream is the same on every machine. Rejected: waiting times by the clock, in which
a busy machine and a slow policy look alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from unroll.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Queue:
    """What a stream of requests meets.

    Attributes:
      waits: float64 `[n]` seconds from the arrival of each request to its completion, in the order
        of arrival; NaN for requests in no group, which are not part of the queue.
      longest: most requests that were there at once, the ones being served included.
      busy: share of the time from the first arrival to the last completion that was spent serving.
    """

    waits: np.ndarray
    longest: int
    busy: float

    @property
    def mean_wait(self) -> float:
        """Mean of the waits in seconds; 0 without a request."""
        served = self.waits[~np.isnan(self.waits)]
        return float(served.mean()) if len(served) else 0.0

    @property
    def longest_wait(self) -> float:
        """Largest of the waits in seconds; 0 without a request."""
        served = self.waits[~np.isnan(self.waits)]
        return float(served.max()) if len(served) else 0.0


def queue(
    arrivals: Sequence[float],
    groups: Sequence[Sequence[int]],
    service_seconds: Sequence[float],
    *,
    ready: Sequence[float] | None = None,
) -> Queue:
    """Serves groups of requests one after the other.

    Args:
      arrivals: `[n]` seconds, never falling.
      groups: indices of the requests that are applied together, group by group in the order in
        which they are served.
      service_seconds: of each group.
      ready: time from which on each group may begin, where a policy waits for longer than until the
        last of its requests is there.

    Raises:
      InputError: if these do not fit together, a request is in two groups or in none that exists,
        or a time is no finite number.
    """
    arrivals = _seconds("arrivals", arrivals)
    service = _seconds("service_seconds", service_seconds)
    if (np.diff(arrivals) < 0).any():
        raise InputError("arrivals: the times fall; give them in the order of arrival")
    if (service < 0).any() or len(service) != len(groups):
        raise InputError(
            f"{len(service)} service times for {len(groups)} groups; give one, 0 or more, for each"
        )
    groups = [_indices(group, len(arrivals)) for group in groups]
    members = np.concatenate([np.zeros(0, np.int64), *groups])
    if len(np.unique(members)) < len(members):
        raise InputError("groups: a request is listed twice; it is served once")
    there = np.array([arrivals[group].max() for group in groups])
    if ready is not None:
        given = _seconds("ready", ready)
        if len(given) != len(groups):
            raise InputError(f"{len(given)} times `ready` for {len(groups)} groups")
        there = np.maximum(there, given)
    ends, free = np.full(len(arrivals), np.nan), -np.inf
    for group, begin, seconds in zip(groups, there, service, strict=True):
        ends[group] = free = max(free, begin) + seconds
    came, went = np.sort(arrivals[members]), np.sort(ends[members])
    span = went[-1] - came[0] if len(members) else 0.0
    busy = float(service.sum() / span) if span > 0 else 0.0
    return Queue(ends - arrivals, _longest(came, went), busy)


def _longest(came: np.ndarray, went: np.ndarray) -> int:
    """Most requests at once; one that goes when another comes has gone."""
    if not len(came):
        return 0
    present = np.arange(1, len(came) + 1) - np.searchsorted(went, came, side="right")
    # Requests without any service time go as they come, and are there for no time at all.
    return int(max(present.max(), 0))


def _indices(group: Sequence[int], count: int) -> np.ndarray:
    found = np.asarray(group)
    good = found.ndim == 1 and len(found) and np.issubdtype(found.dtype, np.integer)
    if not good or found.min() < 0 or found.max() >= count:
        raise InputError(f"groups: {list(group)!r} is no list of requests from 0 to {count - 1}")
    return found.astype(np.int64)


def _seconds(name: str, values: Sequence[float]) -> np.ndarray:
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise InputError(f"{name}: give one finite number of seconds for each")
    return found
