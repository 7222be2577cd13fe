"""When deletions that wait are applied, and how: at once, in batches, or within a budget.

A policy decides on times of arrival, counts, and numbers that the journal holds; never on a clock
of its own or on how long something took. So a server that was killed decides the same again.

`Budgeted` answers with an approximation until a budget is used up, then exactly. What it does *not*
guarantee: that the model is near the exact one. The number of examples since the last exact point
bounds nothing; the distance moved says how much was done, not how much was right; and an estimate
of a method's own (`taylor` has one, `last_term_norm`) is a guess from terms that may stop falling.
Only the exact deletion is one. Until then the status of an example is `approximated`, and what its
model has learned of it may still be there. No registered method is cheap and judges itself:
`taylor` costs more than the retraining that it is judged against, so the default budget counts
examples.

Rejected: a threshold on the measured error against the retrained model. Whoever has that model can
serve it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Protocol

from unroll.calls import format_call, parse_call
from unroll.checks import positive_number, whole_number
from unroll.data.options import call_with_options
from unroll.errors import InputError

EXACT, APPROXIMATE = "exact", "approximate"


@dataclasses.dataclass(frozen=True)
class Situation:
    """What a policy knows.

    Attributes:
      clock: seconds since the start of the stream.
      waiting: number of requests that wait.
      waiting_examples: number of examples that they name.
      oldest: arrival of the oldest of them; infinite without any.
      approximated_examples: number of examples that are approximate since the last exact point.
      estimates: what the last approximation says of itself, see `services.Work`; else empty.
    """

    clock: float
    waiting: int = 0
    waiting_examples: int = 0
    oldest: float = math.inf
    approximated_examples: int = 0
    estimates: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Policy(Protocol):
    """When and how.

    Attributes:
      method: of approximate deletions; `None` for a policy without.
    """

    method: str | None

    def decide(self, situation: Situation) -> str | None:
        """`exact`, `approximate`, or `None` to wait."""

    def ready(self, situation: Situation) -> float:
        """Since when it has been so, in seconds since the start; at most the clock."""


@dataclasses.dataclass(frozen=True)
class Immediately:
    """Every deletion exactly, as it comes."""

    method = None

    def __str__(self) -> str:
        return "immediately"

    def decide(self, situation: Situation) -> str | None:
        """`exact` as soon as something waits."""
        return EXACT if situation.waiting else None

    def ready(self, situation: Situation) -> float:
        """The clock."""
        return situation.clock


@dataclasses.dataclass(frozen=True)
class Batches:
    """Exactly, once enough requests wait or the oldest has waited long enough.

    Whether it has is looked at when the next request arrives, which that application is without.

    Attributes:
      size: so many requests are enough.
      longest_wait: seconds; without a limit by default.

    Raises:
      InputError: if these are no such numbers.
    """

    size: int
    longest_wait: float = math.inf
    method = None

    def __post_init__(self):
        whole_number("size", self.size)
        positive_number("longest_wait", self.longest_wait)

    def __str__(self) -> str:
        # An infinite number has no literal.
        limit = {} if math.isinf(self.longest_wait) else {"longest_wait": self.longest_wait}
        return format_call("batches", {"size": self.size, **limit})

    def decide(self, situation: Situation) -> str | None:
        """`exact` if a batch is full or late."""
        if not situation.waiting:
            return None
        late = situation.clock >= situation.oldest + self.longest_wait
        return EXACT if late or situation.waiting >= self.size else None

    def ready(self, situation: Situation) -> float:
        """When the batch was full or late."""
        if situation.waiting >= self.size:
            return situation.clock
        return min(situation.clock, situation.oldest + self.longest_wait)


@dataclasses.dataclass(frozen=True)
class Budgeted:
    """Approximately, as it comes, until the budget is used up; then all of it exactly.

    Attributes:
      method: an approximate method, such as `single_gradient`.
      threshold: so many examples may be approximate.
      distance: how far the model may have moved from the last exact one, norm of the parameters;
        without a limit by default.
      estimate: a number of the method's `info`, such as `last_term_norm`; none by default.
      limit: how large that may be.

    Raises:
      InputError: if these are no such numbers, or `estimate` comes without `limit`.
    """

    method: str
    threshold: int
    distance: float = math.inf
    estimate: str | None = None
    limit: float = math.inf

    def __post_init__(self):
        whole_number("threshold", self.threshold)
        positive_number("distance", self.distance)
        positive_number("limit", self.limit)
        if not isinstance(self.method, str):
            raise InputError(f"method={self.method!r} is no method; give its name as a text")
        parse_call(self.method)
        if (self.estimate is None) != math.isinf(self.limit):
            raise InputError("give both estimate and limit, or neither")

    def __str__(self) -> str:
        given = {k: v for k, v in vars(self).items() if v is not None and v != math.inf}
        return format_call("budgeted", given)

    def decide(self, situation: Situation) -> str | None:
        """`approximate` within the budget, `exact` beyond it.

        Raises:
          InputError: if the method does not give the estimate.
        """
        if situation.waiting:
            together = situation.approximated_examples + situation.waiting_examples
            return EXACT if together > self.threshold else APPROXIMATE
        if not situation.approximated_examples:
            return None
        found = situation.estimates
        if self.estimate is not None and self.estimate not in found:
            raise InputError(
                f"{self.method} gives no estimate {self.estimate!r}; choose one of {sorted(found)}"
            )
        # Written so that what is not a number is beyond the budget.
        within = math.isinf(self.distance) or found["distance"] <= self.distance
        within &= self.estimate is None or found[self.estimate] <= self.limit
        return None if within else EXACT

    def ready(self, situation: Situation) -> float:
        """The clock."""
        return situation.clock


POLICIES: dict[str, Callable[..., Policy]] = {
    "immediately": Immediately,
    "batches": Batches,
    "budgeted": Budgeted,
}


def make_policy(text: str) -> Policy:
    """A policy from its name, or a call such as `batches(size=8, longest_wait=60.0)`.

    Raises:
      InputError: on an unknown policy, an unknown or missing argument, or a wrong one.

    >>> str(make_policy("batches(size=8)"))
    'batches(size=8)'
    """
    name, arguments = parse_call(text)
    if name not in POLICIES:
        raise InputError(f"unknown policy {name!r}; choose one of {sorted(POLICIES)}")
    return call_with_options(POLICIES[name], f"policy {name}", **arguments)
