"""The one data structure: plain host arrays whose row number is the identity of an example.

A row number (an id) is what a schedule lists, what a forget set names, and what an example weight
belongs to. Nothing in this package shuffles or drops rows behind the caller's back.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np

from unroll.data.ids import IdsLike, as_ids
from unroll.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Examples, their labels, and what is known about them.

    The arrays are checked, converted to the dtypes below, and exposed read-only.

    Attributes:
      name: shown in results; loaders put the sizes in it, for example `cifar10[15000/3000]`.
      inputs: [N, ...] float32 features or images, uint8 images, or int32 tokens (0 is padding).
      labels: int32 [N], in [0, num_classes).
      num_classes: number of classes.
      groups: int32 [N], a user or source id per example, or `None`.
      true_labels: int32 [N], the labels before they were corrupted, or `None`.
      mean: one number per channel for uint8 images, on the scale [0, 1], or `None`. These are
        constants, never statistics of the training rows: those would carry the forget set.
      std: like `mean`. A model sees `(inputs / 255 - mean) / std`.
      class_names: one name per class, or `None`.

    Raises:
      InputError: anything above does not hold; the message names the first bad id.

    >>> data = Dataset("tiny", np.zeros([2, 3]), np.array([0, 1]), num_classes=2)
    >>> len(data), data.example_shape, data.inputs.dtype
    (2, (3,), dtype('float32'))
    """

    name: str
    inputs: np.ndarray
    labels: np.ndarray
    num_classes: int
    groups: np.ndarray | None = None
    true_labels: np.ndarray | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        inputs = _checked_inputs(self.inputs)
        size = len(inputs)
        if not isinstance(self.num_classes, int | np.integer) or self.num_classes < 1:
            raise InputError(f"num_classes: expected an integer >= 1, got {self.num_classes!r}")
        checked = {
            "inputs": inputs,
            "labels": _checked_labels(self.labels, "labels", size, self.num_classes),
            "num_classes": int(self.num_classes),
        }
        if self.true_labels is not None:
            checked["true_labels"] = _checked_labels(
                self.true_labels, "true_labels", size, self.num_classes
            )
        if self.groups is not None:
            checked["groups"] = _checked_integers(self.groups, "groups", size)
        if self.class_names is not None:
            names = tuple(str(name) for name in self.class_names)
            if len(names) != self.num_classes:
                raise InputError(
                    f"class_names: got {len(names)} names for {self.num_classes} classes"
                )
            checked["class_names"] = names
        checked |= _checked_statistics(self.mean, self.std, inputs)
        for field, value in checked.items():
            object.__setattr__(self, field, _read_only(value))

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the leading N."""
        return self.inputs.shape[1:]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what training sees: arrays, classes, normalisation; not the name."""
        digest = hashlib.sha256()
        for array in (self.inputs, self.labels, self.groups):
            if array is None:
                digest.update(b"none;")
                continue
            digest.update(f"{array.dtype.str}{array.shape};".encode())
            digest.update(np.ascontiguousarray(array).data)
        digest.update(repr((self.num_classes, self.mean, self.std)).encode())
        return digest.hexdigest()

    def take(self, ids: IdsLike) -> Dataset:
        """Returns the data set of the given rows, in the given order; repeats are allowed.

        The ids of the result count from 0 again. The name stays.

        Raises:
          InputError: no id, or an id out of range.
        """
        ids = as_ids(ids, len(self))
        if len(ids) == 0:
            raise InputError("take: the list of ids is empty; a data set needs an example")
        per_example = {
            field: None if (array := getattr(self, field)) is None else array[ids]
            for field in ("inputs", "labels", "groups", "true_labels")
        }
        return dataclasses.replace(self, **per_example)

    def duplicates(self) -> list[np.ndarray]:
        """Finds rows whose inputs are byte for byte identical, whatever their labels.

        Returns:
          One int64 array of ascending ids per set of identical rows (two or more), ordered by
          their first id. Empty where all rows differ.
        """
        rows: dict[bytes, list[int]] = {}
        contiguous = np.ascontiguousarray(self.inputs)
        for example, row in enumerate(contiguous):
            # 16 bytes of hash instead of the row itself: 50,000 images stay cheap to hold.
            digest = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
            rows.setdefault(digest, []).append(example)
        return [np.array(ids, np.int64) for ids in rows.values() if len(ids) > 1]


