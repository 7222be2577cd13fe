"""Bad training data made on purpose, for unlearning to repair.

Each function returns a new data set and leaves the given one as it is. Where labels change, the
result keeps the labels from before the first corruption in `true_labels`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from unroll.data.dataset import Dataset
from unroll.data.ids import IdsLike, as_ids, count_of, make_generator
from unroll.errors import InputError


def mislabel(
    dataset: Dataset,
    fraction: float | None = None,
    ids: IdsLike | None = None,
    seed: int = 0,
) -> Dataset:
    """Gives examples a wrong label, uniformly among the classes that are not their true one.

    Args:
      dataset: the clean data.
      fraction: share of the examples, chosen at random; give this or `ids`.
      ids: the examples.
      seed: random seed.

    Raises:
      InputError: neither or both of fraction and ids; or there is only one class.
    """
    if (fraction is None) == (ids is None):
        raise InputError("mislabel: give either fraction or ids, not both and not neither")
    if dataset.num_classes < 2:
        raise InputError("mislabel: a wrong label needs at least two classes")
    generator = make_generator(seed, "mislabel")
    if ids is None:
        count = count_of(len(dataset), None, fraction, name="mislabel")
        ids = generator.permutation(len(dataset))[:count]
    ids = np.unique(as_ids(ids, len(dataset)))
    truth = _true_labels(dataset)
    # A shift by 1 .. num_classes - 1 reaches every other class equally often, never the true one.
    shift = generator.integers(1, dataset.num_classes, size=len(ids))
    labels = dataset.labels.copy()
    labels[ids] = (truth[ids] + shift) % dataset.num_classes
    return _relabelled(dataset, labels, f"mislabel({len(ids)})")


def swap_classes(
    dataset: Dataset, first: int, second: int, fraction: float = 1.0, seed: int = 0
) -> Dataset:
    """Exchanges the labels of two classes in a part of each (interclass confusion).

    Follows Goel et al. 2022, https://arxiv.org/abs/2201.06640.

    Args:
      dataset: the clean data.
      first: a class.
      second: another class.
      fraction: share of the examples of each class whose label is exchanged.
      seed: random seed.

    Raises:
      InputError: the classes are equal, unknown or empty, or the fraction rounds to nothing.
    """
    if first == second:
        raise InputError(f"swap_classes: the classes must differ, both are {first}")
    generator = make_generator(seed, "swap_classes")
    labels = dataset.labels.copy()
    for old, new in ((first, second), (second, first)):
        members = np.flatnonzero(dataset.labels == old)
        if len(members) == 0:
            raise InputError(f"swap_classes: {dataset.name} has no example of class {old}")
        count = count_of(len(members), None, fraction, name=f"class {old}")
        labels[generator.permutation(members)[:count]] = new
    return _relabelled(dataset, labels, f"swap({first},{second})")


def add_duplicates(dataset: Dataset, ids: IdsLike, copies: int = 1) -> Dataset:
    """Appends exact copies of examples, after all existing rows, so that old ids stay valid.

    Args:
      dataset: N examples.
      ids: the examples to copy.
      copies: how many copies of each.

    Returns:
      A data set of N + copies * len(ids) examples.

    Raises:
      InputError: an id is out of range, there is none, or copies is below 1.
    """
    ids = as_ids(ids, len(dataset))
    if len(ids) == 0 or copies < 1:
        raise InputError(
            f"add_duplicates: got {len(ids)} ids and {copies} copies; need one of each"
        )
    extended = dataset.take(np.concatenate([np.arange(len(dataset)), np.tile(ids, copies)]))
    return dataclasses.replace(extended, name=f"{dataset.name}+copies({copies * len(ids)})")


def poison_trigger(
    dataset: Dataset, ids: IdsLike, target: int, size: int = 3, value: float | None = None
) -> Dataset:
    """Puts a bright square into images and labels them `target` (a backdoor).

    Poison a part of the training set; poison all other classes of the test set to measure how
    often the backdoor works.

    Args:
      dataset: images [N, height, width, channels].
      ids: the images to poison, from classes other than `target`. An image of the target class
        would keep its label, and `corrupted_ids` could not find it again.
      target: the label they get.
      size: side of the square, in pixels.
      value: pixel value of the square; see `apply_trigger`.

    Raises:
      InputError: no ids, an id of the target class, an unknown target, or see `apply_trigger`.

    >>> from unroll.data import corrupted_ids, random_ids, random_images
    >>> train, _ = random_images()
    >>> ids = random_ids(train, size=10, classes=[1, 2, 3])
    >>> len(corrupted_ids(poison_trigger(train, ids, target=0)))
    10
    """
    ids = np.unique(as_ids(ids, len(dataset)))
    if len(ids) == 0:
        raise InputError("poison_trigger: there are no ids; choose at least one image")
    if not 0 <= target < dataset.num_classes:
        raise InputError(
            f"poison_trigger: target {target} is not a class from 0 to {dataset.num_classes - 1}"
        )
    already = ids[dataset.labels[ids] == target]
    if len(already):
        raise InputError(
            f"poison_trigger: example {already[0]} already has the target label {target}; "
            "choose ids of the other classes"
        )
    inputs, labels = dataset.inputs.copy(), dataset.labels.copy()
    inputs[ids] = apply_trigger(inputs[ids], size, value)
    labels[ids] = target
    stamped = dataclasses.replace(dataset, inputs=inputs)
    return _relabelled(stamped, labels, f"trigger({len(ids)})")


def apply_trigger(inputs: np.ndarray, size: int = 3, value: float | None = None) -> np.ndarray:
    """Returns images with a square of one value in the lower right corner.

    Args:
      inputs: [N, height, width, channels], uint8 or float.
      size: side of the square, in pixels.
      value: pixel value; left out, 255 for uint8 and 1.0 for float images.

    Raises:
      InputError: the inputs are not images, the square does not fit, or the value is no pixel.
    """
    if inputs.ndim != 4 or inputs.dtype not in (np.uint8, np.float32, np.float64):
        raise InputError(
            f"trigger: expected images [N, height, width, channels], got {inputs.dtype} "
            f"of shape {inputs.shape}"
        )
    if not 1 <= size <= min(inputs.shape[1:3]):
        raise InputError(f"trigger: a square of {size} pixels does not fit {inputs.shape[1:3]}")
    if value is None:
        value = 255 if inputs.dtype == np.uint8 else 1.0
    if inputs.dtype == np.uint8 and not 0 <= value <= 255:
        raise InputError(f"trigger: value {value} is not a uint8 pixel; use 0 to 255")
    stamped = inputs.copy()
    stamped[:, -size:, -size:, :] = value
    return stamped


def _true_labels(dataset: Dataset) -> np.ndarray:
    return dataset.labels if dataset.true_labels is None else dataset.true_labels


def _relabelled(dataset: Dataset, labels: np.ndarray, note: str) -> Dataset:
    return dataclasses.replace(
        dataset,
        name=f"{dataset.name}+{note}",
        labels=labels,
        true_labels=_true_labels(dataset),
    )
