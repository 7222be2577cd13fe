"""Arrays that the caller already has, in memory or in a `.npz` file; also precomputed features."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unroll.data.dataset import Dataset, pair
from unroll.errors import InputError

_REQUIRED_KEYS = ("train_inputs", "train_labels", "test_inputs", "test_labels")
_OPTIONAL_KEYS = ("groups", "num_classes", "mean", "std", "class_names")


def from_arrays(
    train_inputs: np.ndarray,
    train_labels: np.ndarray,
    test_inputs: np.ndarray,
    test_labels: np.ndarray,
    *,
    name: str = "arrays",
    num_classes: int | None = None,
    groups: np.ndarray | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
) -> tuple[Dataset, Dataset]:
    """Builds (train, test) from arrays.

    Args:
      train_inputs: [N, ...] float features or images, uint8 images, or integer tokens.
      train_labels: int [N].
      test_inputs: [M, ...] with the same shape and dtype per example.
      test_labels: int [M].
      name: name of the data set; the sizes are added.
      num_classes: number of classes; left out, one more than the highest label in either part.
      groups: int [N], a user or source id for each training example.
      mean: per channel, for uint8 images, on the scale [0, 1].
      std: like `mean`.
      class_names: one name per class.

    Returns:
      (train, test).

    Raises:
      InputError: see `Dataset`; or train and test do not fit together.

    >>> train, test = from_arrays(np.eye(4), [0, 1, 0, 1], np.eye(4)[:2], [0, 1])
    >>> train.name, train.num_classes
    ('arrays[4/2]', 2)
    """
    train_labels, test_labels = np.asarray(train_labels), np.asarray(test_labels)
    if num_classes is None:
        num_classes = _count_classes(train_labels, test_labels)
    shared = {"num_classes": num_classes, "mean": mean, "std": std, "class_names": class_names}
    train = Dataset(name, train_inputs, train_labels, groups=groups, **shared)
    test = Dataset(name, test_inputs, test_labels, **shared)
    return pair(name, train, test)


def load_npz(path: str | os.PathLike) -> tuple[Dataset, Dataset]:
    """Loads (train, test) from a `.npz` file, as `numpy.savez` writes it.

    The file holds `train_inputs`, `train_labels`, `test_inputs` and `test_labels`, and may hold
    `groups`, `num_classes`, `mean`, `std` and `class_names`; see `from_arrays`. The name of the
    data set is the name of the file.

    Raises:
      InputError: the file is missing, is no `.npz` file, lacks a key, or holds Python objects.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path}: no such file; write it with numpy.savez(path, train_inputs=...)")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not an .npz file; write it with numpy.savez")
    with np.load(path, allow_pickle=False) as archive:
        missing = [key for key in _REQUIRED_KEYS if key not in archive]
        unknown = sorted(set(archive) - set(_REQUIRED_KEYS) - set(_OPTIONAL_KEYS))
        if missing:
            raise InputError(f"{path}: lacks {', '.join(missing)}; it holds {sorted(archive)}")
        if unknown:
            raise InputError(f"{path}: unknown keys {unknown}; optional keys are {_OPTIONAL_KEYS}")
        try:
            arrays = {key: archive[key] for key in archive}
        except ValueError as error:
            raise InputError(f"{path}: cannot be read ({error}); save plain arrays") from error
    if "num_classes" in arrays:
        if arrays["num_classes"].size != 1:
            raise InputError(f"{path}: num_classes must be one number")
        arrays["num_classes"] = int(arrays["num_classes"].item())
    return from_arrays(**arrays, name=path.stem)


def _count_classes(*labels: np.ndarray) -> int:
    for part in labels:
        if part.size == 0 or not np.issubdtype(part.dtype, np.integer):
            raise InputError(f"labels: expected integers, got {part.size} of dtype {part.dtype}")
    return int(max(part.max() for part in labels)) + 1
