"""The four real subsets; skipped where they are not there."""

import numpy as np
import pytest

from unroll.data import load, published_statistics, with_duplicates
from unroll.errors import InputError

IMAGES = [
    ("cifar10", "3.0.2", 15000, 3000, (32, 32, 3), 10, 8),
    ("cifar100", "3.0.2", 10000, 2000, (32, 32, 3), 100, None),
    ("fashion_mnist", "3.0.1", 10000, 2000, (28, 28, 1), 10, None),
]


@pytest.mark.parametrize(
    ("name", "version", "train_size", "test_size", "shape", "classes", "first"), IMAGES
)
def test_images(
    name, version, train_size, test_size, shape, classes, first, real_data_dir, one_line
):
    folder = real_data_dir(name, version)
    train, test = load(name, data_dir=folder, train_split="train[:100]", num_test=30)
    assert train.name == f"{name}[100/30]"
    assert train.inputs.shape == (100, *shape) and train.inputs.dtype == np.uint8
    assert train.num_classes == classes == len(train.class_names)
    assert (train.mean, train.std) == published_statistics(name)
    assert train.duplicates() == []
    if first is not None:
        assert train.labels[0] == first
    assert test.example_shape == shape
    # The sizes of the whole build, without decoding it.
    with pytest.raises(
        InputError, match=one_line(f"'train': {train_size}", f"'test': {test_size}")
    ):
        load(name, data_dir=folder, train_split="absent")


def test_whole_cifar10_test_split(real_data_dir):
    folder = real_data_dir("cifar10", "3.0.2")
    train, test = load("cifar10", data_dir=folder, num_train=10)
    assert train.name == "cifar10[10/3000]"
    counts = np.bincount(test.labels)
    assert (counts.min(), counts.max()) == (286, 318)
    assert test.class_names[0] == "airplane"


def test_cifar100_coarse_labels(real_data_dir):
    folder = real_data_dir("cifar100", "3.0.2")
    options = {"data_dir": folder, "num_train": 50, "num_test": 5}
    coarse, _ = load("cifar100", label_key="coarse_label", **options)
    fine, _ = load("cifar100", **options)
    assert coarse.num_classes == 20 and fine.num_classes == 100
    np.testing.assert_array_equal(coarse.inputs, fine.inputs)


def test_published_statistics_are_near_those_of_the_subset(real_data_dir):
    folder = real_data_dir("fashion_mnist", "3.0.1")
    train, _ = load("fashion_mnist", data_dir=folder, num_train=2000, num_test=1)
    pixels = train.inputs / 255.0
    np.testing.assert_allclose(pixels.mean(), train.mean[0], atol=0.01)
    np.testing.assert_allclose(pixels.std(), train.std[0], atol=0.01)


TWINS = [
    (79, 3465), (648, 1685), (923, 4470), (975, 4704),
    (1646, 4643), (1663, 3254), (2302, 4726), (3346, 3359),
]  # fmt: skip


def test_imdb_reviews(real_data_dir):
    folder = real_data_dir("imdb_reviews/plain_text", "1.0.0")
    train, test = load("imdb_reviews", data_dir=folder, length=400, vocabulary_size=5000)
    assert train.name == "imdb_reviews[5000/2000]" and train.class_names == ("neg", "pos")
    assert train.inputs.shape == (5000, 400) and train.inputs.max() == 4999
    assert np.bincount(train.labels).tolist() == [2500, 2500]
    assert np.bincount(test.labels).tolist() == [1000, 1000]
    found = {tuple(ids.tolist()) for ids in train.duplicates()}
    assert set(TWINS) <= found
    assert with_duplicates(train, [79, 648, 0]).tolist() == [0, 79, 648, 1685, 3465]


def test_imdb_unsupervised_has_no_labels(real_data_dir, one_line):
    folder = real_data_dir("imdb_reviews/plain_text", "1.0.0")
    with pytest.raises(InputError, match=one_line("label -1")):
        load("imdb_reviews", data_dir=folder, train_split="unsupervised", num_test=2)
