import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unroll.data import (
    first_use,
    gaussian_blobs,
    make_schedule,
    random_ids,
    steps_per_epoch,
    uses,
    validate_schedule,
)
from unroll.errors import InputError

id_sets = st.sets(st.integers(0, 1000), min_size=1, max_size=40)
seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds, ids=id_sets, batch_size=st.integers(1, 50), epochs=st.integers(1, 4))
def test_padded_epochs_use_each_id_exactly_once(seed, ids, batch_size, epochs):
    schedule = make_schedule(seed, sorted(ids), batch_size, epochs)
    steps = steps_per_epoch(len(ids), batch_size)
    assert schedule.dtype == np.int32 and schedule.shape == (epochs * steps, batch_size)
    for epoch in schedule.reshape(epochs, -1):
        filled = epoch[epoch >= 0]
        assert sorted(filled) == sorted(ids)
        # Empty slots come last, so only the last batch of an epoch is partial.
        np.testing.assert_array_equal(epoch[: len(ids)], filled)
        assert (epoch[len(ids) :] == -1).all()
    validate_schedule(schedule, 1001)


@given(data=st.data(), seed=seeds, ids=id_sets, epochs=st.integers(1, 4))
def test_dropping_leaves_full_batches_without_repeats(data, seed, ids, epochs):
    batch_size = data.draw(st.integers(1, len(ids)))
    schedule = make_schedule(seed, ids, batch_size, epochs, partial="drop")
    assert len(schedule) == epochs * (len(ids) // batch_size)
    for epoch in schedule.reshape(epochs, -1):
        assert len(set(epoch.tolist())) == len(epoch)
        assert set(epoch.tolist()) <= ids


@given(seed=seeds, ids=id_sets, batch_size=st.integers(1, 10), epochs=st.integers(1, 3))
def test_more_epochs_only_append(seed, ids, batch_size, epochs):
    short = make_schedule(seed, ids, batch_size, epochs)
    long = make_schedule(seed, ids, batch_size, epochs + 2)
    np.testing.assert_array_equal(long[: len(short)], short)


def test_order_differs_by_epoch_and_seed_but_not_by_how_ids_are_listed():
    schedule = make_schedule(0, 100, 100, 3)
    assert len({tuple(row) for row in schedule}) == 3
    assert not np.array_equal(schedule, make_schedule(1, 100, 100, 3))
    np.testing.assert_array_equal(schedule, make_schedule(0, np.arange(100)[::-1], 100, 3))


def test_schedule_is_pinned():
    # A schedule is part of the identity of a run: another order would orphan stored runs.
    assert make_schedule(7, 5, 2, 2).tolist() == [[2, 0], [4, 1], [3, -1], [3, 0], [2, 1], [4, -1]]


def test_same_seed_does_not_put_the_forget_set_into_the_first_batches():
    train, _ = gaussian_blobs(num_train=200)
    forget = random_ids(train, size=20, seed=0)
    first = make_schedule(0, 200, 20, 1)[0]
    assert len(np.intersect1d(forget, first)) < 10


@pytest.mark.parametrize(
    ("arguments", "partial", "text"),
    [
        ((0, 10, 0, 1), "pad", "batch_size"),
        ((0, 10, 2, 0), "pad", "epochs"),
        ((0, 10, 11, 1), "drop", "drop"),
        ((0, 0, 2, 1), "pad", "no examples"),
        ((0, [], 2, 1), "pad", "no examples"),
        ((0, [1, 2, 1], 2, 1), "pad", "id 1 occurs twice"),
        ((0, [1, -2], 2, 1), "pad", "id -2"),
        ((0, [2**31], 2, 1), "pad", "int32"),
        ((0, 10, 2, 1), "keep", "'pad' or 'drop'"),
        ((-1, 10, 2, 1), "pad", "seed"),
        ((2**32, 10, 2, 1), "pad", "seed"),
        ((0.5, 10, 2, 1), "pad", "seed"),
    ],
)
def test_bad_arguments_are_rejected(arguments, partial, text, one_line):
    with pytest.raises(InputError, match=one_line(text)):
        make_schedule(*arguments, partial=partial)


def test_uses_and_first_use():
    schedule = np.array([[0, 1], [2, 3], [1, 4], [2, -1]])
    assert uses(schedule, [3, 4]).tolist() == [False, True, True, False]
    assert first_use(schedule, [4, 3]) == 1
    assert first_use(schedule, [0]) == 0
    assert first_use(schedule, [9]) is None
    assert first_use(schedule, []) is None


def test_an_empty_slot_is_no_example(one_line):
    with pytest.raises(InputError, match=one_line("id -1")):
        uses(np.array([[0, -1]]), [-1])


@given(seed=seeds, ids=st.sets(st.integers(0, 29), min_size=1))
def test_first_use_is_the_first_step_with_an_id(seed, ids):
    schedule = make_schedule(seed, 30, 4, 1)
    step = first_use(schedule, sorted(ids))
    assert not set(schedule[:step].ravel().tolist()) & ids
    assert set(schedule[step].tolist()) & ids


@pytest.mark.parametrize(
    ("schedule", "texts"),
    [
        (np.zeros(3, int), ["(3,)"]),
        (np.zeros([0, 2], int), ["(0, 2)"]),
        (np.zeros([2, 2]), ["float64"]),
        (np.array([[0, 1], [2, 5]]), ["step 1", "id 5", "0 to 4"]),
        (np.array([[0, -2]]), ["step 0", "id -2"]),
        (np.array([[0, 1], [-1, -1]]), ["step 1", "empty"]),
    ],
)
def test_validate_schedule_rejects(schedule, texts, one_line):
    with pytest.raises(InputError, match=one_line(*texts)):
        validate_schedule(schedule, 5)


def test_validate_schedule_converts():
    checked = validate_schedule([[0, 4], [2, -1]], 5)
    assert checked.dtype == np.int32 and checked.tolist() == [[0, 4], [2, -1]]
