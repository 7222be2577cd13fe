"""Cheap proxies of memorization against exact scores: agreement, its ceiling, and what they cost.

Agreement over the N training examples of one original run:

    Spearman          of the proxy's scores with the exact ones
    precision at k    share of the top k by the proxy that are among the top k by the exact score

The intervals take examples as independent draws. They leave out that the exact scores come from a
finite number of models, and that another training seed gives other proxies; the spread over
training seeds is for the report.

Exact scores are noisy, so no proxy can agree with them perfectly. Of the scores of two halves of
the models with Spearman correlation r, those of all models have the reliability 2 r / (1 + r)
(Spearman and Brown), and a proxy that ranks by the noiseless scores would reach about its root: the
*ceiling*.

Design: one row per proxy and run, with costs as shares of what the exact scores cost. Rejected:
correlations divided by the ceiling; that is right for linear correlations only, and beyond the
ceiling it is above 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

from unroll.data.dataset import Dataset
from unroll.data.ids import make_generator
from unroll.errors import DivergenceError, InputError
from unroll.memorization.proxies import proxy
from unroll.memorization.scores import MemorizationScores, memorization
from unroll.memorization.subject import ProxyResult, Subject
from unroll.memorization.subsets import SubsetModels
from unroll.metrics.correlation import spearman
from unroll.training import loop
from unroll.training.estimate import seconds_per_step
from unroll.training.events import QUANTITIES, events_advance
from unroll.training.run import Progress
from unroll.training.spec import TrainSpec
from unroll.training.step import initial_state


@dataclasses.dataclass(frozen=True)
class ScoreProxyRow:
    """One proxy on one original run. Measured fields are `None` where `note` says why.

    Attributes:
      dataset: name of the training set.
      model: call of the model.
      augmented: whether the original was trained with augmentation.
      proxy: the proxy as a call.
      direction: +1 if its raw values grow with memorization.
      seed: training seed of the original.
      examples: number of examples compared.
      models: models behind the exact scores.
      spearman: rank correlation of the proxy's scores with the exact ones.
      spearman_low: lower end of its interval over examples.
      spearman_high: upper end.
      ceiling: what a proxy without error would reach, by the noise of the exact scores.
      precision: share of the top examples found, by the share that is the top, as text.
      precision_low: lower ends of the intervals.
      precision_high: upper ends.
      example_gradients: spent beyond the original's training.
      seconds: spent beyond the original's training, compilation not counted.
      cost_gradients: example gradients as a share of those of the exact scores.
      cost_seconds: seconds as a share of those of the exact scores.
      training_cost_gradients: the same for the training of the original itself.
      training_cost_seconds: the same for its seconds.
      test_accuracy: of the original, on examples that no proxy was given.
      note: why a number is missing.
    """

    dataset: str
    model: str
    augmented: bool
    proxy: str
    direction: int
    seed: int
    examples: int
    models: int
    spearman: float | None = None
    spearman_low: float | None = None
    spearman_high: float | None = None
    ceiling: float | None = None
    precision: dict[str, float] = dataclasses.field(default_factory=dict)
    precision_low: dict[str, float] = dataclasses.field(default_factory=dict)
    precision_high: dict[str, float] = dataclasses.field(default_factory=dict)
    example_gradients: float | None = None
    seconds: float | None = None
    cost_gradients: float | None = None
    cost_seconds: float | None = None
    training_cost_gradients: float | None = None
    training_cost_seconds: float | None = None
    test_accuracy: float | None = None
    note: str | None = None


@dataclasses.dataclass(frozen=True)
class Share:
    """A share of `count` with its interval, all in [0, 1]."""

    value: float
    low: float
    high: float
    count: int


def top_membership(scores: np.ndarray, count: int) -> np.ndarray:
    """How surely each example is among the `count` largest, float64 `[N]` with the sum `count`.

    1 above the limit, 0 below; examples that tie at the limit share what is left equally, as if
    ties were broken at random.

    Raises:
      InputError: if `count` is not from 1 to N.
    """
    scores = np.asarray(scores, np.float64)
    if not 1 <= count <= len(scores):
        raise InputError(f"the top {count} of {len(scores)} examples; choose from 1 to all")
    limit = np.partition(scores, len(scores) - count)[len(scores) - count]
    above, tied = scores > limit, scores == limit
    return above + tied * ((count - above.sum()) / tied.sum())


def precision_at_top(
    proxy_scores: np.ndarray, scores: np.ndarray, share: float, confidence: float = 0.95
) -> Share:
    """Share of the top examples by the proxy that are in the top by the exact score.

    Both tops have `ceil(share * N)` examples, so precision and recall are the same, and a proxy
    that knows nothing has about `share`. The interval is Wilson's for a proportion of that many
    examples; see the module docstring for what it leaves out.

    Args:
      proxy_scores: `[N]`, larger is more memorized.
      scores: `[N]` exact scores.
      share: part of the examples that is the top, in (0, 1].
      confidence: coverage of the interval, between 0 and 1.

    Raises:
      InputError: if the lengths differ, a value is not finite, or a share is out of range.
    """
    proxy_scores, scores = np.asarray(proxy_scores), np.asarray(scores)
    if proxy_scores.shape != scores.shape or scores.ndim != 1:
        raise InputError(
            f"precision: shapes {proxy_scores.shape} and {scores.shape}; give two vectors of one "
            "length"
        )
    if not (np.isfinite(proxy_scores).all() and np.isfinite(scores).all()):
        raise InputError("precision: a value is not finite")
    if not 0 < share <= 1 or not 0 < confidence < 1:
        raise InputError(f"precision: share={share} and confidence={confidence} must be in (0, 1)")
    count = math.ceil(share * len(scores))
    value = float(top_membership(proxy_scores, count) @ top_membership(scores, count) / count)
    return Share(value, *wilson_interval(value, count, confidence), count)


def wilson_interval(share: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a proportion (Journal of the American Statistical Association, 1927)."""
    z = float(norm.ppf((1 + confidence) / 2))
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count)
    half *= math.sqrt(max(share * (1 - share), 0.0) / count + z * z / (4 * count * count))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def half_scores(models: SubsetModels, seed: int = 0) -> tuple[np.ndarray, np.ndarray] | None:
    """Scores `[N]` from each of two random halves of the models.

    `None` where the models are too few: an example has not 2 with it and 2 without it in each half.
    """
    order = make_generator(seed, "half_scores").permutation(models.recipe.models)
    included, correct = models.recipe.included, models.train.correct
    halves = np.array_split(order, 2)
    for half in halves:
        inside = included[half].sum(axis=0)
        if min(inside.min(), (len(half) - inside).min()) < 2:
            return None
    return tuple(memorization(correct[half], included[half]).values for half in halves)


