"""Datasets prepared by TensorFlow Datasets, read without TensorFlow.

A build is a folder `<data_dir>/<name>[/<config>]/<version>`. In array_record format it is read
through `as_data_source`, which needs no TensorFlow. In tfrecord format it needs TensorFlow. Nothing
here downloads: preparing a dataset is the user's own step, and every error says how.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unroll.data.dataset import Dataset, pair
from unroll.data.statistics import published_statistics
from unroll.errors import InputError

_NAME = re.compile(r"(?P<dataset>\w+)(/(?P<config>[\w.-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_HARMLESS = "OpenCV is not installed"


def load_tfds(
    name: str,
    data_dir: str | os.PathLike | None = None,
    train_split: str = "train",
    test_split: str = "test",
    label_key: str = "label",
    input_key: str | None = None,
    num_train: int | None = None,
    num_test: int | None = None,
) -> tuple[Dataset, Dataset]:
    """Loads an image classification dataset that TFDS has prepared; images stay uint8.

    Row i is record i of the split, in the fixed order of this build. A build with another number
    of examples has another order, so ids must not be carried from one build to another.

    Args:
      name: TFDS name, with an optional config and version: `cifar10`, `name/config:1.0.0`.
      data_dir: folder of the builds; left out, the environment variable TFDS_DATA_DIR (read at
        this call), else `~/tensorflow_datasets`.
      train_split: a split, which may be a slice: `train[:50%]`.
      test_split: likewise.
      label_key: feature that holds the class.
      input_key: feature that holds the image; left out, the only image feature.
      num_train: read only the first rows of the training split.
      num_test: read only the first rows of the test split.

    Returns:
      (train, test), with the published mean and std where the dataset is a known one.

    Raises:
      InputError: the build, split or feature is missing or unreadable; the message names the
        folder and the command that prepares the dataset.
    """
    builder = open_build(name, data_dir)
    features = builder.info.features
    input_key = input_key or _only_image_key(name, features)
    classes = class_feature(name, features, input_key, label_key)
    mean, std = published_statistics(builder.name)

    def read(split: str, limit: int | None) -> Dataset:
        columns = read_columns(builder, split, (input_key, label_key), limit)
        return Dataset(
            name=builder.name,
            inputs=_stack_images(columns[input_key], name),
            labels=np.array(columns[label_key], np.int64),
            num_classes=classes.num_classes,
            mean=mean,
            std=std,
            class_names=classes.names,
        )

    return pair(builder.name, read(train_split, num_train), read(test_split, num_test))


def resolve_data_dir(data_dir: str | os.PathLike | None = None) -> Path:
    """Returns the folder of the builds: the argument, else TFDS_DATA_DIR, else TFDS's own default.

    TFDS itself reads the variable only once, when it is imported; here it counts at every call.
    """
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(chosen).expanduser()


def find_build(name: str, data_dir: str | os.PathLike | None = None) -> Path:
    """Returns the folder of a prepared dataset; among several versions, the highest.

    TFDS's own errors for a missing dataset are misleading, and by default it would start a
    download, so the folder is looked up here, before TFDS is asked.

    Args:
      name: TFDS name, with an optional config and version.
      data_dir: see `resolve_data_dir`.

    Raises:
      InputError: the name is malformed, or there is no such build, or there are several configs.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(f"{name!r} is not a TFDS name; write name, name/config or name:1.0.0")
    root = resolve_data_dir(data_dir)
    folder = root / match["dataset"]
    if match["config"]:
        folder = folder / match["config"]
    builds = [path.parent for path in folder.glob("*/dataset_info.json")]
    if not builds and not match["config"]:
        builds = [path.parent for path in folder.glob("*/*/dataset_info.json")]
        configs = sorted({path.parent.name for path in builds})
        if len(configs) > 1:
            names = ", ".join(f"{name}/{config}" for config in configs)
            raise InputError(f"{name}: {folder} holds several configs; name one of {names}")
    versions = [path for path in builds if _VERSION.fullmatch(path.name)]
    if match["version"]:
        versions = [path for path in versions if path.name == match["version"]]
    if not versions:
        wanted = folder / (match["version"] or "<version>")
        raise InputError(
            f"{name}: not found, there is no {wanted}/dataset_info.json; set TFDS_DATA_DIR or "
            f"data_dir to your TFDS folder, or prepare it: {_prepare_command(name, root)}"
        )
    return max(versions, key=lambda path: tuple(int(part) for part in path.name.split(".")))


