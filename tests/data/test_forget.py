import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unroll.data import (
    Dataset,
    check_forget_ids,
    check_partition,
    class_ids,
    corrupted_ids,
    explicit_ids,
    gaussian_blobs,
    group_ids,
    mislabel,
    random_ids,
    retain_ids,
    select,
    with_duplicates,
)
from unroll.errors import InputError


@pytest.fixture(scope="module")
def data():
    """Six rows; 0, 3 and 5 are copies; class 2 has no example."""
    inputs = np.array([[1], [2], [3], [1], [4], [1]])
    labels = np.array([0, 0, 1, 0, 1, 1])
    return Dataset("six", inputs, labels, 3, groups=np.array([7, 7, 8, 9, 9, 9]))


sizes_and_ids = st.integers(2, 60).flatmap(
    lambda size: st.tuples(
        st.just(size), st.sets(st.integers(0, size - 1), min_size=1, max_size=size - 1)
    )
)


@given(sizes_and_ids)
def test_forget_and_retain_partition_the_examples(size_and_ids):
    size, ids = size_and_ids
    forget = check_forget_ids(list(ids), size)
    retain = retain_ids(forget, size)
    assert forget.dtype == np.int64 and forget.tolist() == sorted(ids)
    assert sorted([*forget, *retain]) == list(range(size))
    check_partition(forget, retain, size)


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([5], "id 5 is out of range; use ids from 0 to 4"),
        ([-1], "id -1"),
        ([1, 3, 3], "id 3 occurs twice"),
        ([], "there are none"),
        ([0, 1, 2, 3, 4], "all 5"),
        (np.array([True] * 5), "mask"),
        ("12", "integer ids"),
        (3, "integer ids"),
    ],
)
def test_check_forget_ids_rejects(ids, text, one_line):
    with pytest.raises(InputError, match=one_line(text)):
        check_forget_ids(ids, 5)


def test_nothing_to_forget_can_be_allowed():
    assert check_forget_ids([], 5, allow_empty=True).tolist() == []
    assert retain_ids([], 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("forget", "retain", "text"),
    [
        ([0, 1], [1, 2], "id 1 is listed more than once"),
        ([0], [2], "id 1 is neither"),
        ([0], [1, 2, 3], "id 3 is out of range"),
    ],
)
def test_check_partition_rejects(forget, retain, text, one_line):
    with pytest.raises(InputError, match=one_line(text)):
        check_partition(forget, retain, 3)


def test_random_ids():
    train, _ = gaussian_blobs(num_train=90, num_classes=3)
    ids = random_ids(train, fraction=0.1)
    assert len(ids) == 9 and (np.diff(ids) > 0).all()
    np.testing.assert_array_equal(ids, random_ids(train, size=9))
    assert not np.array_equal(ids, random_ids(train, size=9, seed=1))
    some = random_ids(train, size=20, classes=[2, 0])
    assert set(train.labels[some].tolist()) == {0, 2}
    assert len(random_ids(train, size=60, classes=[0, 0, 2])) == 60


def test_class_group_and_corrupted_ids(data):
    assert class_ids(data, 1).tolist() == [2, 4, 5]
    part = class_ids(data, 1, fraction=0.34)
    assert len(part) == 1 and part[0] in (2, 4, 5)
    assert group_ids(data, 9).tolist() == [3, 4, 5]
    assert explicit_ids(data, [4, 0]).tolist() == [0, 4]
    assert corrupted_ids(mislabel(data, ids=[1, 4])).tolist() == [1, 4]


def test_with_duplicates_adds_every_copy(data):
    assert with_duplicates(data, [3, 4]).tolist() == [0, 3, 4, 5]
    assert with_duplicates(data, [2]).tolist() == [2]


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("class", {"label": 1}, [2, 4, 5]),
        ("class", {"label": 1, "duplicates": True}, [0, 2, 3, 4, 5]),
        ("group", {"group": 7}, [0, 1]),
        ("ids", {"ids": (4, 2)}, [2, 4]),
    ],
)
def test_select(data, kind, options, expected):
    assert select(data, kind, **options).tolist() == expected


@pytest.mark.parametrize(
    ("kind", "options", "texts"),
    [
        ("all", {}, ["'all'", "random, class, group, ids, corrupted"]),
        ("random", {}, ["either size or fraction"]),
        ("random", {"size": 1, "fraction": 0.5}, ["either size or fraction"]),
        ("random", {"size": 6}, ["all 6"]),
        ("random", {"size": 7}, ["1 to 6"]),
        ("random", {"size": 1.5}, ["integer"]),
        ("random", {"fraction": 0.01}, ["rounds to none"]),
        ("random", {"fraction": 1.5}, ["(0, 1]"]),
        ("random", {"size": 1, "classes": [2]}, ["class 2", "no example"]),
        ("random", {"count": 3}, ["'count'", "size, fraction, seed, classes"]),
        ("class", {}, ["'label' is required"]),
        ("class", {"label": 3}, ["class 3", "0 to 2"]),
        ("class", {"label": 2}, ["no example"]),
        ("group", {"group": 1}, ["group 1", "7 to 9"]),
        ("corrupted", {}, ["true_labels"]),
        ("ids", {"ids": [9]}, ["id 9"]),
    ],
)
def test_select_rejects(data, kind, options, texts, one_line):
    with pytest.raises(InputError, match=one_line(*texts)):
        select(data, kind, **options)


def test_group_ids_need_groups(one_line):
    train, _ = gaussian_blobs()
    with pytest.raises(InputError, match=one_line("groups=")):
        group_ids(train, 0)


def test_corrupted_ids_need_a_changed_label(one_line):
    clean = Dataset("d", np.eye(2), np.array([0, 1]), 2, true_labels=np.array([0, 1]))
    with pytest.raises(InputError, match=one_line("there are none")):
        corrupted_ids(clean)
