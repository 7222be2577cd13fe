"""Rows of measurements and simulations of SISA systems."""

import numpy as np
import pytest

from unroll.deletion import tradeoff
from unroll.deletion.sharding import random_assignment
from unroll.deletion.sisa import SisaPlan
from unroll.deletion.tradeoff import measure_cost, measure_sisa
from unroll.errors import InputError


@pytest.fixture(scope="module")
def plan(blobs, mlp_spec):
    data = blobs[0].take(range(40))
    return SisaPlan(mlp_spec, data, random_assignment(0, 40, 2, 1), (2,), 8)


def test_a_measurement_deletes_and_compares_bits(plan, blobs):
    rows = measure_sisa(plan, np.array([3, 9, 11]), blobs[1], ("vote", "mean_logits"), epochs=2)
    assert [row["aggregation"] for row in rows] == ["vote", "mean_logits"]
    for row in rows:
        assert row["exact"] and row["after"] == row["scratch"]
        assert row["before"].keys() == {"forget", "retain", "test"}
        assert row["training_gradients"] == 80 and row["single_gradients"] == 2 * 39
        assert row["request_gradients"] == 2 * 19
    with pytest.raises(InputError, match="two examples to forget"):
        measure_sisa(plan, np.array([3]), blobs[1], ("vote",), epochs=2)


def test_a_difference_would_show(plan, blobs, monkeypatch):
    original = tradeoff.train_sisa

    def forgetful(plan, *, removed=(), **settings):
        # As if the deleted examples were still there.
        return original(plan, removed=() if len(removed) else removed, **settings)

    monkeypatch.setattr(tradeoff, "train_sisa", forgetful)
    (row,) = measure_sisa(plan, np.array([3, 9]), blobs[1], ("vote",), epochs=2)
    assert not row["exact"]


def test_simulated_costs_are_shares_of_a_retraining():
    settings = dict(single_epochs=3, requests=8, batch=4)
    row = measure_cost(48, 1, (3,), **settings)
    # One shard of one slice is the single model.
    assert row.simulated == row.expected == pytest.approx(row.single)
    assert row.single == 3 * (44 + 40) / 8 and row.standard_error == 0
    aware = measure_cost(48, 4, (3,), stream="exponential", assignment="aware_size", **settings)
    assert aware.expected is None and aware.simulated < row.simulated
    with pytest.raises(InputError, match="unknown stream 'normal'"):
        measure_cost(48, 4, (3,), stream="normal", **settings)
