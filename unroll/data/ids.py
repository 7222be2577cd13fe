"""Checks and randomness that every module about example ids shares."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np

from unroll.errors import InputError

IdsLike = Iterable[int] | np.ndarray
"""Anything that lists example ids: a range, a list, an integer array."""


def as_ids(ids: IdsLike, num_examples: int | None = None, *, name: str = "ids") -> np.ndarray:
    """Converts example ids to an int64 vector, in the given order, and checks their range.

    Args:
      ids: the ids; repeats are allowed here. A boolean mask is refused, because it would silently
        be read as the ids 0 and 1.
      num_examples: size of the data set, or `None` to check only that no id is negative.
      name: what to call the ids in an error message.

    Returns:
      int64 [len(ids)].

    Raises:
      InputError: the ids are not a vector of integers, or one of them is out of range.

    >>> as_ids(range(3), 10)
    array([0, 1, 2])
    """
    if isinstance(ids, Iterable) and not isinstance(ids, np.ndarray | str | bytes):
        ids = list(ids)
    array = np.asarray(ids)
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, np.int64)
    if array.dtype == bool:
        raise InputError(f"{name}: got a boolean mask; pass np.flatnonzero(mask) instead")
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"{name}: expected a list of integer ids, got {array.dtype} of shape {array.shape}"
        )
    bad = array < 0
    if num_examples is not None:
        bad = bad | (array >= num_examples)
    if bad.any():
        limit = "" if num_examples is None else f" to {num_examples - 1}"
        raise InputError(f"{name}: id {array[bad][0]} is out of range; use ids from 0{limit}")
    return array.astype(np.int64)


def check_seed(seed: int) -> int:
    """Checks that `seed` is an integer in [0, 2**32) and returns it as a plain int.

    Larger seeds are refused: numpy splits them into 32-bit words, so the seeds (2**32, 0) and
    (0, 1) would give the same stream.

    Raises:
      InputError: the seed is not such an integer.
    """
    is_integer = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not is_integer or not 0 <= seed < 2**32:
        raise InputError(f"seed: expected an integer from 0 to 2**32 - 1, got {seed!r}")
    return int(seed)


def make_generator(seed: int, purpose: str) -> np.random.Generator:
    """Returns the random stream of (seed, purpose).

    Each purpose has its own stream. Without that, a forget set and a schedule drawn with the same
    seed would share their random numbers, and the forgotten examples would all sit in the first
    batches.

    Raises:
      InputError: the seed is not an integer in [0, 2**32).
    """
    key = zlib.crc32(purpose.encode())
    sequence = np.random.SeedSequence(check_seed(seed), spawn_key=(key,))
    return np.random.Generator(np.random.PCG64(sequence))


def count_of(total: int, size: int | None, fraction: float | None, *, name: str) -> int:
    """Turns either a size or a fraction of `total` into a count from 1 to `total`.

    A fraction is rounded to the nearest whole number of examples.

    Raises:
      InputError: neither or both are given, or the count is not in 1..total.
    """
    if (size is None) == (fraction is None):
        raise InputError(f"{name}: give either size or fraction, not both and not neither")
    if fraction is not None:
        if not 0.0 < fraction <= 1.0:
            raise InputError(f"{name}: fraction must be in (0, 1], got {fraction}")
        count = round(fraction * total)
        if count < 1:
            raise InputError(
                f"{name}: fraction {fraction} of {total} examples rounds to none; raise it"
            )
        return count
    if not isinstance(size, int | np.integer) or not 1 <= size <= total:
        raise InputError(f"{name}: size must be an integer from 1 to {total}, got {size!r}")
    return int(size)
