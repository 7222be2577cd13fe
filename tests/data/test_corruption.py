import dataclasses

import numpy as np
import pytest

from unroll.data import (
    Dataset,
    add_duplicates,
    apply_trigger,
    corrupted_ids,
    gaussian_blobs,
    mislabel,
    poison_trigger,
    random_images,
    swap_classes,
    with_duplicates,
)
from unroll.errors import InputError


@pytest.fixture(scope="module")
def blobs():
    return gaussian_blobs(num_train=3000, num_classes=3)[0]


@pytest.fixture(scope="module")
def pictures():
    return random_images(num_train=40, num_classes=4)[0]


def test_mislabel_reaches_every_wrong_class_equally(blobs):
    bad = mislabel(blobs, fraction=0.5)
    ids = corrupted_ids(bad)
    assert len(ids) == 1500
    np.testing.assert_array_equal(bad.true_labels, blobs.labels)
    shifts = np.bincount((bad.labels[ids] - blobs.labels[ids]) % 3, minlength=3)
    assert shifts[0] == 0 and abs(shifts[1] - shifts[2]) < 200
    assert bad.name == f"{blobs.name}+mislabel(1500)"
    assert blobs.true_labels is None  # the given data stay as they are


def test_mislabel_chosen_ids_again_keeps_the_first_truth(blobs):
    once = mislabel(blobs, ids=[5, 1])
    assert corrupted_ids(once).tolist() == [1, 5]
    twice = mislabel(once, ids=[1, 7], seed=3)
    assert corrupted_ids(twice).tolist() == [1, 5, 7]
    np.testing.assert_array_equal(twice.true_labels, blobs.labels)
    # A second corruption never restores a true label by accident.
    assert len(corrupted_ids(mislabel(once, ids=range(2999)))) == 2999


def test_mislabel_depends_on_the_seed(blobs):
    first, again, other = (mislabel(blobs, fraction=0.1, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_swap_classes(blobs):
    bad = swap_classes(blobs, 0, 2, fraction=0.3)
    ids = corrupted_ids(bad)
    assert len(ids) == 600
    assert (bad.labels[ids] + blobs.labels[ids] == 2).all()
    assert np.bincount(bad.labels).tolist() == [1000, 1000, 1000]


def test_add_duplicates_appends(blobs):
    small = dataclasses.replace(blobs.take(range(5)), groups=np.arange(5))
    more = add_duplicates(small, [3, 1], copies=2)
    assert len(more) == 9 and more.name.endswith("+copies(4)")
    assert more.fingerprint != small.fingerprint
    np.testing.assert_array_equal(more.inputs[:5], small.inputs)
    np.testing.assert_array_equal(more.groups, [0, 1, 2, 3, 4, 3, 1, 3, 1])
    assert with_duplicates(more, [1]).tolist() == [1, 6, 8]


def test_poison_trigger(pictures):
    ids = np.flatnonzero(pictures.labels == 3)
    bad = poison_trigger(pictures, ids, target=1, size=2)
    assert corrupted_ids(bad).tolist() == ids.tolist()
    assert (bad.labels[ids] == 1).all() and (bad.inputs[ids, -2:, -2:] == 255).all()
    changed = np.argwhere((bad.inputs != pictures.inputs).any(axis=-1))
    assert set(changed[:, 0]) <= set(ids) and changed[:, 1:].min() >= 6


def test_apply_trigger_to_float_images():
    stamped = apply_trigger(np.zeros([1, 4, 4, 1], np.float32), size=1)
    assert stamped[0, 3, 3, 0] == 1.0 and stamped.sum() == 1.0
    assert apply_trigger(np.zeros([1, 4, 4, 1]), size=1, value=0.5).sum() == 0.5


@pytest.mark.parametrize(
    ("corrupt", "texts"),
    [
        (lambda blobs, _: mislabel(blobs), ["either fraction or ids"]),
        (lambda blobs, _: mislabel(blobs, 0.1, [1]), ["either fraction or ids"]),
        (lambda blobs, _: mislabel(blobs, ids=[9999]), ["id 9999"]),
        (lambda blobs, _: swap_classes(blobs, 1, 1), ["must differ"]),
        (lambda blobs, _: swap_classes(blobs, 1, 5), ["class 5"]),
        (lambda blobs, _: add_duplicates(blobs, []), ["0 ids"]),
        (lambda blobs, _: add_duplicates(blobs, [0], copies=0), ["0 copies"]),
        (lambda blobs, _: poison_trigger(blobs, np.flatnonzero(blobs.labels), 0), ["images"]),
        (lambda _, images: poison_trigger(images, [], 0), ["no ids"]),
        (lambda _, images: poison_trigger(images, [0], 4), ["target 4"]),
        (
            lambda _, images: poison_trigger(images, [0], int(images.labels[0])),
            ["example 0", "other classes"],
        ),
        (lambda _, images: apply_trigger(images.inputs, size=9), ["9 pixels"]),
        (lambda _, images: apply_trigger(images.inputs, value=300), ["value 300"]),
    ],
)
def test_bad_requests_are_rejected(corrupt, texts, blobs, pictures, one_line):
    with pytest.raises(InputError, match=one_line(*texts)):
        corrupt(blobs, pictures)


def test_one_class_cannot_be_mislabelled(one_line):
    with pytest.raises(InputError, match=one_line("two classes")):
        mislabel(Dataset("d", np.eye(2), np.zeros(2, int), 1), ids=[0])
