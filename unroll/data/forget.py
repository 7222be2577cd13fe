"""Forget sets: which training examples shall be unlearned.

Every function returns an ascending int64 array of distinct ids, never empty and never everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from unroll.data.dataset import Dataset
from unroll.data.ids import IdsLike, as_ids, count_of, make_generator
from unroll.data.options import call_with_options
from unroll.errors import InputError


def random_ids(
    dataset: Dataset,
    size: int | None = None,
    fraction: float | None = None,
    seed: int = 0,
    classes: Sequence[int] | None = None,
) -> np.ndarray:
    """Chooses examples at random, without replacement.

    Args:
      dataset: the training set.
      size: how many; give this or `fraction`.
      fraction: share of the eligible examples, rounded to the nearest count.
      seed: random seed.
      classes: choose among the examples of these classes only.

    Returns:
      int64 [size], ascending.

    Raises:
      InputError: the size is not possible, or a class is unknown or has no example.
    """
    eligible = np.arange(len(dataset))
    if classes is not None:
        eligible = np.concatenate([_members(dataset, label) for label in sorted(set(classes))])
    count = count_of(len(eligible), size, fraction, name="random forget set")
    chosen = make_generator(seed, "random_ids").permutation(eligible)[:count]
    return check_forget_ids(chosen, len(dataset))


def class_ids(dataset: Dataset, label: int, fraction: float = 1.0, seed: int = 0) -> np.ndarray:
    """Chooses a whole class, or a random part of it.

    Raises:
      InputError: the class is unknown, has no example, or is the whole data set; or the fraction
        rounds to nothing.
    """
    members = _members(dataset, label)
    count = count_of(len(members), None, fraction, name=f"class {label}")
    chosen = make_generator(seed, "class_ids").permutation(members)[:count]
    return check_forget_ids(chosen, len(dataset))


def group_ids(dataset: Dataset, group: int) -> np.ndarray:
    """Chooses every example of one group, for example of one user.

    Raises:
      InputError: the data set has no groups, or none with this id.
    """
    if dataset.groups is None:
        raise InputError(f"{dataset.name}: has no groups; build the data set with groups=")
    members = np.flatnonzero(dataset.groups == group)
    if len(members) == 0:
        known = np.unique(dataset.groups)
        raise InputError(
            f"group {group}: no example belongs to it; the {len(known)} groups run from "
            f"{known[0]} to {known[-1]}"
        )
    return check_forget_ids(members, len(dataset))


def explicit_ids(dataset: Dataset, ids: IdsLike) -> np.ndarray:
    """Chooses the given ids, after `check_forget_ids`."""
    return check_forget_ids(ids, len(dataset))


def corrupted_ids(dataset: Dataset) -> np.ndarray:
    """Chooses every example whose label differs from its true label.

    Raises:
      InputError: the true labels are not known, or no label was changed.
    """
    if dataset.true_labels is None:
        raise InputError(f"{dataset.name}: has no true_labels; corrupt it first, as with mislabel")
    return check_forget_ids(np.flatnonzero(dataset.labels != dataset.true_labels), len(dataset))


def with_duplicates(dataset: Dataset, ids: IdsLike) -> np.ndarray:
    """Adds every byte-identical copy of the given examples.

    A copy that stays behind teaches the model what the forgotten example taught it.

    Raises:
      InputError: see `check_forget_ids`.
    """
    chosen = set(check_forget_ids(ids, len(dataset)).tolist())
    for copies in dataset.duplicates():
        if chosen.intersection(copies.tolist()):
            chosen.update(copies.tolist())
    return check_forget_ids(sorted(chosen), len(dataset))


def check_forget_ids(ids: IdsLike, num_examples: int, *, allow_empty: bool = False) -> np.ndarray:
    """Checks that ids can be forgotten, and sorts them.

    Args:
      ids: the ids, in any order.
      num_examples: size of the training set.
      allow_empty: accept no ids at all.

    Returns:
      int64, ascending.

    Raises:
      InputError: an id is out of range or occurs twice; there is none; or nothing would be left.
    """
    ids = as_ids(ids, num_examples, name="forget ids")
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        raise InputError(f"forget ids: id {unique[counts > 1][0]} occurs twice; give each id once")
    if len(unique) == 0 and not allow_empty:
        raise InputError("forget ids: there are none; choose at least one example")
    if len(unique) == num_examples:
        raise InputError(f"forget ids: all {num_examples} examples are chosen; retain at least one")
    return unique


def retain_ids(ids: IdsLike, num_examples: int) -> np.ndarray:
    """Returns the ids that are not forgotten: int64, ascending.

    Raises:
      InputError: see `check_forget_ids`.
    """
    keep = np.ones(num_examples, bool)
    keep[check_forget_ids(ids, num_examples, allow_empty=True)] = False
    return np.flatnonzero(keep)


def check_partition(forget: IdsLike, retain: IdsLike, num_examples: int) -> None:
    """Checks that every example is either forgotten or retained, and none is both.

    Raises:
      InputError: the two overlap, or an example is in neither, or an id is out of range.
    """
    times = np.zeros(num_examples, np.int64)
    for name, ids in (("forget ids", forget), ("retain ids", retain)):
        np.add.at(times, as_ids(ids, num_examples, name=name), 1)
    if (times > 1).any():
        raise InputError(f"partition: id {np.argmax(times > 1)} is listed more than once")
    if (times == 0).any():
        raise InputError(f"partition: id {np.argmax(times == 0)} is neither forgotten nor retained")


SELECTORS: dict[str, Callable[..., np.ndarray]] = {
    "random": random_ids,
    "class": class_ids,
    "group": group_ids,
    "ids": explicit_ids,
    "corrupted": corrupted_ids,
}
"""The kinds of forget set, by the name that `select` takes."""


def select(dataset: Dataset, kind: str, *, duplicates: bool = False, **options) -> np.ndarray:
    """Chooses a forget set by the name of its kind.

    Args:
      dataset: the training set.
      kind: `random`, `class`, `group`, `ids` or `corrupted`.
      duplicates: also forget every byte-identical copy; see `with_duplicates`.
      **options: keyword arguments of the function of that kind.

    Returns:
      int64, ascending.

    Raises:
      InputError: unknown kind or options, or what the function raises.

    >>> from unroll.data import gaussian_blobs
    >>> train, _ = gaussian_blobs(num_train=100)
    >>> len(select(train, "random", fraction=0.1))
    10
    """
    if kind not in SELECTORS:
        raise InputError(f"forget set: {kind!r} is unknown; use one of {', '.join(SELECTORS)}")
    ids = call_with_options(SELECTORS[kind], f"forget set {kind!r}", dataset, **options)
    return with_duplicates(dataset, ids) if duplicates else ids


def _members(dataset: Dataset, label: int) -> np.ndarray:
    if not 0 <= label < dataset.num_classes:
        raise InputError(f"class {label}: use a class from 0 to {dataset.num_classes - 1}")
    members = np.flatnonzero(dataset.labels == label)
    if len(members) == 0:
        raise InputError(f"class {label}: {dataset.name} has no example of it")
    return members
