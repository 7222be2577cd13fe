"""Parts of a forget set and groups of a training set: disjoint, complete, by rank alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unroll
from unroll.memorization.refinement import (
    forget_sets,
    groups,
    partition,
    random_scores,
    scores_hash,
)


def same(first, second):
    return len(first) == len(second) and all(map(np.array_equal, first, second))


SCORES = np.array([0.9, 0.1, 0.5, 0.8, 0.2, 0.45, 0.0, 1.0, 0.55])


def test_known_parts():
    low, medium, high = partition(SCORES, [0, 1, 2, 3, 4, 5])
    assert (low.tolist(), medium.tolist(), high.tolist()) == ([1, 4], [2, 5], [0, 3])
    assert [part.tolist() for part in partition(SCORES, [7, 6, 0], sizes=(1, 2))] == [[6], [0, 7]]


def test_known_groups():
    low, medium, high = groups(SCORES, 2)
    assert (low.tolist(), high.tolist()) == ([1, 6], [0, 7])
    assert set(medium) <= {2, 5, 8} and 2 in medium


def test_the_rules_for_the_middle_differ():
    scores = np.array([0.0, 0.01, 0.02, 0.03, 0.04, 0.5, 0.55, 2.0, 3.0])
    medium = {
        rule: groups(scores, 1, mid_rule=rule)[1].item() for rule in ("half", "median", "midrange")
    }
    # Of all scores the middle rank is 0.04, and half way between 0 and 3 the nearest is 2.0.
    assert medium == {"half": 5, "median": 4, "midrange": 7}


def test_a_middle_by_rank_does_not_know_the_scale():
    scores = np.random.default_rng(0).normal(size=40)
    assert same(
        groups(scores, 7, mid_rule="median"), groups(np.exp(3 * scores), 7, mid_rule="median")
    )
    assert not same(groups(scores, 7), groups(np.exp(3 * scores), 7))


def test_forget_sets_are_halves_of_the_same_groups():
    scores = np.random.default_rng(1).uniform(size=60)
    forget, development = forget_sets(scores, 5)
    assert not np.intersect1d(forget, development).size
    for group in groups(scores, 10):
        assert len(np.intersect1d(group, forget)) == len(np.intersect1d(group, development)) == 5
    assert same((forget, development), forget_sets(scores, 5))
    # Random halves: the best of a group are not all in one of them.
    high = groups(scores, 10)[2]
    best = high[np.argsort(scores[high])[5:]]
    assert 0 < len(np.intersect1d(best, forget)) < 5


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 5),
    size=st.integers(5, 23),
    seed=st.integers(0, 99),
    levels=st.sampled_from([1, 2, 5, 1000]),
)
def test_parts_are_disjoint_complete_ordered_and_know_no_order_of_the_input(
    count, size, seed, levels
):
    draw = np.random.default_rng(seed)
    scores = draw.integers(0, levels, size=40).astype(float)
    ids = draw.permutation(40)[:size]
    parts = partition(scores, ids, count, tie_seed=seed)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.sort(ids))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1 and len(sizes) == count
    for one, other in zip(parts[:-1], parts[1:], strict=True):
        assert scores[one].max() <= scores[other].min()
    assert same(parts, partition(scores, draw.permutation(ids), count, tie_seed=seed))
    assert same(parts, partition(np.exp(scores / levels), ids, count, tie_seed=seed))


@pytest.mark.parametrize("size", [9, 10, 11])
def test_a_change_of_sign_swaps_low_and_high(size):
    draw = np.random.default_rng(size)
    scores, ids = draw.normal(size=30), draw.permutation(30)[:size]
    assert same(partition(-scores, ids), partition(scores, ids)[::-1])
    assert same(
        groups(-scores, 5, mid_rule="midrange"), groups(scores, 5, mid_rule="midrange")[::-1]
    )


def test_equal_scores_are_cut_by_the_seed_and_not_by_the_ids():
    scores, ids = np.zeros(60), np.arange(30)
    parts = partition(scores, ids, tie_seed=1)
    assert same(parts, partition(scores, ids[::-1], tie_seed=1))
    assert not same(parts, partition(scores, ids, tie_seed=2))
    # One example less moves the others by no more than their place in the row.
    fewer = partition(scores, ids[1:], tie_seed=1)
    assert len(np.intersect1d(fewer[0], parts[0])) >= len(parts[0]) - 2
    assert not np.array_equal(parts[0], np.arange(10))


def test_random_scores_are_all_different_and_hashes_tell_scores_apart():
    scores = random_scores(50, seed=3)
    assert len(np.unique(scores)) == 50
    assert np.array_equal(scores, random_scores(50, seed=3))
    assert scores_hash(scores) == scores_hash(scores.copy()) != scores_hash(random_scores(50, 4))
    assert len(scores_hash(scores)) == 12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: partition(SCORES, [0, 1], 3), "2 examples cannot be cut into 3 parts"),
        (lambda: partition(SCORES, [0, 1, 2], sizes=(1, 1)), "sum to 3"),
        (lambda: partition(SCORES, [0, 1, 2], sizes=(3, 0)), "above 0"),
        (lambda: partition(SCORES, [0, 0, 2]), "twice"),
        (lambda: partition(SCORES, [0, 99, 2]), "id 99"),
        (lambda: partition(np.where(SCORES > 0.8, np.nan, SCORES), [0, 1, 2]), "example 0 is not"),
        (lambda: partition(SCORES[None], [0, 1, 2]), "one number per training example"),
        (lambda: groups(SCORES, 4), "need 12 examples; there are 9"),
        (lambda: groups(SCORES, 1, mid_rule="mean"), "unknown mid_rule 'mean'"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(unroll.InputError, match=message):
        call()
