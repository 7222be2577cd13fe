"""Data that is always there: the digits inside scikit-learn, blobs, made-up images."""

import numpy as np
import pytest

from unroll.data import gaussian_blobs, load_digits, random_images
from unroll.data.digits import stratified_mask
from unroll.errors import InputError


def nearest_mean_accuracy(train, test):
    """Accuracy of the simplest classifier there is: the class whose mean is nearest."""
    flat = train.inputs.reshape(len(train), -1).astype(np.float64)
    classes = range(train.num_classes)
    means = np.stack([flat[train.labels == label].mean(axis=0) for label in classes])
    points = test.inputs.reshape(len(test), -1).astype(np.float64)
    distances = ((points[:, None] - means) ** 2).sum(axis=-1)
    return (distances.argmin(axis=1) == test.labels).mean()


@pytest.mark.parametrize(
    ("make", "at_least"),
    [(load_digits, 0.85), (gaussian_blobs, 0.85), (random_images, 0.95)],
)
def test_sources_are_learnable_and_deterministic(make, at_least):
    train, test = make()
    assert nearest_mean_accuracy(train, test) > at_least
    assert train.fingerprint == make()[0].fingerprint
    assert train.fingerprint != make(seed=1)[0].fingerprint
    assert train.name == f"{train.name.partition('[')[0]}[{len(train)}/{len(test)}]"


def test_digits_are_split_within_each_class():
    train, test = load_digits(test_fraction=0.25)
    assert len(train) + len(test) == 1797
    assert train.inputs.shape[1:] == (8, 8, 1) and train.inputs.dtype == np.float32
    assert train.inputs.min() == 0.0 and train.inputs.max() == 1.0
    share = np.bincount(test.labels) / np.bincount(np.append(train.labels, test.labels))
    np.testing.assert_allclose(share, 0.25, atol=0.003)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 0.001])
def test_digits_need_examples_in_both_parts(fraction, one_line):
    with pytest.raises(InputError, match=one_line("fraction")):
        load_digits(test_fraction=fraction)


def test_stratified_mask_marks_the_share_of_each_class():
    mask = stratified_mask(np.array([0] * 10 + [1] * 20), 0.3, seed=0)
    assert mask[:10].sum() == 3 and mask[10:].sum() == 6


def test_blobs_obey_their_options():
    train, test = gaussian_blobs(30, 12, num_features=5, num_classes=4, noise=0.0)
    assert train.inputs.shape == (30, 5) and len(test) == 12
    assert len(np.unique(train.inputs, axis=0)) == 4
    np.testing.assert_allclose(np.linalg.norm(train.inputs, axis=1), 3.0, rtol=1e-5)
    assert sorted(np.bincount(train.labels)) == [7, 7, 8, 8]


def test_random_images_obey_their_options():
    train, test = random_images(10, 5, size=6, channels=1, num_classes=2)
    assert train.inputs.shape == (10, 6, 6, 1) and train.inputs.dtype == np.uint8
    assert test.mean == (0.5,) and test.std == (0.25,)
    assert not np.array_equal(train.inputs[:5], test.inputs)


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        (gaussian_blobs, {"num_train": 0}, "num_train"),
        (gaussian_blobs, {"num_classes": 0}, "num_classes"),
        (gaussian_blobs, {"noise": -1.0}, "noise"),
        (gaussian_blobs, {"seed": -1}, "seed"),
        (random_images, {"size": 0}, "size"),
        (random_images, {"channels": 1.5}, "channels"),
    ],
)
def test_bad_options_are_rejected(make, options, text, one_line):
    with pytest.raises(InputError, match=one_line(text)):
        make(**options)
