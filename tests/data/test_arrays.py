import numpy as np
import pytest

from unroll.data import from_arrays, load_npz
from unroll.errors import InputError

ARRAYS = {
    "train_inputs": np.arange(12.0).reshape(4, 3),
    "train_labels": np.array([0, 1, 1, 0]),
    "test_inputs": np.ones([2, 3]),
    "test_labels": np.array([2, 0]),
}


def test_from_arrays_counts_the_classes_of_both_parts():
    train, test = from_arrays(**ARRAYS, groups=np.arange(4))
    assert train.name == "arrays[4/2]"
    assert train.num_classes == test.num_classes == 3
    assert train.groups.tolist() == [0, 1, 2, 3] and test.groups is None


def test_npz_round_trip(tmp_path):
    pixels = np.arange(48, dtype=np.uint8)
    arrays = ARRAYS | {
        "train_inputs": pixels.reshape(4, 2, 2, 3),
        "test_inputs": pixels[:24].reshape(2, 2, 2, 3),
        "num_classes": 5,
        "groups": np.array([3, 3, 4, 4]),
        "mean": np.full(3, 0.5),
        "std": np.full(3, 0.25),
        "class_names": list("abcde"),
    }
    np.savez(tmp_path / "features.npz", **arrays)
    train, test = load_npz(tmp_path / "features.npz")
    assert train.name == "features[4/2]" and train.num_classes == 5
    np.testing.assert_array_equal(train.inputs, arrays["train_inputs"])
    np.testing.assert_array_equal(test.labels, arrays["test_labels"])
    assert train.mean == (0.5, 0.5, 0.5) and train.class_names == tuple("abcde")
    assert train.groups.tolist() == [3, 3, 4, 4]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"test_inputs": np.ones([2, 4])}, "example_shape"),
        ({"train_labels": np.zeros(4)}, "integers"),
        ({"train_labels": np.zeros(0, int)}, "integers"),
        ({"num_classes": 2}, "label 2"),
    ],
)
def test_from_arrays_rejects(changes, text, one_line):
    with pytest.raises(InputError, match=one_line(text)):
        from_arrays(**(ARRAYS | changes))


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"train_inputs": np.ones([1, 1])}, "lacks train_labels, test_inputs, test_labels"),
        (ARRAYS | {"weights": np.ones(4)}, "unknown keys ['weights']"),
        (ARRAYS | {"groups": np.array([object()])}, "plain arrays"),
        (ARRAYS | {"num_classes": np.array([2, 3])}, "one number"),
    ],
)
def test_npz_with_wrong_content(arrays, text, tmp_path, one_line):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=one_line("bad.npz", text)):
        load_npz(tmp_path / "bad.npz")


def test_npz_that_is_none(tmp_path, one_line):
    with pytest.raises(InputError, match=one_line("missing.npz", "no such file")):
        load_npz(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(InputError, match=one_line("text.npz", "numpy.savez")):
        load_npz(tmp_path / "text.npz")
