"""Cohorts: disjoint named sets of training examples that will be deleted together or not at all.

Design: a cohort is a name and ids, nothing else; users, sources, shards and random sets are the
same thing from here on. Rejected: one integer per example. It is compact, and it is what the loop
uses, but a name is what a deletion request comes with.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unroll.data.dataset import Dataset
from unroll.data.ids import IdsLike, as_ids, make_generator
from unroll.errors import InputError


def register_cohorts(cohorts: Mapping[str, IdsLike], num_examples: int) -> dict[str, np.ndarray]:
    """Checks named sets of example ids and returns them, each int64 and ascending.

    Raises:
      InputError: if there is no cohort, or one has no name, no example, an id out of range or
        twice, or shares an example with another.
    """
    if not isinstance(cohorts, Mapping) or not cohorts:
        raise InputError('register at least one cohort: {"user 7": ids, ...}')
    owner = np.full(num_examples, -1, np.int64)
    names, registered = list(cohorts), {}
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise InputError(f"cohort {name!r}: give each cohort a name, a string")
        ids = np.sort(as_ids(cohorts[name], num_examples, name=f"cohort {name!r}"))
        if not len(ids):
            raise InputError(f"cohort {name!r} has no example; leave it out")
        if len(repeated := ids[1:][ids[1:] == ids[:-1]]):
            raise InputError(f"cohort {name!r}: id {repeated[0]} occurs twice; give each id once")
        if len(taken := ids[owner[ids] >= 0]):
            raise InputError(
                f"cohorts {names[owner[taken[0]]]!r} and {name!r} share example {taken[0]}; "
                "cohorts must be disjoint: register the overlap as one of its own"
            )
        owner[ids] = number
        registered[name] = ids
    return registered


def group_cohorts(dataset: Dataset) -> dict[str, np.ndarray]:
    """One cohort for each group of a data set (a user, a source), named `group 3`.

    Raises:
      InputError: if the data set has no groups.
    """
    if dataset.groups is None:
        raise InputError(f"{dataset.name} has no groups; build the data set with groups=")
    return {
        f"group {group}": np.flatnonzero(dataset.groups == group)
        for group in np.unique(dataset.groups)
    }


def random_cohorts(
    num_examples: int, count: int, fraction: float, seed: int = 0
) -> dict[str, np.ndarray]:
    """Disjoint random cohorts of equal size, named `cohort 0`, `cohort 1`, ...

    Args:
      num_examples: size of the training set.
      count: number of cohorts.
      fraction: share of the training set in each, rounded to the nearest count.
      seed: random seed.

    Raises:
      InputError: if the cohorts would be empty, or hold everything.
    """
    size = round(fraction * num_examples)
    if not 0 < size * count < num_examples:
        raise InputError(
            f"{count} cohorts of {size} among {num_examples} examples: choose cohorts of at least "
            "one example that leave others to retain"
        )
    order = make_generator(seed, "random_cohorts").permutation(num_examples)
    return {f"cohort {i}": np.sort(order[i * size : (i + 1) * size]) for i in range(count)}


def cohort_numbers(cohorts: Mapping[str, np.ndarray], num_examples: int) -> np.ndarray:
    """The number of each example's cohort in the order of the mapping, -1 for none, int32 `[N]`."""
    numbers = np.full(num_examples, -1, np.int32)
    for number, ids in enumerate(cohorts.values()):
        numbers[ids] = number
    return numbers