def pair(name: str, train: Dataset, test: Dataset) -> tuple[Dataset, Dataset]:
    """Checks that train and test fit together and names both `name[<train size>/<test size>]`.

    Raises:
      InputError: they differ in the shape or dtype of their inputs or in the number of classes.
    """
    for what in ("example_shape", "num_classes"):
        first, second = getattr(train, what), getattr(test, what)
        if first != second:
            raise InputError(f"{name}: train has {what} {first} but test has {second}")
    if train.inputs.dtype != test.inputs.dtype:
        raise InputError(
            f"{name}: train inputs are {train.inputs.dtype} but test inputs are {test.inputs.dtype}"
        )
    sized = f"{name}[{len(train)}/{len(test)}]"
    return dataclasses.replace(train, name=sized), dataclasses.replace(test, name=sized)


def _read_only(value):
    if not isinstance(value, np.ndarray):
        return value
    # A copy of what the caller could still write to: the fingerprint must stay true.
    own = value.copy() if value.flags.writeable else value.view()
    own.flags.writeable = False
    return own


def _checked_inputs(inputs: np.ndarray) -> np.ndarray:
    inputs = np.asarray(inputs)
    if inputs.ndim < 2:
        raise InputError(f"inputs: expected [N, ...] with N examples, got shape {inputs.shape}")
    if inputs.size == 0:
        raise InputError(f"inputs: no data, the shape is {inputs.shape}; give at least one example")
    if inputs.dtype == np.uint8:
        return inputs
    if np.issubdtype(inputs.dtype, np.floating):
        with np.errstate(over="ignore"):  # an overflow is reported below, with its id
            converted = inputs.astype(np.float32, copy=False)
        return _reject_rows(converted, ~np.isfinite(converted), "NaN or infinite values")
    if np.issubdtype(inputs.dtype, np.integer):
        outside = (inputs < 0) | (inputs > np.iinfo(np.int32).max)
        return _reject_rows(inputs, outside, "tokens outside [0, 2**31)").astype(
            np.int32, copy=False
        )
    raise InputError(
        f"inputs: dtype {inputs.dtype} is not supported; "
        "give float features, uint8 images or integer tokens"
    )


def _reject_rows(inputs: np.ndarray, bad: np.ndarray, what: str) -> np.ndarray:
    rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
    if len(rows):
        raise InputError(
            f"inputs: example {rows[0]} has {what} ({len(rows)} bad of {len(inputs)}); "
            "repair or drop it"
        )
    return inputs


def _checked_integers(values: np.ndarray, name: str, size: int) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (size,):
        raise InputError(
            f"{name}: expected one number for each of {size} examples, got shape {values.shape}"
        )
    if not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"{name}: expected integers, got dtype {values.dtype}")
    limits = np.iinfo(np.int32)
    bad = np.flatnonzero((values < limits.min) | (values > limits.max))
    if len(bad):
        raise InputError(f"{name}: example {bad[0]} has {values[bad[0]]}, which is not an int32")
    return values.astype(np.int32, copy=False)


def _checked_labels(labels: np.ndarray, name: str, size: int, num_classes: int) -> np.ndarray:
    labels = _checked_integers(labels, name, size)
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(bad):
        raise InputError(
            f"{name}: example {bad[0]} has label {labels[bad[0]]}, "
            f"which is not a class from 0 to {num_classes - 1}"
        )
    return labels


def _checked_statistics(mean, std, inputs: np.ndarray) -> dict[str, tuple[float, ...] | None]:
    if mean is None and std is None:
        return {}
    if mean is None or std is None:
        raise InputError("mean and std: give both or neither")
    if inputs.dtype != np.uint8:
        raise InputError(f"mean and std: only uint8 images take them, inputs are {inputs.dtype}")
    mean = tuple(float(value) for value in np.atleast_1d(mean))
    std = tuple(float(value) for value in np.atleast_1d(std))
    channels = inputs.shape[-1]
    if len(mean) != channels or len(std) != channels:
        raise InputError(
            f"mean and std: {len(mean)} and {len(std)} numbers for {channels} channels"
        )
    if not np.isfinite(mean).all() or not np.isfinite(std).all() or min(std) <= 0:
        raise InputError(f"mean and std: expected finite numbers and std > 0, got {mean}, {std}")
    return {"mean": mean, "std": std}
