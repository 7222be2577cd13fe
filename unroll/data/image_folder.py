"""A folder of image files: one folder per class, or Tiny-ImageNet's own layout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unroll.data.dataset import Dataset, pair
from unroll.data.statistics import published_statistics
from unroll.errors import InputError

_SUFFIXES = (".png", ".jpg", ".jpeg")

LabelledFiles = list[tuple[Path, int]]


def load_image_folder(
    root: str | os.PathLike,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[Dataset, Dataset]:
    """Loads images as uint8 RGB [N, height, width, 3].

    Two layouts are read:

    - `root/train/<class>/*.png` and `root/test/<class>/*.png` (or `root/val/...`), with `.png`,
      `.jpg` or `.jpeg` files; the classes are the sorted folder names.
    - Tiny-ImageNet as it is distributed: `wnids.txt`, `train/<wnid>/images/*.JPEG`,
      `val/images/*.JPEG` and `val/val_annotations.txt`. Its validation set becomes the test set
      and its published mean and std are the defaults.

    The rows go round the classes: the first file of every class, then the second of every class,
    and so on, files in sorted order. So the first n rows hold all classes.

    Args:
      root: the folder.
      image_size: resize every image to this height and width; needed where sizes differ.
      mean: per channel, on the scale [0, 1].
      std: like `mean`.

    Returns:
      (train, test), named after the folder.

    Raises:
      InputError: no images, a class only in the test part, an unreadable file, or sizes that
        differ without `image_size`.
    """
    root = Path(root).expanduser()
    if image_size is not None and (not isinstance(image_size, int) or image_size < 1):
        raise InputError(f"image_size: expected an integer >= 1, got {image_size!r}")
    if not (root / "train").is_dir():
        raise InputError(f"{root}: there is no folder {root / 'train'}; put train/<class>/ there")
    if (root / "val" / "val_annotations.txt").is_file():
        classes, train_files, test_files = _list_tiny_imagenet(root)
        if mean is None and std is None:
            mean, std = published_statistics("tiny_imagenet")
    else:
        classes, train_files, test_files = _list_class_folders(root)

    def read(files: LabelledFiles, size: tuple[int, int] | None) -> Dataset:
        images = _read_images([path for path, _ in files], size)
        labels = np.array([label for _, label in files], np.int32)
        return Dataset(
            root.name, images, labels, len(classes), mean=mean, std=std, class_names=classes
        )

    train = read(train_files, None if image_size is None else (image_size, image_size))
    test = read(test_files, None if image_size is None else (image_size, image_size))
    return pair(root.name, train, test)


def _list_class_folders(root: Path) -> tuple[tuple[str, ...], LabelledFiles, LabelledFiles]:
    part = next((name for name in ("test", "val") if (root / name).is_dir()), None)
    if part is None:
        raise InputError(f"{root}: there is no folder test or val; put test/<class>/ there")
    classes = _folder_names(root / "train")
    extra = sorted(set(_folder_names(root / part)) - set(classes))
    if extra:
        raise InputError(f"{root}: class {extra[0]!r} is in {part} but not in train; add it there")
    folders = {
        name: [root / name / label for label in classes if (root / name / label).is_dir()]
        for name in ("train", part)
    }
    train = _list_images(folders["train"], classes, lambda folder: folder.name)
    test = _list_images(folders[part], classes, lambda folder: folder.name)
    for name, files in (("train", train), (part, test)):
        if not files:
            raise InputError(f"{root / name}: no images; put .png or .jpg files in {name}/<class>/")
    return classes, train, test


def _list_tiny_imagenet(root: Path) -> tuple[tuple[str, ...], LabelledFiles, LabelledFiles]:
    names = root / "wnids.txt"
    classes = tuple(sorted(names.read_text().split())) if names.is_file() else ()
    classes = classes or _folder_names(root / "train")
    folders = [root / "train" / label / "images" for label in classes]
    train = _list_images(folders, classes, lambda folder: folder.parent.name)
    test = []
    for line in (root / "val" / "val_annotations.txt").read_text().splitlines():
        file_name, label = line.split("\t")[:2]
        if label not in classes:
            raise InputError(f"{root}: val_annotations.txt has the unknown class {label!r}")
        test.append((root / "val" / "images" / file_name, classes.index(label)))
    for part, files in (("train", train), ("val", test)):
        if not files:
            raise InputError(f"{root / part}: no images; unpack Tiny-ImageNet there")
    return classes, train, sorted(test)


def _folder_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))


def _list_images(folders: list[Path], classes: Sequence[str], class_of) -> LabelledFiles:
    ranked = []
    for folder in folders:
        label = classes.index(class_of(folder))
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        images = [path for path in files if path.suffix.lower() in _SUFFIXES]
        ranked += [(rank, label, path) for rank, path in enumerate(images)]
    return [(path, label) for _, label, path in sorted(ranked)]


def _read_images(paths: list[Path], size: tuple[int, int] | None) -> np.ndarray:
    first = _read_image(paths[0], size)
    images = np.empty((len(paths), *first.shape), np.uint8)
    for row, path in enumerate(paths):
        image = _read_image(path, size)
        if image.shape != first.shape:
            raise InputError(
                f"{path}: is {image.shape[1]}x{image.shape[0]} but {paths[0].name} is "
                f"{first.shape[1]}x{first.shape[0]}; give image_size to resize them all"
            )
        images[row] = image
    return images


def _read_image(path: Path, size: tuple[int, int] | None) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
    except OSError as error:  # also PIL's UnidentifiedImageError, and a missing file
        raise InputError(f"{path}: cannot be read as an image; repair or remove it") from error
    if size is not None and image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image)
