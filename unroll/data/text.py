"""Text as fixed-length rows of token ids."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from unroll.data.dataset import Dataset, pair
from unroll.data.ids import IdsLike, as_ids
from unroll.data.tfds_source import class_feature, open_build, read_columns
from unroll.errors import InputError

PADDING_ID = 0
"""Token id of an empty place at the end of a row."""
UNKNOWN_ID = 1
"""Token id of a word that the vocabulary does not hold."""
_FIRST_WORD_ID = 2

_LINE_BREAK = re.compile(r"<br\s*/?>")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The words that have an id of their own; word i has the id i + 2.

    Attributes:
      words: the words, the most frequent first.
    """

    words: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of token ids, with padding and unknown."""
        return len(self.words) + _FIRST_WORD_ID

    @functools.cached_property
    def _id_of(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, _FIRST_WORD_ID)}

    def token_id(self, word: str) -> int:
        """Returns the id of a word, or `UNKNOWN_ID`."""
        return self._id_of.get(word, UNKNOWN_ID)


@dataclasses.dataclass(frozen=True)
class HashedVocabulary:
    """Gives every word an id by hashing it, so it holds nothing of any training text.

    Different words may share an id. The hash is CRC-32, the same on every machine.

    Attributes:
      size: number of token ids, with padding and unknown (which is never used here for a word).
    """

    size: int

    def __post_init__(self) -> None:
        _check_vocabulary_size(self.size)

    def token_id(self, word: str) -> int:
        """Returns the id of a word, from 2 to size - 1."""
        return zlib.crc32(word.encode()) % (self.size - _FIRST_WORD_ID) + _FIRST_WORD_ID


def tokenize(text: str) -> list[str]:
    """Splits text into lower-case words; `<br />` marks and punctuation vanish.

    >>> tokenize("It's GOOD.<br /><br />Not bad!")
    ["it's", 'good', 'not', 'bad']
    """
    return _WORD.findall(_LINE_BREAK.sub(" ", text.lower()))


def build_vocabulary(texts: Iterable[str], size: int) -> Vocabulary:
    """Collects the most frequent words; equally frequent words go in alphabetical order.

    Pass the retained training texts only: a word that occurs in forgotten texts alone would
    otherwise stay in the vocabulary, and no retraining of the weights removes it from there.

    Args:
      texts: the texts to count words in.
      size: number of token ids at most, with padding and unknown.

    Raises:
      InputError: the size leaves no room for a word.
    """
    _check_vocabulary_size(size)
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(tokenize(text))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Vocabulary(tuple(word for word, _ in ranked[: size - _FIRST_WORD_ID]))


def encode(
    texts: Sequence[str], length: int, vocabulary: Vocabulary | HashedVocabulary
) -> np.ndarray:
    """Encodes texts as token ids, cut off or padded at the end.

    A text without any word becomes one unknown token, so that no row is all padding and a mean
    over its tokens is defined.

    Args:
      texts: N texts.
      length: number of tokens per row.
      vocabulary: gives the ids.

    Returns:
      int32 [N, length].

    Raises:
      InputError: length below 1.

    >>> encode(["b a b", "c"], 4, build_vocabulary(["b a b"], size=10))
    array([[2, 3, 2, 0],
           [1, 0, 0, 0]], dtype=int32)
    """
    if length < 1:
        raise InputError(f"length: must be >= 1, got {length}")
    rows = np.full((len(texts), length), PADDING_ID, np.int32)
    for row, text in zip(rows, texts, strict=True):
        tokens = [vocabulary.token_id(word) for word in tokenize(text)[:length]] or [UNKNOWN_ID]
        row[: len(tokens)] = tokens
    return rows


def load_text(
    name: str = "imdb_reviews/plain_text",
    data_dir: str | os.PathLike | None = None,
    length: int = 200,
    vocabulary_size: int = 8000,
    encoding: str = "vocabulary",
    exclude_ids: IdsLike = (),
    train_split: str = "train",
    test_split: str = "test",
    num_train: int | None = None,
    num_test: int | None = None,
) -> tuple[Dataset, Dataset]:
    """Loads a text classification dataset that TFDS has prepared, as rows of token ids.

    Args:
      name: TFDS name of a dataset with the features `text` and `label`.
      data_dir: see `unroll.data.load_tfds`.
      length: tokens per text; longer texts lose their end.
      vocabulary_size: token ids lie in [0, vocabulary_size).
      encoding: `vocabulary` counts words in the training text; `hashing` looks at no training
        text at all, so the encoding cannot depend on what is forgotten.
      exclude_ids: training rows to leave out when words are counted (the forget set). They are
        still encoded and returned. `hashing` has no use for them.
      train_split: a split or a slice of one.
      test_split: likewise.
      num_train: read only the first rows of the training split.
      num_test: likewise for the test split.

    Returns:
      (train, test) with int32 inputs [N, length]. Texts that differ only after `length` words, or
      in punctuation and unknown words, become equal rows, and `duplicates` reports them.

    Raises:
      InputError: as `unroll.data.load_tfds`; or an unknown encoding.
    """
    if encoding not in ("vocabulary", "hashing"):
        raise InputError(f"encoding: {encoding!r} is unknown; use 'vocabulary' or 'hashing'")
    _check_vocabulary_size(vocabulary_size)
    builder = open_build(name, data_dir)
    classes = class_feature(name, builder.info.features, "text", "label")
    train_texts, train_labels = _read_texts(builder, train_split, num_train)
    test_texts, test_labels = _read_texts(builder, test_split, num_test)
    if encoding == "hashing":
        vocabulary = HashedVocabulary(vocabulary_size)
    else:
        vocabulary = build_vocabulary(_without(train_texts, exclude_ids), vocabulary_size)

    def make(texts: list[str], labels: list[int]) -> Dataset:
        return Dataset(
            name=builder.name,
            inputs=encode(texts, length, vocabulary),
            labels=np.array(labels, np.int64),
            num_classes=classes.num_classes,
            class_names=classes.names,
        )

    return pair(builder.name, make(train_texts, train_labels), make(test_texts, test_labels))


def _without(texts: list[str], exclude_ids: IdsLike) -> list[str]:
    excluded = set(as_ids(exclude_ids, len(texts), name="exclude_ids").tolist())
    return [text for row, text in enumerate(texts) if row not in excluded]


def _read_texts(builder: Any, split: str, limit: int | None) -> tuple[list[str], list[int]]:
    columns = read_columns(builder, split, ("text", "label"), limit)
    return [text.decode("utf-8") for text in columns["text"]], columns["label"]


def _check_vocabulary_size(size: int) -> None:
    if not isinstance(size, int | np.integer) or size <= _FIRST_WORD_ID:
        raise InputError(
            f"vocabulary size: must be an integer > {_FIRST_WORD_ID} (two ids are reserved), "
            f"got {size!r}"
        )
