"""Refinement: a forget set cut into parts, and groups of a training set, by any score per example.

    partition(scores, ids)       the given forget set, cut by rank into low, ..., high: all of it
    groups(scores, size)         low, medium and high examples of a whole training set
    forget_sets(scores, size)    two sets of such examples, for results and for tuning

Source: RUM (arXiv 2406.01257), whose forget set is a low, a medium and a high group put together.
Of a given forget set the middle part is what the others leave, so a rule for the middle is only
needed where groups are chosen.

Design: ties are broken by a random key of the example's id, which knows neither the order of the
input nor which other ids there are. Rejected: a stable sort; scores from counts have many ties at
the low end, and the lowest ids would always be the "low" ones.
"""

from __future__ import annotations

import hashlib

import numpy as np

from unroll.checks import whole_number
from unroll.data.forget import check_forget_ids
from unroll.data.ids import IdsLike, make_generator
from unroll.errors import InputError

MID_RULES = ("half", "median", "midrange")
"""What the medium group is nearest to: a score of 0.5, the middle rank, or half way between the
least and the greatest score. The middle rank alone does not depend on the scale of the scores."""


def partition(
    scores: np.ndarray,
    ids: IdsLike,
    count: int = 3,
    *,
    sizes: tuple[int, ...] | None = None,
    tie_seed: int = 0,
) -> tuple[np.ndarray, ...]:
    """Cuts a forget set into parts by the rank of the scores.

    Args:
      scores: `[N]` finite scores of the whole training set, larger is more memorized.
      ids: the forget set; its order does not matter.
      count: number of parts K, of sizes that differ by at most 1 and are the same read from either
        end where K is odd. With scores that are all different, a change of sign swaps the parts.
      sizes: sizes of the parts, low first, instead of equal ones; their sum is the forget set.
      tie_seed: of the keys that break ties.

    Returns:
      K int64 arrays of ascending ids, from low to high: disjoint, and together the forget set.

    Raises:
      InputError: if a score is not finite, ids are bad, or the sizes do not fit.
    """
    scores = _checked_scores(scores)
    ids = check_forget_ids(ids, len(scores), allow_empty=True)
    if sizes is None:
        whole_number("count", count)
        if len(ids) < count:
            raise InputError(f"{len(ids)} examples cannot be cut into {count} parts; lower count")
        ends = np.round(np.arange(count + 1) * len(ids) / count).astype(int)
    else:
        if not sizes or min(sizes) < 1 or sum(sizes) != len(ids):
            raise InputError(f"sizes={tuple(sizes)} must be above 0 and sum to {len(ids)} examples")
        ends = np.cumsum([0, *sizes])
    ranked = ids[np.lexsort((tie_keys(len(scores), tie_seed)[ids], scores[ids]))]
    return tuple(np.sort(part) for part in np.split(ranked, ends[1:-1]))


def groups(
    scores: np.ndarray,
    size: int,
    *,
    mid_rule: str = "half",
    tie_seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lowest, the middle and the highest examples of a training set.

    High are the `size` examples with the greatest scores, low those with the least, medium those of
    the rest that are nearest to the centre.

    Args:
      scores: `[N]` finite scores, larger is more memorized.
      size: of each group.
      mid_rule: the centre, one of `MID_RULES`.
      tie_seed: of the keys that break ties.

    Returns:
      Three disjoint int64 arrays of ascending ids.

    Raises:
      InputError: if a score is not finite, the rule is unknown, or there are too few examples.
    """
    scores = _checked_scores(scores)
    if mid_rule not in MID_RULES:
        raise InputError(f"unknown mid_rule {mid_rule!r}; choose one of {list(MID_RULES)}")
    whole_number("size", size)
    if 3 * size > len(scores):
        raise InputError(f"3 groups of {size} need {3 * size} examples; there are {len(scores)}")
    keys = tie_keys(len(scores), tie_seed)
    ranked = np.lexsort((keys, scores))
    low, rest, high = np.split(ranked, [size, len(ranked) - size])
    if mid_rule == "median":
        # By rank: positions in `ranked`, whose centre lies between the two groups that are gone.
        off = np.abs(np.arange(size, len(ranked) - size) - (len(ranked) - 1) / 2)
    else:
        centre = 0.5 if mid_rule == "half" else (scores.min() + scores.max()) / 2
        off = np.abs(scores[rest] - centre)
    medium = rest[np.lexsort((keys[rest], off))[:size]]
    return np.sort(low), np.sort(medium), np.sort(high)


def forget_sets(
    scores: np.ndarray, size: int, *, mid_rule: str = "half", tie_seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint forget sets of RUM: random halves of low, medium and high examples.

    The first is for results, the second for whatever is chosen before. Taking the second from what
    the first leaves would make it an easier one, as few examples are highly memorized.

    Args:
      scores: `[N]` finite scores of the training set, larger is more memorized.
      size: low, medium and high examples in each, of `groups` of twice the size.
      mid_rule: see `groups`.
      tie_seed: of the keys that break ties, and of the halves.

    Returns:
      Two int64 arrays of `3 * size` ascending ids.

    Raises:
      InputError: as `groups`.
    """
    whole_number("size", size)
    generator = make_generator(tie_seed, "halves of groups")
    halves = [
        np.split(generator.permutation(group), 2)
        for group in groups(scores, 2 * size, mid_rule=mid_rule, tie_seed=tie_seed)
    ]
    first, second = (np.sort(np.concatenate(parts)) for parts in zip(*halves, strict=True))
    return first, second


def random_scores(count: int, seed: int) -> np.ndarray:
    """Scores `[count]` that say nothing, all different: parts by them are random (`shuffle`)."""
    return make_generator(seed, "random scores").permutation(count).astype(np.float64)


def tie_keys(count: int, seed: int) -> np.ndarray:
    """A distinct random whole number for each of `count` ids, int64."""
    return make_generator(seed, "ties of scores").permutation(count)


def scores_hash(scores: np.ndarray) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of float64 scores."""
    return hashlib.sha256(np.ascontiguousarray(scores, np.float64).tobytes()).hexdigest()[:12]


def _checked_scores(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1:
        raise InputError(f"scores have shape {scores.shape}; give one number per training example")
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise InputError(
            f"the score of example {bad[0]} is not finite ({len(bad)} of {len(scores)}); such an "
            "example has no rank"
        )
    return scores
