"""Leaks with known answers, and what a plan's work tells with and without constant work."""

import math

import numpy as np
import pytest

import unroll
from unroll.deletion import side_channels
from unroll.deletion.sharding import random_assignment
from unroll.deletion.side_channels import (
    _jackknife,
    _table,
    estimated_leak,
    exact_leak,
    possible_requests,
    wilson,
)
from unroll.deletion.sisa import SisaPlan
from unroll.errors import InputError


def test_a_quantity_that_is_the_secret_tells_all_and_a_constant_nothing():
    secret = np.repeat(np.arange(4), 5)
    all_of_it = exact_leak(10.0 - secret, secret)
    assert all_of_it.accuracy == (1.0, 1.0, 1.0) and all_of_it.bits.value == pytest.approx(2)
    assert all_of_it.entropy == pytest.approx(2) and all_of_it.chance == 0.25
    assert all_of_it.auc is None
    nothing = exact_leak(np.ones(20), secret)
    assert nothing.accuracy.value == nothing.chance and nothing.bits.value == 0.0


def test_an_exact_leak_by_hand():
    """Joint shares 3/8, 1/8 and 1/8, 3/8: a binary channel with an error of 1/4."""
    observed = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    secret = np.array([0, 0, 0, 0, 1, 1, 1, 1], bool)
    found = exact_leak(observed, secret)
    error = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert found.bits.value == pytest.approx(1 - error, rel=1e-12)
    assert found.accuracy.value == 0.75
    # 9 pairs in order, 3 + 3 ties at a half, 1 the other way: of 16.
    assert found.auc.value == pytest.approx((9 + 6 / 2) / 16)


def test_wilson():
    # Wilson (1927), by its closed form: centre (p + z^2/2n) / (1 + z^2/n).
    z, share, count = 1.959963984540054, 0.2, 50
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * 0.8 / count + z**2 / (4 * count**2))
    assert wilson(10, 50) == pytest.approx((0.2, centre - half, centre + half), rel=1e-9)


def test_the_jackknife_by_leaving_out_each_request():
    random = np.random.default_rng(0)
    observed, secret = random.integers(0, 3, 30), random.integers(0, 2, 30)

    def plug_in(keep):
        return exact_leak(observed[keep], secret[keep]).bits.value

    every = np.ones(30, bool)
    left = []
    for index in range(30):
        every[index] = False
        left.append(plug_in(every))
        every[index] = True
    value = 30 * plug_in(every) - 29 * np.mean(left)
    error = math.sqrt(29 * np.var(left))
    assert _jackknife(_table(observed, secret)) == pytest.approx((value, error), rel=1e-9)


def test_estimates_are_near_the_truth_and_their_bias_is_taken_off(monkeypatch):
    """A secret bit, and the bit plus noise in [-1, 1] (half a bit), or noise alone (none)."""
    monkeypatch.setattr(side_channels, "_SHUFFLES", 50)
    telling, silent, plug_in = [], [], []
    for seed in range(20):
        random = np.random.default_rng(seed)
        secret = random.permutation(np.repeat([False, True], 60))
        noise = random.uniform(-1, 1, 120)
        telling.append(estimated_leak(secret + noise, secret, seed=seed))
        silent.append(estimated_leak(noise, secret, seed=seed))
        plug_in.append(
            exact_leak(np.digitize(noise, np.quantile(noise, [0.2, 0.4, 0.6, 0.8])), secret)
        )
    # True values: I = 1/2 bit, accuracy 3/4, AUC 7/8. Standard errors of the means of 20: about
    # 0.06 / sqrt(20) and 0.04 / sqrt(20); six bins lose some of the half bit.
    assert 0.40 < np.mean([leak.bits.value for leak in telling]) < 0.52
    assert np.mean([leak.accuracy.value for leak in telling]) == pytest.approx(0.72, abs=0.05)
    assert np.mean([leak.auc.value for leak in telling]) == pytest.approx(7 / 8, abs=0.03)
    covered = [leak.auc.low <= 7 / 8 <= leak.auc.high for leak in telling]
    assert np.mean(covered) >= 0.8
    assert np.mean([leak.bits.value for leak in silent]) == pytest.approx(0, abs=0.015)
    # Five bins and two secrets: an upward bias of 4 / (2 * 120 ln 2) = 0.024 without correction.
    assert np.mean([leak.bits.value for leak in plug_in]) > 0.015
    assert np.mean([leak.bits.value <= leak.bits_of_nothing for leak in silent]) >= 0.8
    assert np.mean([leak.bits.value > leak.bits_of_nothing for leak in telling]) == 1.0


def test_a_plan_tells_the_slice_and_constant_work_does_not(blobs):
    spec = unroll.TrainSpec(unroll.models.build("mlp", num_classes=3, hidden=(4,)))
    data = blobs[0].take(range(48))
    plan = SisaPlan(spec, data, random_assignment(0, 48, 2, 4), (1, 1, 1, 1), 4)
    plain = [plan.work([index]) for index in range(48)]
    constant = [plan.work([index], constant_work=True) for index in range(48)]
    for quantity in range(3):
        # Shards of equal slices: gradients, steps and states of each slice are its own.
        found = exact_leak([work[quantity] for work in plain], plan.assignment.slice)
        assert found.accuracy.value == 1.0 and found.bits.value == pytest.approx(2)
        hidden = exact_leak([work[quantity] for work in constant], plan.assignment.slice)
        assert hidden.accuracy.value == hidden.chance and hidden.bits.value == 0.0


def test_requests_of_a_size_are_all_counted():
    assignment = random_assignment(3, 11, 2, 2)
    requests, weights = possible_requests(assignment, 2)
    # 4 cells: 4 pairs within one and 6 across; in all 11 over 2.
    assert len(requests) == 10 and weights.sum() == math.comb(11, 2)
    assert all(len(np.unique(ids)) == 2 for ids in requests)
    same = [len(np.unique(assignment.shard[ids])) == 1 for ids in requests]
    counts = assignment.counts().sum(axis=1)
    assert weights[same].sum() == sum(math.comb(int(count), 2) for count in counts)
    single, weights = possible_requests(assignment, 1)
    assert len(single) == 4 and weights.tolist() == assignment.counts().ravel().tolist()


def test_weights_stand_for_repetitions():
    observed, secret = np.array([1, 1, 2, 3]), np.array([0, 1, 1, 0])
    weights = np.array([3, 1, 2, 4])
    repeated = exact_leak(np.repeat(observed, weights), np.repeat(secret, weights))
    found = exact_leak(observed, secret, weights)
    for name in ("accuracy", "bits", "auc"):
        assert getattr(found, name) == pytest.approx(getattr(repeated, name), rel=1e-12)
    assert found.chance == repeated.chance == 0.7


def test_mistakes_are_one_line():
    secret = np.array([0, 1] * 6)
    for call, message in (
        (lambda: exact_leak(np.ones(3), np.ones(4)), "give both for each request"),
        (lambda: exact_leak([], []), "give both"),
        (lambda: estimated_leak(np.full(12, np.nan), secret), "not finite"),
        (lambda: estimated_leak(np.ones(12), np.zeros(12)), "two secrets or more"),
        (lambda: estimated_leak(np.ones(12), secret, folds=7), "7 folds need"),
        (lambda: estimated_leak(np.ones(12), secret, bins=1), "bins must be"),
    ):
        with pytest.raises(InputError, match=message):
            call()
