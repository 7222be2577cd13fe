import json
import logging
import shutil

import numpy as np
import pytest

from unroll.data import load_tfds
from unroll.data.tfds_source import find_build, open_build, read_columns, resolve_data_dir
from unroll.errors import InputError


def change_info(build, **changes):
    path = build / "tiny_pictures" / "1.0.0" / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def copied_build(tiny_build, tmp_path):
    return shutil.copytree(tiny_build, tmp_path / "tfds")


def test_load_reads_the_build_without_tensorflow(tiny_build):
    train, test = load_tfds("tiny_pictures", tiny_build)
    assert train.name == "tiny_pictures[10/4]"
    assert train.inputs.shape == (10, 4, 4, 3) and train.inputs.dtype == np.uint8
    assert train.class_names == ("even", "odd") and train.mean is None
    # Image i is filled with i and its label is the parity of i, so rows stay together.
    values = train.inputs[:, 0, 0, 0]
    assert sorted(values) == list(range(10))
    np.testing.assert_array_equal(train.labels, values % 2)
    assert test.num_classes == 2


def test_slices_and_limits(tiny_build):
    whole, _ = load_tfds("tiny_pictures", tiny_build)
    for options, rows in [
        ({"train_split": "train[:3]"}, slice(0, 3)),
        ({"train_split": "train[50%:]"}, slice(5, 10)),
        ({"num_train": 4}, slice(0, 4)),
        ({"train_split": "train[2:8]", "num_train": 2}, slice(2, 4)),
    ]:
        train, test = load_tfds("tiny_pictures", tiny_build, **options)
        np.testing.assert_array_equal(train.inputs, whole.inputs[rows])
        assert train.name == f"tiny_pictures[{len(train)}/4]"


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({"name": "absent"}, ["absent/<version>", "file_format='array_record'", "prepare]"]),
        ({"name": "tiny_pictures:2.0.0"}, ["tiny_pictures/2.0.0/dataset_info.json"]),
        ({"name": "tiny_pictures/big"}, ["tiny_pictures/big/<version>"]),
        ({"name": "../etc"}, ["is not a TFDS name"]),
        ({"train_split": "valid"}, ["'valid'", "'train': 10"]),
        ({"train_split": "train[:11]"}, ["'train[:11]'"]),
        ({"train_split": "train[x]"}, ["'train[x]'"]),
        ({"num_train": 11}, ["11 rows of train, which has 10"]),
        ({"num_test": 0}, ["0 rows of test"]),
        ({"label_key": "class"}, ["'class'", "label"]),
        ({"label_key": "number"}, ["'number' is not a class label"]),
        ({"input_key": "picture"}, ["'picture'"]),
    ],
)
def test_bad_requests_are_rejected(options, texts, tiny_build, one_line):
    with pytest.raises(InputError, match=one_line(*texts)):
        load_tfds(**({"name": "tiny_pictures", "data_dir": tiny_build} | options))


def test_data_dir_is_the_argument_then_the_variable_then_the_default(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "variable"))
    assert resolve_data_dir(tmp_path / "argument") == tmp_path / "argument"
    assert resolve_data_dir() == tmp_path / "variable"
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_data_dir() == tmp_path / "tensorflow_datasets"


def test_the_variable_counts_at_call_time(monkeypatch, tiny_build, tmp_path, one_line):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny_build))
    assert load_tfds("tiny_pictures")[0].name == "tiny_pictures[10/4]"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(InputError, match=one_line(str(tmp_path))):
        load_tfds("tiny_pictures")


def test_the_highest_version_and_the_only_config_are_found(tmp_path, one_line):
    for folder in ("a/1.9.0", "a/1.10.0", "a/incomplete", "b/only/1.0.0", "c/x/1.0.0", "c/y/1.0.0"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "dataset_info.json").write_text("{}")
    assert find_build("a", tmp_path) == tmp_path / "a" / "1.10.0"
    assert find_build("a:1.9.0", tmp_path) == tmp_path / "a" / "1.9.0"
    assert find_build("b", tmp_path) == tmp_path / "b" / "only" / "1.0.0"
    assert find_build("c/y", tmp_path) == tmp_path / "c" / "y" / "1.0.0"
    with pytest.raises(InputError, match=one_line("c/x, c/y")):
        find_build("c", tmp_path)


def test_tfrecord_without_tensorflow_says_what_to_install(copied_build, monkeypatch, one_line):
    change_info(copied_build, fileFormat="tfrecord")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=one_line('pip install "unroll[prepare]"', "array_record", "TensorFlow")
    ):
        load_tfds("tiny_pictures", copied_build)


def test_tfrecord_with_tensorflow(tiny_builder_class, tiny_build, tmp_path):
    pytest.importorskip("tensorflow", reason="reading tfrecord needs TensorFlow")
    tiny_builder_class(data_dir=tmp_path, file_format="tfrecord").download_and_prepare()
    train, test = load_tfds("tiny_pictures", tmp_path, train_split="train[:6]")
    same, _ = load_tfds("tiny_pictures", tiny_build, train_split="train[:6]")
    assert train.fingerprint == same.fingerprint and len(test) == 4


def test_parquet_is_refused_because_it_ignores_slices(copied_build, one_line):
    change_info(copied_build, fileFormat="parquet")
    with pytest.raises(InputError, match=one_line("parquet", "slices")):
        load_tfds("tiny_pictures", copied_build)


def test_damaged_builds_are_rejected(copied_build, one_line):
    folder = copied_build / "tiny_pictures" / "1.0.0"
    record = next(folder.glob("*train.array_record*"))
    record.unlink()
    with pytest.raises(InputError, match=one_line(record.name, "is missing")):
        load_tfds("tiny_pictures", copied_build)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match=one_line("dataset_info.json", "cannot be read")):
        load_tfds("tiny_pictures", copied_build)


def test_a_source_that_ignores_slices_is_caught(tiny_build, one_line):
    import tensorflow_datasets as tfds

    builder = open_build("tiny_pictures", tiny_build)
    # The mock returns all its rows whatever slice is asked for, as a parquet build does.
    with tfds.testing.mock_data(num_examples=10):
        assert len(read_columns(builder, "train", ("label",))["label"]) == 10
        with pytest.raises(
            InputError, match=one_line("should have 3 rows but the reader returns 10")
        ):
            read_columns(builder, "train[:3]", ("label",))


def test_images_of_different_sizes_are_rejected(tiny_build, monkeypatch, one_line):
    def two_sizes(builder, split, keys, limit=None):
        del builder, split, limit
        sizes = {"image": [np.zeros([2, 2, 3], np.uint8), np.zeros([3, 2, 3], np.uint8)]}
        return {key: sizes.get(key, [0, 1]) for key in keys}

    monkeypatch.setattr("unroll.data.tfds_source.read_columns", two_sizes)
    with pytest.raises(InputError, match=one_line("differ in size", "(2, 2, 3)")):
        load_tfds("tiny_pictures", tiny_build)


def test_only_the_harmless_message_is_hidden(tiny_build, monkeypatch):
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("absl")
    monkeypatch.setattr(logger, "handlers", [handler])

    def talk(*arguments, **options):
        logger.warning("OpenCV is not installed. We recommend using OpenCV")
        logger.warning("the disk is full")
        return 10, iter([{"label": 1}] * 10)

    monkeypatch.setattr("unroll.data.tfds_source._open_rows", talk)
    read_columns(open_build("tiny_pictures", tiny_build), "train", ("label",))
    logger.warning("OpenCV is not installed, said by someone else")
    assert messages == ["the disk is full", "OpenCV is not installed, said by someone else"]
