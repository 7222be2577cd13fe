"""Streams of requests: who asks for what, and when; from a seed, line by line.

    time of line n = sum of n + 1 exponential gaps of mean 1 / rate      (Poisson arrivals, seconds)

A stream is named by a call such as `mixed(requests=1000, rate=2.0)`, see `STREAMS`. All but
`adaptive` are drawn in advance and never look at a model.

Adaptive requests depend on what the models put out. Gupta et al., "Adaptive machine unlearning"
(arXiv 2106.04378), show that guarantees which were proved for requests that are independent of the
published models fail for such requests, SISA's among them, and attack SISA on images in practice.
What they compare with is a training with fresh randomness. The claim of `unroll.deletion.sisa` is
another one, and holds for adaptive requests too: equal bits as a training from scratch on what
remains *with the same assignment and seeds*. But which examples remain can then tell about that
assignment, and so about what was deleted; a fresh assignment would not.

Design: a line is a pure function of (seed, number, service, ids asked for), so that a server which
was killed reads the same stream again. Rejected: an iterator with a state of its own, which would
have to be stored beside every acknowledged line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from unroll.calls import parse_call
from unroll.checks import positive_number, seed_number, whole_number
from unroll.data.dataset import Dataset
from unroll.data.ids import make_generator
from unroll.data.options import call_with_options
from unroll.deletion.costs import adversarial_stream, exponential_probabilities, weighted_stream
from unroll.deletion.requests import Request, format_request
from unroll.deletion.sharding import Assignment
from unroll.errors import InputError

CHOICES = ("most_sure", "least_sure", "either")

Draw = Callable[[int, Any, Iterable[int]], tuple[str, Sequence[int]] | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """A stream of requests, made by `make_stream`.

    Attributes:
      times: float64 `[n]`, seconds since the start, ascending.
      draw: `(number, service, asked)` to kind and ids of a line, `None` where nothing is left.
      adaptive: whether lines depend on the service.
      key: lines are authenticated with it.
    """

    times: np.ndarray
    draw: Draw
    adaptive: bool = False
    key: bytes | None = None

    @property
    def length(self) -> int:
        """Number of lines; an adaptive stream can end earlier, when one example is left."""
        return len(self.times)

    def line(self, number: int, service: Any, asked: Iterable[int] = ()) -> str | None:
        """One request as a line of JSON without its end, `None` after the last one.

        Args:
          number: which line, from 0.
          service: the model of now, which an adaptive stream looks at: `removed` and
            `predict(dataset)`. The other streams take `None`.
          asked: ids that earlier lines asked to delete and that may still be waiting. An adaptive
            stream asks for none of them, nor for what the service has removed.

        Raises:
          InputError: if the number is none.
        """
        if whole_number("number", number, least=0) >= self.length:
            return None
        drawn = self.draw(number, service, asked)
        if drawn is None:
            return None
        kind, ids = drawn
        time = float(self.times[number])
        request = Request(f"r-{number + 1:06d}", time, kind, tuple(int(id) for id in ids))
        return format_request(request, self.key)


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """What a stream is made for; see `make_stream`."""

    examples: int
    test_examples: int
    seed: int
    assignment: Assignment | None = None
    train: Dataset | None = None

    def times(self, requests: int, rate: float) -> np.ndarray:
        """Poisson arrivals float64 `[requests]`, in seconds, to the microsecond."""
        gaps = make_generator(self.seed, "arrivals").exponential(
            1 / positive_number("rate", rate), whole_number("requests", requests)
        )
        times = np.round(np.cumsum(gaps), 6)
        if not np.isfinite(times).all():
            raise InputError(f"rate={rate!r} is too low a rate; the times are infinite")
        return times


def make_stream(
    text: str,
    *,
    examples: int,
    test_examples: int,
    seed: int,
    assignment: Assignment | None = None,
    train: Dataset | None = None,
    key: bytes | None = None,
) -> Stream:
    """Builds a stream from its name, or from a call such as `mixed(requests=1000, rate=2.0)`.

    Args:
      text: one of `STREAMS`, with its options.
      examples: number of training examples, to delete and to ask about.
      test_examples: number of test examples, to predict.
      seed: of arrivals and choices.
      assignment: shards and slices, which an adversary knows.
      train: the training set, which an adaptive stream looks at with the model's eyes.
      key: of the codes of authenticity on the lines; none by default.

    Raises:
      InputError: on an unknown stream or option, or one that cannot work: more deletions than
        leave an example, an adversary without an assignment.
    """
    name, options = parse_call(text)
    if name not in STREAMS:
        raise InputError(f"unknown stream {name!r}; choose one of {sorted(STREAMS)}")
    whole_number("examples", examples)
    whole_number("test_examples", test_examples)
    setting = Setting(examples, test_examples, seed_number(seed), assignment, train)
    stream = call_with_options(STREAMS[name], f"stream {name}", setting, **options)
    return dataclasses.replace(stream, key=key)


def uniform(setting: Setting, requests: int = 100, rate: float = 1.0) -> Stream:
    """One example per request, all equally likely.

    Args:
      setting: see `make_stream`.
      requests: number of lines.
      rate: requests per second.
    """
    return bursts(setting, requests, rate, size=1)


def bursts(setting: Setting, requests: int = 100, rate: float = 1.0, size: int = 8) -> Stream:
    """`size` examples per request, all equally likely: users with several examples each.

    Args:
      setting: see `make_stream`.
      requests: number of lines.
      rate: requests per second.
      size: examples of one request.
    """
    count = whole_number("requests", requests) * whole_number("size", size)
    order = _permutation(setting, count)
    return _deletions(setting, order.reshape(requests, size), rate)


def exponential(
    setting: Setting, requests: int = 100, rate: float = 1.0, decay: float = 5.0
) -> Stream:
    """One example per request, early ids first; see `unroll.deletion.costs`.

    Args:
      setting: see `make_stream`.
      requests: number of lines.
      rate: requests per second.
      decay: rate of `exponential_probabilities`.
    """
    _check_count(setting, requests)
    probabilities = exponential_probabilities(setting.examples, decay)
    ids = weighted_stream(setting.seed, probabilities, requests)
    return _deletions(setting, ids[:, None], rate)


def adversarial(
    setting: Setting, requests: int = 100, rate: float = 1.0, together: int = 1
) -> Stream:
    """One example per request, each the most costly one: of the first slice, of the largest shard.

    The adversary knows the assignment. Stages are taken to have equal numbers of epochs.

    Args:
      setting: see `make_stream`, with an assignment.
      requests: number of lines.
      rate: requests per second.
      together: how many requests the server applies at once, as far as the adversary knows.
    """
    _check_count(setting, requests)
    assignment = setting.assignment
    if assignment is None:
        raise InputError("an adversarial stream needs an assignment; serve a SISA system")
    epochs = (1,) * assignment.slices
    ids = adversarial_stream(assignment, epochs, requests, batch=whole_number("together", together))
    return _deletions(setting, ids[:, None], rate)


def mixed(
    setting: Setting,
    requests: int = 100,
    rate: float = 1.0,
    delete: float = 0.4,
    predict: float = 0.4,
    status: float = 0.2,
    largest: int = 3,
) -> Stream:
    """Deletions, predictions and questions after a deletion, of 1 to `largest` examples each.

    Args:
      setting: see `make_stream`.
      requests: number of lines.
      rate: requests per second.
      delete: share of deletions; the three shares count by their ratios.
      predict: share of predictions for test examples.
      status: share of questions after training examples.
      largest: most examples of one request.
    """
    shares = {"delete": delete, "predict": predict, "status": status}
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1e9:
            raise InputError(f"stream mixed: {name} must be a share, 0 or more; got {share!r}")
    if not sum(shares.values()) > 0:
        raise InputError("stream mixed: the shares are all 0; give one above 0")
    whole_number("requests", requests)
    if whole_number("largest", largest) > min(setting.examples, setting.test_examples):
        raise InputError(f"largest={largest} examples in a request are more than there are")
    generator = make_generator(setting.seed, "mixed stream")
    share = np.array(list(shares.values())) / sum(shares.values())
    kinds = np.array(list(shares))[generator.choice(len(shares), requests, p=share)]
    sizes = generator.integers(1, largest + 1, requests)
    order = iter(_permutation(setting, int(sizes[kinds == "delete"].sum())))
    lines = []
    for kind, size in zip(kinds.tolist(), sizes.tolist(), strict=True):
        if kind == "delete":
            ids = [next(order) for _ in range(size)]
        else:
            known = setting.test_examples if kind == "predict" else setting.examples
            ids = generator.choice(known, size, replace=False).tolist()
        lines.append((kind, ids))
    return _fixed(setting, lines, rate)


def adaptive(
    setting: Setting,
    requests: int = 100,
    rate: float = 1.0,
    choice: str = "either",
    size: int = 1,
) -> Stream:
    """Deletes the remaining examples of which the current model is most sure, or least sure.

    How sure it is: the largest of its scores less the second largest, of logits or of shares.
    Equally sure ones go by their ids. What this does to guarantees is in the module docstring.

    Args:
      setting: see `make_stream`, with the training set.
      requests: number of lines.
      rate: requests per second.
      choice: `most_sure`, `least_sure`, or `either`: one of them by a coin for each line.
      size: examples of one request.
    """
    if choice not in CHOICES:
        raise InputError(f"unknown choice {choice!r}; choose one of {CHOICES}")
    _check_count(setting, whole_number("requests", requests) * whole_number("size", size))
    train = setting.train
    if train is None or len(train) != setting.examples:
        raise InputError("an adaptive stream needs the training set; give it as `train`")
    coins = make_generator(setting.seed, "adaptive stream").integers(0, 2, requests)
    most_sure = np.full(requests, choice == "most_sure") if choice != "either" else coins == 1

    def draw(number: int, service: Any, asked: Iterable[int]):
        left = np.ones(len(train), bool)
        left[np.asarray(service.removed, np.int64)] = False
        left[np.array(list(asked), np.int64)] = False
        ids = np.flatnonzero(left)
        if len(ids) <= size:
            return None
        margin = sureness(service.predict(train.take(ids)))
        order = np.argsort(-margin if most_sure[number] else margin, kind="stable")
        return "delete", ids[order[:size]].tolist()

    return Stream(setting.times(requests, rate), draw, adaptive=True)


def sureness(scores: np.ndarray) -> np.ndarray:
    """Largest score less the second largest, float64 `[M]`, of scores `[M, C]`; 0 of one class."""
    scores = np.asarray(scores, np.float64)
    if scores.shape[1] < 2:
        return np.zeros(len(scores))
    largest = np.partition(scores, -2, axis=1)
    return largest[:, -1] - largest[:, -2]


STREAMS: dict[str, Callable[..., Stream]] = {
    "uniform": uniform,
    "exponential": exponential,
    "adversarial": adversarial,
    "bursts": bursts,
    "mixed": mixed,
    "adaptive": adaptive,
}


def _permutation(setting: Setting, count: int) -> np.ndarray:
    """Distinct training ids int64 `[count]`, all equally likely."""
    _check_count(setting, count)
    order = make_generator(setting.seed, "deletion stream").permutation(setting.examples)
    return order[:count]


def _check_count(setting: Setting, count: int) -> None:
    if whole_number("deletions", count, least=0) >= setting.examples:
        raise InputError(
            f"the stream deletes {count} of {setting.examples} examples; one must be left, so "
            "give fewer requests"
        )


def _deletions(setting: Setting, ids: np.ndarray, rate: float) -> Stream:
    return _fixed(setting, [("delete", line) for line in ids.tolist()], rate)


def _fixed(setting: Setting, lines: Sequence[tuple[str, list[int]]], rate: float) -> Stream:
    return Stream(setting.times(len(lines), rate), lambda number, service, asked: lines[number])
