"""What deletions cost a SISA system, counted in example gradients: exactly, simulated, expected.

Constituent s takes, in its stage j, `e_j` epochs over what is left of its slices 1 to j. A request
for an example of slice r of shard s has the stages j >= r of that shard trained again:

    cost = sum_{j >= r} e_j n_sj        n_sj: examples left in slices 1..j of shard s, after it

The paper (Bourtoule et al., arXiv 1912.03817, sections IV and V) writes this down for uniform
requests with S or R alone; here it is for both, for requests one at a time or in batches, and for
an adversary.

Design: one count, `retraining_gradients`, is behind the cost of a real deletion and of a simulated
one, so that the two cannot differ. Rejected: simulating by training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from scipy.special import gammaln

from unroll.checks import positive_number, seed_number, whole_number
from unroll.data.ids import IdsLike, as_ids
from unroll.deletion.sharding import Assignment
from unroll.errors import InputError

RANDOM, ADVERSARIAL = "random", "adversarial"


def slice_epochs(epochs: int, slices: int) -> tuple[int, ...]:
    """Epochs of each stage, so that R stages take as many gradients as `epochs` without slices.

    Stage j goes over j/R of the shard, so R stages of e epochs each take `e (R + 1) / 2` passes:
    e = 2 epochs / (R + 1), section V of the paper. Where that is no whole number, the stages get
    the whole numbers around it, such that their sum over the stages so far is the nearest one.

    Raises:
      InputError: if a stage would get no epoch.

    >>> slice_epochs(10, 4), slice_epochs(10, 1), slice_epochs(7, 4)
    ((4, 4, 4, 4), (10,), (3, 3, 2, 3))
    """
    whole_number("epochs", epochs)
    whole_number("slices", slices)
    ends = [math.floor(2 * epochs * stage / (slices + 1) + 0.5) for stage in range(slices + 1)]
    found = tuple(end - begin for begin, end in zip(ends[:-1], ends[1:], strict=True))
    if min(found) < 1:
        raise InputError(
            f"{epochs} epochs shared out among {slices} slices leave a slice without one; give at "
            f"least {math.ceil((slices + 1) / 2)}"
        )
    return found


def stage_gradients(counts: np.ndarray, epochs: Sequence[int]) -> np.ndarray:
    """Example gradients int64 `[S, R]` of every stage, from counts `[S, R]` and R epochs."""
    return np.asarray(epochs, np.int64) * np.cumsum(counts, axis=1)


def retraining_gradients(
    counts: np.ndarray, epochs: Sequence[int], first: np.ndarray
) -> np.ndarray:
    """Example gradients int64 `[S]` of training every shard again from a stage on.

    Args:
      counts: `[S, R]` examples that are left in each slice.
      epochs: of each stage.
      first: `[S]` the first stage to train again; R where there is nothing to do.
    """
    slices = np.shape(counts)[1]
    again = np.arange(slices) >= np.asarray(first)[:, None]
    return (stage_gradients(counts, epochs) * again).sum(axis=1)


def first_stages(assignment: Assignment, ids: np.ndarray) -> np.ndarray:
    """int64 `[S]`: the first stage of each shard that reads one of the ids; R where none does."""
    first = np.full(assignment.shards, assignment.slices, np.int64)
    np.minimum.at(first, assignment.shard[ids], assignment.slice[ids])
    return first


def simulate_cost(
    assignment: Assignment, epochs: Sequence[int], requests: IdsLike, *, batch: int = 1
) -> np.ndarray:
    """Example gradients of serving requests in the order of their arrival; trains nothing.

    Args:
      assignment: where the examples are.
      epochs: of each stage.
      requests: ids, each once.
      batch: how many requests are served at once.

    Returns:
      int64 `[ceil(len(requests) / batch)]`.

    Raises:
      InputError: if an id is out of range or requested twice, or there are not R epochs.
    """
    whole_number("batch", batch)
    ids = as_ids(requests, len(assignment), name="requests")
    if len(np.unique(ids)) < len(ids):
        raise InputError("requests: an id occurs twice; an example is deleted once")
    epochs = check_epochs(epochs, assignment.slices)
    counts, costs = assignment.counts(), []
    for begin in range(0, len(ids), batch):
        together = ids[begin : begin + batch]
        np.subtract.at(counts, (assignment.shard[together], assignment.slice[together]), 1)
        first = first_stages(assignment, together)
        costs.append(retraining_gradients(counts, epochs, first).sum())
    return np.array(costs, np.int64)


def check_epochs(epochs: Sequence[int], slices: int) -> tuple[int, ...]:
    """Returns the epochs of R stages.

    Raises:
      InputError: if there is not one whole number, 1 or more, for each slice.
    """
    if not isinstance(epochs, Sequence):
        raise InputError(f"epochs={epochs!r}: give a number for each slice, as of slice_epochs")
    epochs = tuple(whole_number("epochs of a slice", each) for each in epochs)
    if len(epochs) != slices:
        raise InputError(f"{len(epochs)} numbers of epochs for {slices} slices; give one for each")
    return epochs


def expected_cost(
    examples: int,
    shards: int,
    epochs: Sequence[int],
    *,
    stream: str = RANDOM,
    requests: int = 1,
    batch: int = 1,
) -> float:
    """Expected example gradients per request, over the first requests to a balanced system.

    With N examples in S R slices of m = N / (S R), let A be the a = j m examples of the first j
    slices of a shard, and let batch t of b requests come after t - 1 others.

    `random`: requests that do not depend on the assignment, which is uniformly random. This holds
    for uniform requests and equally for any other distribution, such as an exponential one: by the
    randomness of the assignment each batch is, seen from A, a random set of b examples among those
    that are left. Stage j of a shard is trained again unless batch t misses A:

        P0 = C(N - a, b) / C(N, b)                       the batch misses A
        E cost_t = S sum_j e_j a [(1 - t b / N) - P0 (1 - (t - 1) b / (N - b))]

    The first term is what is left of A after t batches, the second what of it is left where the
    batch missed A. With b = t = 1, equal epochs e = 2 e' / (R + 1) and many examples this is the
    paper's (1 / S) (2/3 + 1 / (3 R)) e' N; with R = 1 it is its N/S - 1, and for a batch
    N (1 - (1 - 1/S)^b) - b, whose draws are with replacement.

    `adversarial`: every request is for the first slice of the shard that costs most, which is each
    shard in turn. Request i hits a shard that has lost floor(i / S) examples, all of them in its
    first slice; so the cost of one is the whole training of a constituent. A batch of S requests or
    more has all of them trained.

    Args:
      examples: number N of examples.
      shards: number S of shards.
      epochs: of each of the R stages.
      stream: `random` or `adversarial`.
      requests: over how many requests to take the mean; a multiple of `batch`.
      batch: number b of requests that are served at once.

    Raises:
      InputError: if more is requested than there is (for an adversary: than the first slices hold),
        the stream is unknown, or the last batch would not be full.
    """
    for name, number in (("examples", examples), ("shards", shards), ("batch", batch)):
        whole_number(name, number)
    epochs = np.array(check_epochs(epochs, len(epochs)), np.float64)
    if whole_number("requests", requests) % batch:
        raise InputError(f"{requests} requests in batches of {batch}: the last one is not full")
    sizes = np.arange(1, len(epochs) + 1) * examples / (shards * len(epochs))
    if stream == ADVERSARIAL:
        return _adversarial(shards, epochs, sizes, requests, batch)
    if stream != RANDOM:
        raise InputError(f"unknown stream {stream!r}; choose random or adversarial")
    if requests >= examples:
        raise InputError(f"{requests} requests of {examples} examples would leave nothing")
    missed = np.exp(_log_choose(examples - sizes, batch) - _log_choose(np.float64(examples), batch))
    before = np.arange(0, requests, batch)[:, None]  # requests before each batch
    left = 1 - (before + batch) / examples
    left_where_missed = 1 - before / (examples - batch)
    costs = shards * (epochs * sizes * (left - missed * left_where_missed)).sum(axis=1)
    return float(costs.sum() / requests)


def _log_choose(total: np.ndarray, chosen: int) -> np.ndarray:
    """Logarithm of the binomial coefficient, -inf where fewer than `chosen` are there."""
    enough = total >= chosen
    total = np.where(enough, total, chosen)
    value = gammaln(total + 1) - gammaln(chosen + 1) - gammaln(total - chosen + 1)
    return np.where(enough, value, -np.inf)


def _adversarial(shards, epochs, sizes, requests, batch) -> float:
    if requests > shards * sizes[0]:
        raise InputError(
            f"{requests} requests are more than the first slices hold "
            f"({shards * sizes[0]:.0f}); the formula ends there, simulate_cost does not"
        )
    full = float((epochs * sizes).sum())  # gradients of one constituent
    passes = float(epochs.sum())  # what one example of a first slice takes part in
    numbers = np.arange(requests)
    if batch >= shards:
        served = numbers[batch - 1 :: batch] + 1
        return float((shards * full - passes * served).sum() / requests)
    # A batch that wraps around hits no shard twice, as long as it is no longer than the circle.
    return float((full - passes * (1 + numbers // shards)).sum() / requests)


def expected_request(
    assignment: Assignment, epochs: Sequence[int], probabilities: np.ndarray | None = None
) -> float:
    """Expected example gradients of the first request, for any assignment.

        sum_n p_n cost(shard of n, slice of n)

    Args:
      assignment: where the examples are.
      epochs: of each stage.
      probabilities: `[N]`, of the request being for each example, up to a factor; all equal by
        default.

    Raises:
      InputError: if they are no such numbers.
    """
    epochs = np.array(check_epochs(epochs, assignment.slices), np.int64)
    weights = np.ones(len(assignment)) if probabilities is None else np.asarray(probabilities)
    bad = weights.shape != (len(assignment),) or not np.isfinite(weights).all()
    if bad or (weights < 0).any() or not weights.sum() > 0:
        raise InputError("probabilities of requests: give one per example, none of them negative")
    # The requested example is gone, one less in each stage that is trained again.
    per_stage = stage_gradients(assignment.counts(), epochs) - epochs
    costs = per_stage[:, ::-1].cumsum(axis=1)[:, ::-1]
    return float(weights @ costs[assignment.shard, assignment.slice] / weights.sum())


def uniform_stream(seed: int, examples: int, requests: int) -> np.ndarray:
    """Ids of distinct examples, int64 `[requests]`, all orders equally likely.

    Raises:
      InputError: if more is requested than there is.
    """
    return weighted_stream(seed, np.ones(whole_number("examples", examples)), requests)


def exponential_probabilities(examples: int, rate: float = 5.0) -> np.ndarray:
    """Probabilities of deletion that fall with the id: `p_n ~ exp(-rate n / N)`, float64 `[N]`.

    Early ids stand for those who are likely to ask (the oldest accounts, say); with `rate=5` half
    of the requests are for the first 14% of the examples.
    """
    exponents = -positive_number("rate", rate) * np.arange(whole_number("examples", examples))
    values = np.exp(exponents / examples)
    return values / values.sum()


def weighted_stream(seed: int, probabilities: np.ndarray, requests: int) -> np.ndarray:
    """Ids of distinct examples, int64 `[requests]`, drawn one after the other without replacement.

    Each is drawn from what is left in proportion to its probability (Gumbel's trick).

    Raises:
      InputError: if more is requested than has a probability above 0.
    """
    probabilities = np.asarray(probabilities, np.float64)
    possible = int((probabilities > 0).sum())
    if not whole_number("requests", requests) <= possible:
        raise InputError(f"{requests} requests, but only {possible} examples can be requested")
    noise = jax.random.gumbel(jax.random.key(seed_number(seed)), probabilities.shape)
    with np.errstate(divide="ignore"):
        scores = np.log(probabilities) + np.asarray(noise, np.float64)
    return np.argsort(-scores, kind="stable")[:requests]


def adversarial_stream(
    assignment: Assignment, epochs: Sequence[int], requests: int, *, batch: int = 1
) -> np.ndarray:
    """Ids, int64 `[requests]`, of one who knows the assignment and wants each batch to cost most.

    Greedy: the next request is for the first slice that still has examples of the shard that would
    cost most and is not in the batch yet; with all shards in the batch, of the one that costs most.

    Raises:
      InputError: if more is requested than there is.
    """
    if whole_number("requests", requests) > len(assignment):
        raise InputError(f"{requests} requests of {len(assignment)} examples")
    epochs = check_epochs(epochs, assignment.slices)
    counts, stream = assignment.counts(), []
    suffix = np.append(np.cumsum(epochs[::-1])[::-1], 0)  # gradients that one example takes with it
    queues = [
        [
            np.flatnonzero((assignment.shard == s) & (assignment.slice == r)).tolist()[::-1]
            for r in range(assignment.slices)
        ]
        for s in range(assignment.shards)
    ]
    hit: set[int] = set()
    for number in range(requests):
        hit = set() if number % whole_number("batch", batch) == 0 else hit
        left = counts.sum(axis=1) > 0
        first = np.where(left, (counts > 0).argmax(axis=1), assignment.slices)
        costs = retraining_gradients(counts, epochs, first) - suffix[first]
        fresh = left & ~np.isin(np.arange(assignment.shards), list(hit))
        allowed = fresh if fresh.any() else left
        shard = int(np.argmax(np.where(allowed, costs, np.iinfo(np.int64).min)))
        hit.add(shard)
        counts[shard, first[shard]] -= 1
        stream.append(queues[shard][first[shard]].pop())
    return np.array(stream, np.int64)
