"""Hashed features: known entries, one length, nothing of other texts."""

import zlib

import numpy as np
import pytest

import unroll
from unroll.data.features import hashed_features, load_text_features


def test_known_entries():
    """The sign is the lowest bit of the hash, the place the rest of it."""
    rows = hashed_features(["good bad good"], 64, scale=2.0)
    expected = np.zeros(64)
    for feature in ("good", "bad", "good bad", "bad good"):
        code = zlib.crc32(feature.encode())
        expected[(code // 2) % 64] += 1 if code % 2 else -1
    np.testing.assert_allclose(rows[0], 2.0 * expected / np.linalg.norm(expected), rtol=1e-6)
    assert rows.dtype == np.float32


def test_a_row_depends_on_its_text_alone():
    texts = ["one two three", "two, TWO!", "", "four"]
    rows = hashed_features(texts, 32)
    for text, row in zip(texts, rows, strict=True):
        assert (hashed_features([text], 32)[0] == row).all()
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 1, 0, 1])


def test_bad_options():
    with pytest.raises(unroll.InputError, match="scale"):
        hashed_features(["a"], 4, scale=0.0)
    with pytest.raises(unroll.InputError, match="size"):
        hashed_features(["a"], 0)


def test_load_text_features(tiny_build):
    train, test = load_text_features("tiny_pictures", tiny_build, size=16, num_test=2)
    assert train.name == "tiny_pictures_features[10/2]"
    assert train.inputs.shape == (10, 16) and train.inputs.dtype == np.float32
    assert train.class_names == ("even", "odd") and len(test) == 2
