"""What a proxy of memorization looks at, and what it returns.

A *score* is float64 `[N]` over the training set in which larger means more memorized. A proxy has a
direction: +1 where its raw values grow with memorization, -1 where they fall (a confident model has
memorized little). `ProxyResult.scores` is the one place where they are turned round.

Design: a proxy declares what it needs and is refused in one line where that is missing. Rejected:
proxies that train or record what they miss by themselves; their cost would depend on what the
caller happened to have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from unroll.calls import format_call
from unroll.checkpoint import Store
from unroll.data.dataset import Dataset
from unroll.errors import DivergenceError, InputError
from unroll.training.events import Events
from unroll.training.run import Progress, Run
from unroll.training.timing import Stopwatch

FORWARD = 1 / 3
"""A forward pass in example gradients: a gradient is one forward pass and two backward ones."""
INPUT_GRADIENT = 2 / 3
"""A gradient in the inputs alone: one forward pass and the backward one through the layers."""

_MISSING = {
    "events": "train with unroll.training.events.train_with_events and give Subject(events=...)",
    "held_out": "give Subject(held_out=...) examples that no metric is taken on",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """The trained model whose training set is scored.

    Attributes:
      run: the run, with its training set of N examples and its snapshots.
      events: its learning events, if they were collected.
      held_out: examples that it was not trained on, for proxies that train on them; not those that
        metrics are taken on.
      store: where models lie that a proxy trains.

    Raises:
      InputError: if events or held-out examples do not fit the run.
    """

    run: Run
    events: Events | None = None
    held_out: Dataset | None = None
    store: Store | None = None

    def __post_init__(self):
        train = self.run.dataset
        if self.events is not None and len(self.events.visits) != len(train):
            raise InputError(
                f"events of {len(self.events.visits)} examples for a training set of {len(train)}; "
                "give those of this run"
            )
        held_out = self.held_out
        if held_out is not None and (held_out.example_shape, held_out.num_classes) != (
            train.example_shape,
            train.num_classes,
        ):
            raise InputError(
                f"held-out examples have shape {held_out.example_shape} and "
                f"{held_out.num_classes} classes, the training set {train.example_shape} and "
                f"{train.num_classes}; give examples of the same task"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
    """What a proxy measured.

    Attributes:
      raw: `[N]` values, in the direction of the proxy.
      example_gradients: evaluations spent beyond the run itself.
      info: what else there is to say, JSON-able.
      seconds: seconds spent, where the proxy knows better than a clock around it.
    """

    raw: np.ndarray
    example_gradients: float
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class ProxyResult:
    """A proxy's values with what they cost.

    Attributes:
      name: the proxy as a call.
      raw: float64 `[N]`, in the proxy's own direction.
      direction: +1 if `raw` grows with memorization, -1 if it falls.
      example_gradients: evaluations spent beyond the run itself; a forward pass is a third.
      seconds: seconds spent beyond the run itself, compilation not counted.
      info: what else there is to say, JSON-able.
    """

    name: str
    raw: np.ndarray
    direction: int
    example_gradients: float
    seconds: float
    info: dict[str, Any]

    @property
    def scores(self) -> np.ndarray:
        """float64 `[N]`; larger means more memorized."""
        return self.direction * self.raw


@dataclasses.dataclass(frozen=True)
class Proxy:
    """A proxy with its options filled in.

    Attributes:
      name: name in the registry.
      options: its keyword arguments.
      direction: +1 or -1, see `ProxyResult`.
      needs: what it takes besides the run: a subset of `events` and `held_out`.
      measure: `(subject, progress) -> Measurement`.
    """

    name: str
    options: dict[str, Any]
    direction: int
    needs: frozenset[str]
    measure: Callable[[Subject, Progress | None], Measurement]

    def __str__(self) -> str:
        return format_call(self.name, self.options)

    def check(self, subject: Subject) -> None:
        """Raises `InputError` if the subject lacks something, before any work."""
        for need in sorted(self.needs):
            if getattr(subject, need) is None:
                raise InputError(f"the proxy {self} needs {need}: {_MISSING[need]}")

    def __call__(self, subject: Subject, progress: Progress | None = None) -> ProxyResult:
        """Measures every example of the training set.

        Raises:
          InputError: if the subject lacks something, or does not fit the proxy.
          DivergenceError: if a value is not finite, or a training diverges.
        """
        self.check(subject)
        watch = Stopwatch()
        found = self.measure(subject, progress)
        seconds = watch.seconds() if found.seconds is None else found.seconds
        raw = np.asarray(found.raw, np.float64)
        if not np.isfinite(raw).all():
            raise DivergenceError(
                f"the proxy {self} of example {int(np.argmin(np.isfinite(raw)))} is not finite; "
                "lower the learning rate"
            )
        cost = float(found.example_gradients)
        return ProxyResult(str(self), raw, self.direction, cost, seconds, found.info)
