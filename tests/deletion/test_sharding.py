"""Assignments: complete, balanced, deterministic, and likely deletions together and last."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unroll.deletion.sharding import Assignment, aware_assignment, random_assignment
from unroll.errors import InputError

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 9))


@given(sizes=SIZES, seed=st.integers(0, 9))
@settings(max_examples=10, deadline=None)
def test_every_example_has_one_place_and_slices_are_balanced(sizes, seed):
    shards, slices, more = sizes
    examples = shards * slices + more
    assignment = random_assignment(seed, examples, shards, slices)
    counts = assignment.counts()
    assert counts.sum() == len(assignment) == examples
    # Dealt like cards, neither two slices nor two shards can differ by more than one.
    assert np.ptp(counts) <= 1 and np.ptp(counts.sum(axis=1)) <= 1
    kept = np.ones(examples, bool)
    everything = [assignment.members(shard, slices - 1, kept) for shard in range(shards)]
    assert sorted(np.concatenate(everything).tolist()) == list(range(examples))
    for ids in everything:
        np.testing.assert_array_equal(assignment.place[ids], np.arange(len(ids)))
    assert assignment.capacity == max(map(len, everything))


def test_classes_are_balanced_when_asked():
    labels = np.array([0] * 50 + [1] * 23 + [2] * 7)
    balanced = random_assignment(0, 80, 4, 3, labels=labels)
    for label in range(3):
        own = balanced.counts(labels == label)
        assert np.ptp(own) <= 1 and np.ptp(own.sum(axis=1)) <= 1
    free = random_assignment(0, 80, 4, 3)
    assert np.ptp(free.counts(labels == 0)) > 1  # chance alone does not do it


def test_the_seed_and_nothing_else_makes_an_assignment():
    first, again = random_assignment(3, 40, 4, 2), random_assignment(3, 40, 4, 2)
    assert first.hash == again.hash != random_assignment(4, 40, 4, 2).hash
    with pytest.raises(ValueError):
        first.shard[0] = 1


def test_members_are_those_of_the_slices_so_far_that_are_kept():
    assignment = Assignment(np.array([0, 0, 1, 0, 0]), np.array([1, 0, 0, 1, 0]), 2, 2)
    kept = np.array([True, True, True, False, True])
    assert assignment.members(0, 0, kept).tolist() == [1, 4]
    assert assignment.members(0, 1, kept).tolist() == [0, 1, 4]
    assert assignment.counts(kept).tolist() == [[2, 1], [1, 0]]


@pytest.mark.parametrize("balance", ["requests", "cost", "size"])
def test_likely_deletions_are_together_and_last(balance):
    probabilities = np.random.default_rng(0).permutation(np.linspace(0.01, 1, 60) ** 4)
    assignment = aware_assignment(0, probabilities, 3, 2, balance=balance)
    assert (assignment.counts() > 0).all() and assignment.counts().sum() == 60
    for low in range(2):
        highest = probabilities[assignment.shard == low].max()
        assert highest <= probabilities[assignment.shard == low + 1].min()
    for shard in range(3):
        own = assignment.shard == shard
        first = probabilities[own & (assignment.slice == 0)]
        assert first.max() <= probabilities[own & (assignment.slice == 1)].min()
    expected = np.bincount(assignment.shard, weights=probabilities)
    sizes = np.bincount(assignment.shard)
    if balance == "size":
        assert sizes.tolist() == [20, 20, 20] and expected[2] > 10 * expected[0]
    elif balance == "cost":
        assert expected[0] < expected[1] < expected[2] and sizes[0] > sizes[1] > sizes[2]
    else:
        # A cut lies between two examples, so a sum misses its share by at most one of them.
        assert np.ptp(expected) <= 2 * probabilities.max() and sizes[0] > 3 * sizes[2]


def test_equal_probabilities_say_nothing():
    assignment = aware_assignment(0, np.ones(24), 4, 3)
    assert (assignment.counts() == 2).all()


def test_one_certain_deletion_leaves_no_shard_without_examples():
    assignment = aware_assignment(0, np.eye(12)[5], 4, 2)
    assert (assignment.counts() > 0).all()
    assert assignment.shard[5] == 3 and assignment.slice[5] == 1


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: random_assignment(0, 5, 3, 2), "more than the 5 examples"),
        (lambda: random_assignment(0, 5, 0), "shards must be a whole number"),
        (lambda: random_assignment(0, 5, 2, labels=np.zeros(4)), "one for each of 5"),
        (lambda: aware_assignment(0, -np.ones(5), 2), "none of them negative"),
        (lambda: aware_assignment(0, np.zeros(5), 2), "not all 0"),
        (lambda: aware_assignment(0, np.ones(5), 2, balance="worst"), "requests, cost or size"),
        (lambda: Assignment(np.array([0, 2]), np.array([0, 0]), 2, 1), "from 0 to 1"),
        (lambda: Assignment(np.array([0, 1]), np.array([0]), 2, 1), "one of each per example"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
