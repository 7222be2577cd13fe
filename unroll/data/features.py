"""Text as fixed feature vectors, for a linear head.

Word i of a text adds its random sign to the entry that its hash names; the vector is scaled to
length 1 and multiplied by `scale`. Hash and sign look at no text, so nothing of a forgotten review
stays behind in the features. (Weinberger et al., *Feature hashing*, arXiv 0902.2206.)

Design: pairs of neighbours count as words too, and each word once, since a review says "not good".
Rejected: TF-IDF with a truncated SVD of the retained texts, which is more accurate, but other
features for every forget set: models could not be compared across deletions.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence

import numpy as np

from unroll.checks import whole_number
from unroll.data.dataset import Dataset, pair
from unroll.data.text import tokenize
from unroll.data.tfds_source import class_feature, open_build, read_columns
from unroll.errors import InputError


def hashed_features(texts: Sequence[str], size: int, scale: float = 1.0) -> np.ndarray:
    """Signed hashed words and pairs of neighbouring words, float32 `[N, size]`, rows of one length.

    A text without any word is a row of zeros.

    Args:
      texts: N texts.
      size: entries of a vector.
      scale: Euclidean length of the rows, above 0.

    Raises:
      InputError: if `size` is below 1 or `scale` not above 0.

    >>> hashed_features(["good", "GOOD!"], 4).tolist()
    [[0.0, -1.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0]]
    """
    whole_number("size", size)
    if not scale > 0:
        raise InputError(f"scale: must be above 0, got {scale!r}")
    rows = np.zeros((len(texts), size), np.float32)
    for row, text in zip(rows, texts, strict=True):
        words = tokenize(text)
        pairs = (f"{one} {other}" for one, other in zip(words[:-1], words[1:], strict=True))
        for feature in {*words, *pairs}:
            code = zlib.crc32(feature.encode())
            row[(code >> 1) % size] += 1.0 if code & 1 else -1.0
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(scale * rows, lengths, out=rows, where=lengths > 0)


def load_text_features(
    name: str = "imdb_reviews/plain_text",
    data_dir: str | os.PathLike | None = None,
    size: int = 2048,
    scale: float = 1.0,
    train_split: str = "train",
    test_split: str = "test",
    num_train: int | None = None,
    num_test: int | None = None,
) -> tuple[Dataset, Dataset]:
    """Loads a text classification data set that TFDS has prepared, as hashed features.

    Args:
      name: TFDS name of a data set with the features `text` and `label`.
      data_dir: see `unroll.data.load_tfds`.
      size: see `hashed_features`.
      scale: likewise.
      train_split: a split or a slice of one.
      test_split: likewise.
      num_train: read only the first rows of the training split.
      num_test: likewise for the test split.

    Raises:
      InputError: as `unroll.data.load_tfds` and `hashed_features`.
    """
    builder = open_build(name, data_dir)
    classes = class_feature(name, builder.info.features, "text", "label")

    def read(split: str, limit: int | None) -> Dataset:
        columns = read_columns(builder, split, ("text", "label"), limit)
        texts = [text.decode("utf-8") for text in columns["text"]]
        return Dataset(
            name=f"{builder.name}_features",
            inputs=hashed_features(texts, size, scale),
            labels=np.array(columns["label"], np.int64),
            num_classes=classes.num_classes,
            class_names=classes.names,
        )

    both = read(train_split, num_train), read(test_split, num_test)
    return pair(f"{builder.name}_features", *both)
