"""Which shard and which slice of it every example belongs to (SISA, arXiv 1912.03817).

    shard[n] in 0..S-1, slice[n] in 0..R-1      disjoint and complete: one number each per id

Design: the assignment is a table by id that is made once. A deletion takes ids out of it and moves
none of the others, so what a constituent learns depends on what remains in its own shard alone.
Rejected: dealing the remaining examples out anew, which keeps shards balanced and changes all of
them with every deletion.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import numpy as np

from unroll import tree
from unroll.checks import seed_number, whole_number
from unroll.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Assignment:
    """A shard and a slice for each example.

    Attributes:
      shard: int32 `[N]`, from 0 to `shards - 1`.
      slice: int32 `[N]`, from 0 to `slices - 1`.
      shards: number S of shards.
      slices: number R of slices in each shard.

    Raises:
      InputError: if the arrays do not fit together or a number is out of range.
    """

    shard: np.ndarray
    slice: np.ndarray
    shards: int
    slices: int

    def __post_init__(self):
        for name, count in (("shard", self.shards), ("slice", self.slices)):
            whole_number(f"{name}s", count)
            values = np.asarray(getattr(self, name))
            if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
                raise InputError(f"{name}: expected one integer per example")
            if len(values) and not 0 <= values.min() <= values.max() < count:
                raise InputError(f"{name}: use numbers from 0 to {count - 1}")
            values = values.astype(np.int32)
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        if not len(self.shard) or len(self.shard) != len(self.slice):
            raise InputError(
                f"{len(self.shard)} shard numbers and {len(self.slice)} slice numbers; give one of "
                "each per example, at least one"
            )

    def __len__(self) -> int:
        return len(self.shard)

    @functools.cached_property
    def place(self) -> np.ndarray:
        """int32 `[N]`: the rank of each example among the ids of its shard."""
        place = np.zeros(len(self), np.int32)
        for shard in range(self.shards):
            ids = np.flatnonzero(self.shard == shard)
            place[ids] = np.arange(len(ids))
        return place

    @functools.cached_property
    def capacity(self) -> int:
        """Number of examples of the largest shard."""
        return int(np.bincount(self.shard, minlength=self.shards).max())

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the assignment."""
        return tree.content_hash((self.shard, self.slice, np.array([self.shards, self.slices])))

    def members(self, shard: int, last_slice: int, kept: np.ndarray) -> np.ndarray:
        """Ids, ascending int64, of what is left of the slices 0 to `last_slice` of a shard.

        Args:
          shard: number of the shard.
          last_slice: number of the last slice that counts.
          kept: bool `[N]`, which examples remain.
        """
        return np.flatnonzero((self.shard == shard) & (self.slice <= last_slice) & kept)

    def counts(self, kept: np.ndarray | None = None) -> np.ndarray:
        """int64 `[S, R]`: number of examples, or of those that are kept, in each slice."""
        cell = self.shard.astype(np.int64) * self.slices + self.slice
        cell = cell if kept is None else cell[kept]
        flat = np.bincount(cell, minlength=self.shards * self.slices)
        return flat.reshape(self.shards, self.slices)


def random_assignment(
    seed: int, examples: int, shards: int, slices: int = 1, *, labels: np.ndarray | None = None
) -> Assignment:
    """Deals the examples out at random, like cards: slices differ by at most one example.

    Args:
      seed: seed of the order in which they are dealt.
      examples: number N of examples.
      shards: number S of shards.
      slices: number R of slices in each shard.
      labels: `[N]`; given, the classes are dealt one after the other, so that each of them is
        balanced too: its numbers in two shards, or in two slices, differ by at most one.

    Raises:
      InputError: if there are fewer examples than slices in all.
    """
    _check_sizes(examples, shards, slices)
    order = _random_order(seed, examples)
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != (examples,):
            raise InputError(f"labels have shape {labels.shape}; give one for each of {examples}")
        order = order[np.argsort(labels[order], kind="stable")]
    turn = np.empty(examples, np.int64)
    turn[order] = np.arange(examples)
    return Assignment(turn % shards, turn // shards % slices, shards, slices)


def aware_assignment(
    seed: int,
    probabilities: np.ndarray,
    shards: int,
    slices: int = 1,
    *,
    balance: Literal["requests", "cost", "size"] = "requests",
) -> Assignment:
    """Puts the examples that are likely to be deleted together, and in the last slices.

    The examples are sorted by the probability of their deletion and cut into shards, by one of:

    - `requests`: all shards can expect the same number of requests (section VII of the paper,
      algorithm 1). Many examples that stay are in large shards that are rarely touched, few that
      will go in small ones.
    - `cost`: shards of equal sums of the square roots of the probabilities. A shard of n examples
      with probability P costs P n; with the density p along the order this sums to the integral of
      p times the shard's size, which is least where sizes go as 1 / sqrt(p).
    - `size`: shards of equal size, the last of which gets nearly all requests: a batch of them
      touches few shards.

    Over single requests `requests` and `size` cost what chance costs, but for the order of the
    slices: the sum of P n is N / S in both. Slices are of equal size, the most likely in the last.
    Classes are as balanced as the probabilities let them be.

    Args:
      seed: seed of the order among equal probabilities.
      probabilities: `[N]`, not negative; only their ratios count.
      shards: number S of shards.
      slices: number R of slices; each shard gets R examples at least.
      balance: what is equal among shards.

    Raises:
      InputError: on probabilities that are none, another `balance`, or too few examples.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if balance not in ("requests", "cost", "size"):
        raise InputError(f"unknown balance {balance!r}; choose requests, cost or size")
    good = np.isfinite(probabilities).all() and (probabilities >= 0).all()
    if probabilities.ndim != 1 or not good or not probabilities.sum() > 0:
        raise InputError(
            "probabilities of deletion must be one number per example, none of them negative and "
            "not all 0"
        )
    examples = len(probabilities)
    _check_sizes(examples, shards, slices)
    order = _random_order(seed, examples)
    order = order[np.argsort(probabilities[order], kind="stable")]
    if balance == "size":
        ends = np.array([len(part) for part in np.array_split(order, shards)]).cumsum()
    else:
        shares = probabilities if balance == "requests" else np.sqrt(probabilities)
        ends = _equal_sums(shares[order], shards, slices)
    shard, cell = np.empty(examples, np.int64), np.empty(examples, np.int64)
    for number, ids in enumerate(np.split(order, ends[:-1])):
        shard[ids] = number
        for position, part in enumerate(np.array_split(ids, slices)):
            cell[part] = position
    return Assignment(shard, cell, shards, slices)


def _equal_sums(values: np.ndarray, shards: int, least: int) -> np.ndarray:
    """Ends of consecutive parts of about equal sums, each of `least` entries or more."""
    sums = values.cumsum()
    wanted = sums[-1] * np.arange(1, shards + 1) / shards
    ends = np.searchsorted(sums, wanted * (1 - 1e-12)) + 1
    previous = 0
    for number in range(shards):
        most = len(values) - (shards - 1 - number) * least
        ends[number] = previous = min(max(ends[number], previous + least), most)
    ends[-1] = len(values)
    return ends


def _random_order(seed: int, examples: int) -> np.ndarray:
    return np.array(jax.random.permutation(jax.random.key(seed_number(seed)), examples))


def _check_sizes(examples: int, shards: int, slices: int) -> None:
    for name, count in (("examples", examples), ("shards", shards), ("slices", slices)):
        whole_number(name, count)
    if shards * slices > examples:
        raise InputError(
            f"{shards} shards of {slices} slices are more than the {examples} examples; choose "
            "fewer"
        )
