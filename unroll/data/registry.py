"""Data sets by name, for configs and the command line."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

from unroll.data.arrays import load_npz
from unroll.data.dataset import Dataset, pair
from unroll.data.digits import load_digits
from unroll.data.features import load_text_features
from unroll.data.image_folder import load_image_folder
from unroll.data.options import call_with_options
from unroll.data.synthetic import gaussian_blobs, random_images
from unroll.data.text import load_text
from unroll.data.tfds_source import load_tfds
from unroll.errors import InputError


def _load_any_tfds(
    tfds_name: str,
    data_dir: str | os.PathLike | None = None,
    train_split: str = "train",
    test_split: str = "test",
    label_key: str = "label",
    input_key: str | None = None,
    num_train: int | None = None,
    num_test: int | None = None,
) -> tuple[Dataset, Dataset]:
    return load_tfds(
        tfds_name, data_dir, train_split, test_split, label_key, input_key, num_train, num_test
    )


LOADERS: dict[str, Callable[..., tuple[Dataset, Dataset]]] = {
    "digits": load_digits,
    "blobs": gaussian_blobs,
    "random_images": random_images,
    "npz": load_npz,
    "image_folder": load_image_folder,
    "cifar10": functools.partial(load_tfds, "cifar10"),
    "cifar100": functools.partial(load_tfds, "cifar100"),
    "fashion_mnist": functools.partial(load_tfds, "fashion_mnist"),
    "mnist": functools.partial(load_tfds, "mnist"),
    "imdb_reviews": functools.partial(load_text, "imdb_reviews/plain_text"),
    "text_features": load_text_features,
    "tfds": _load_any_tfds,
}
"""The loaders, by the name that `load` takes."""


def load(name: str, **options: Any) -> tuple[Dataset, Dataset]:
    """Loads a data set by name.

    Args:
      name: `digits`, `blobs`, `random_images`, `npz` (option `path`), `image_folder` (option
        `root`), `cifar10`, `cifar100`, `fashion_mnist`, `mnist`, `imdb_reviews`, or `tfds` for
        any other image data set of TFDS (option `tfds_name`).
      **options: keyword arguments of the loader. Every loader also takes `num_train` and
        `num_test`, which keep the first examples only.

    Returns:
      (train, test).

    Raises:
      InputError: unknown name or option, more examples asked for than there are, or what the
        loader raises.

    >>> train, test = load("digits", num_train=100)
    >>> train.name
    'digits[100/359]'
    """
    if name not in LOADERS:
        raise InputError(f"data set {name!r} is unknown; use one of {', '.join(LOADERS)}")
    loader = LOADERS[name]
    limits = {}
    for limit in ("num_train", "num_test"):
        # Loaders that can read or draw fewer rows do so themselves; the others are cut here.
        if limit in options and limit not in inspect.signature(loader).parameters:
            limits[limit] = options.pop(limit)
    train, test = call_with_options(loader, f"data set {name!r}", **options)
    if not any(size is not None for size in limits.values()):
        return train, test
    train = _first(train, limits.get("num_train"), "num_train")
    test = _first(test, limits.get("num_test"), "num_test")
    return pair(train.name.rpartition("[")[0], train, test)


def _first(dataset: Dataset, size: int | None, option: str) -> Dataset:
    if size is None:
        return dataset
    if not 1 <= size <= len(dataset):
        raise InputError(f"{option}: must be from 1 to {len(dataset)} for this data, got {size}")
    return dataset.take(range(size))