def open_build(name: str, data_dir: str | os.PathLike | None = None) -> Any:
    """Opens a prepared dataset and returns its read-only TFDS builder.

    Raises:
      InputError: see `find_build`; or the build is in a format that cannot be read here.
    """
    folder = find_build(name, data_dir)
    file_format = _file_format(folder)
    elsewhere = Path(f"{resolve_data_dir(data_dir)}_array_record")
    if file_format == "tfrecord" and importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"{name}: {folder} is in tfrecord format, which needs TensorFlow: "
            f'pip install "unroll[prepare]", or prepare it once more in a folder of its own: '
            f"{_prepare_command(name, elsewhere)}"
        )
    if file_format not in ("array_record", "tfrecord"):
        # Parquet in particular opens, but returns every row whatever slice is asked for.
        raise InputError(
            f"{name}: {folder} is in {file_format} format, whose split slices are not reliable; "
            f"prepare it as array_record: {_prepare_command(name, elsewhere)}"
        )
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(folder)


def read_columns(
    builder: Any, split: str, keys: tuple[str, ...], limit: int | None = None
) -> dict[str, list[Any]]:
    """Reads features of a split, in the fixed order of the build.

    Args:
      builder: from `open_build`.
      split: a split or a slice of one, for example `train[:100]`.
      keys: names of the features.
      limit: read only the first `limit` rows.

    Returns:
      One list per key, a value per row, as TFDS decodes it.

    Raises:
      InputError: unknown split, missing files, more rows asked for than there are, or a source
        that returns another number of rows than the split has.
    """
    size = _split_size(builder, split)
    if limit is not None and not 1 <= limit <= size:
        raise InputError(f"{builder.name}: asked for {limit} rows of {split}, which has {size}")
    with _quiet_decoder():
        total, rows = _open_rows(builder, split)
        # Some sources ignore slices without a word. For unlearning that would put forgotten
        # examples among the retained ones, so the length is checked every time.
        if total != size:
            raise InputError(
                f"{builder.name}: {split} should have {size} rows but the reader returns {total}; "
                "prepare the dataset as array_record"
            )
        columns: dict[str, list[Any]] = {key: [] for key in keys}
        for _, row in zip(range(size if limit is None else limit), rows, strict=False):
            for key in keys:
                columns[key].append(row[key])
    return columns


def class_feature(name: str, features: Any, input_key: str, label_key: str) -> Any:
    """Checks that both features exist and returns the label's, with `num_classes` and `names`.

    Raises:
      InputError: a feature is missing, or the label is not a class label.
    """
    for key in (input_key, label_key):
        if key not in features:
            raise InputError(f"{name}: there is no feature {key!r}; there are {sorted(features)}")
    if not hasattr(features[label_key], "num_classes"):
        raise InputError(f"{name}: feature {label_key!r} is not a class label")
    return features[label_key]


@contextlib.contextmanager
def _quiet_decoder() -> Iterator[None]:
    """Hides TFDS's advice to install OpenCV and lets every other message through."""

    def is_news(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_HARMLESS)

    logger = logging.getLogger("absl")
    logger.addFilter(is_news)
    try:
        yield
    finally:
        logger.removeFilter(is_news)


def _prepare_command(name: str, data_dir: Path) -> str:
    return (
        'pip install "unroll[prepare]" && python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{data_dir}', file_format='array_record')"
        '.download_and_prepare()"'
    )


def _file_format(folder: Path) -> str:
    path = folder / "dataset_info.json"
    try:
        return json.loads(path.read_text()).get("fileFormat", "tfrecord")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read; prepare the dataset again") from error


def _split_size(builder: Any, split: str) -> int:
    try:
        info = builder.info.splits[split]
    except (KeyError, ValueError) as error:
        known = {name: info.num_examples for name, info in builder.info.splits.items()}
        raise InputError(
            f"{builder.name}: cannot read split {split!r}; the build has {known}"
        ) from error
    missing = [path for path in info.filepaths if not Path(path).exists()]
    if missing:
        raise InputError(f"{builder.name}: {missing[0]} is missing; prepare the dataset again")
    return info.num_examples


def _open_rows(builder: Any, split: str) -> tuple[int, Iterator[dict[str, Any]]]:
    """Returns the number of rows that the reader reports, and the rows in order."""
    if builder.info.file_format.value == "array_record":
        source = builder.as_data_source(split=split)
        return len(source), (source[row] for row in range(len(source)))
    import tensorflow_datasets as tfds

    dataset = builder.as_dataset(split=split, shuffle_files=False)
    return len(dataset), iter(tfds.as_numpy(dataset))


def _only_image_key(name: str, features: Any) -> str:
    images = [key for key, feature in features.items() if type(feature).__name__ == "Image"]
    if len(images) != 1:
        raise InputError(
            f"{name}: expected one image feature, found {images}; choose input_key from "
            f"{sorted(features)}"
        )
    return images[0]


def _stack_images(images: list[np.ndarray], name: str) -> np.ndarray:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise InputError(
            f"{name}: images differ in size, for example {sorted(shapes)[:2]}; resize them and "
            "use load_npz or load_image_folder(image_size=...)"
        )
    return np.stack(images)