def ceiling(halves: tuple[np.ndarray, np.ndarray]) -> float | None:
    """Spearman correlation that noiseless scores would have with those of all models.

    `None` where the halves do not agree at all, which leaves nothing to estimate.
    """
    found = spearman(*halves).value
    if found is None or found <= 0:
        return None
    return math.sqrt(2 * found / (1 + found))


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Exact scores and what is to be said of every proxy that is compared with them.

    Attributes:
      scores: the exact scores, with their costs in `info`.
      halves: scores from two halves of the models; without them rows have no ceiling.
      shares: parts of the examples that are the top.
    """

    scores: MemorizationScores
    halves: tuple[np.ndarray, np.ndarray] | None = None
    shares: tuple[float, ...] = (0.05, 0.1)

    def __post_init__(self):
        missing = {"seconds", "example_gradients", "models"} - set(self.scores.info)
        if missing:
            raise InputError(
                f"the scores do not say their {sorted(missing)[0]}; costs can only be compared "
                "with exact scores that were computed here"
            )

    def agreement(self, result: ProxyResult) -> dict:
        """Fields of a `ScoreProxyRow` that a result of a proxy determines."""
        exact, info = self.scores.values, self.scores.info
        found = spearman(result.scores, exact)
        tops = {
            f"{share:g}": precision_at_top(result.scores, exact, share) for share in self.shares
        }
        return dict(
            spearman=found.value,
            spearman_low=found.low,
            spearman_high=found.high,
            ceiling=None if self.halves is None else ceiling(self.halves),
            precision={name: top.value for name, top in tops.items()},
            precision_low={name: top.low for name, top in tops.items()},
            precision_high={name: top.high for name, top in tops.items()},
            example_gradients=result.example_gradients,
            seconds=result.seconds,
            cost_gradients=result.example_gradients / info["example_gradients"],
            cost_seconds=result.seconds / info["seconds"],
            note=found.note,
        )


def compare(
    comparison: Comparison,
    subject: Subject,
    texts: Sequence[str],
    *,
    model: str,
    test_accuracy: float | None = None,
    events_seconds: float = 0.0,
    progress: Progress | None = None,
) -> Iterator[tuple[ScoreProxyRow, np.ndarray | None]]:
    """Measures each proxy on one run and compares it with the exact scores.

    Args:
      comparison: the exact scores.
      subject: the original run with what the proxies need.
      texts: proxies as calls.
      model: call of the model, for the rows.
      test_accuracy: of the original, for the rows.
      events_seconds: what the collection of learning events has cost, added to the proxies that
        need them.
      progress: called with (proxies done, proxies in all).

    Yields:
      A row, and the proxy's scores `[N]`, `None` where it could not be measured.

    Raises:
      InputError: before any work if a proxy is unknown or its needs are not met, or the scores are
        of another training set.
    """
    run, info = subject.run, comparison.scores.info
    if not np.array_equal(comparison.scores.labels, run.dataset.labels):
        raise InputError("the scores are of another training set than the run, or of another order")
    proxies = [proxy(text) for text in texts]
    for each in proxies:
        each.check(subject)
    for number, each in enumerate(proxies, start=1):
        fields, values = {}, None
        try:
            result = each(subject)
        except (DivergenceError, InputError) as error:  # a proxy that does not fit is a row, too
            fields = {"note": str(error)}
        else:
            if "events" in each.needs:
                seconds = result.seconds + events_seconds
                result = dataclasses.replace(result, seconds=seconds)
            fields, values = comparison.agreement(result), result.scores
        row = ScoreProxyRow(
            dataset=run.dataset.name,
            model=model,
            augmented=run.spec.augmentation is not None,
            proxy=str(each),
            direction=each.direction,
            seed=run.seed,
            examples=len(run.dataset),
            models=info["models"],
            training_cost_gradients=run.example_gradients / info["example_gradients"],
            training_cost_seconds=run.seconds / info["seconds"],
            test_accuracy=test_accuracy,
            **fields,
        )
        yield row, values
        if progress is not None:
            progress(number, len(proxies))


def events_overhead(
    spec: TrainSpec, dataset: Dataset, schedule: np.ndarray, rounds: int = 5
) -> float:
    """Seconds that the collection of learning events adds to a run: median of paired timings.

    Both programs are timed in turns, warm, on their first steps. The difference is often smaller
    than its noise and may come out below 0, which is then what is returned.

    Args:
      spec: how to train.
      dataset: the training set.
      schedule: int32 `[T, B]`.
      rounds: number of pairs.
    """
    key, weights = jax.random.key(0), jnp.ones(len(dataset), jnp.float32)
    operands = loop.device_examples(dataset), weights, key, jnp.asarray(schedule)

    def plain():
        carry = initial_state(spec, key, dataset.inputs), jnp.zeros(len(schedule), jnp.float32)
        return seconds_per_step(_advance_to(loop.advance, spec, operands), carry, len(schedule))

    def collecting():
        traces = {
            "losses": jnp.zeros(len(schedule), jnp.float32),
            "outputs": jnp.zeros((*schedule.shape, len(QUANTITIES)), jnp.float32),
        }
        carry = initial_state(spec, key, dataset.inputs), traces
        return seconds_per_step(_advance_to(events_advance, spec, operands), carry, len(schedule))

    differences = [collecting() - plain() for _ in range(rounds)]
    return float(np.median(differences)) * len(schedule)


def _advance_to(advance, spec, operands):
    def advance_to(carry, begin, end):
        return jax.block_until_ready(advance(spec, *carry, *operands, begin, end))

    return advance_to
