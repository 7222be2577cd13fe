"""Costs of deletions: counted by hand, and theory against simulation."""

import numpy as np
import pytest

from unroll.deletion.costs import (
    adversarial_stream,
    expected_cost,
    expected_request,
    exponential_probabilities,
    simulate_cost,
    slice_epochs,
    uniform_stream,
    weighted_stream,
)
from unroll.deletion.sharding import Assignment, aware_assignment, random_assignment
from unroll.errors import InputError

EXAMPLES, SHARDS, EPOCHS = 96, 4, (3, 2, 4)
DRAWS = 300


@pytest.mark.parametrize("epochs", [5, 10, 20, 33])
@pytest.mark.parametrize("slices", [1, 2, 4, 8])
def test_stages_take_as_many_gradients_as_a_training_without_slices(epochs, slices):
    found = slice_epochs(epochs, slices)
    work = sum(each * stage for stage, each in enumerate(found, start=1)) / slices
    # Each stage is rounded by less than an epoch, the sum of all by half of one.
    assert len(found) == slices and abs(work - epochs) < 1
    if 2 * epochs % (slices + 1) == 0:
        assert found == (2 * epochs // (slices + 1),) * slices and work == epochs


def test_simulated_costs_by_hand():
    # Shard 0: slices {0, 1}, {2}; shard 1: slices {3}, {4, 5}.
    assignment = Assignment(np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 0, 1, 1]), 2, 2)
    # 2: stage 2 of shard 0 on {0, 1}; 0: both stages on {1}; 5: stage 2 of shard 1 on {3, 4}.
    assert simulate_cost(assignment, (3, 5), [2, 0, 5]).tolist() == [10, 8, 10]
    # Together: shard 0 on {1} in both stages, shard 1 in the last on {3, 4}.
    assert simulate_cost(assignment, (3, 5), [2, 0, 5], batch=3).tolist() == [18]
    # The whole of a shard: nothing is left to train.
    assert simulate_cost(assignment, (3, 5), [0, 1, 2], batch=3).tolist() == [0]


@pytest.mark.parametrize("batch", [1, 4, 12])
@pytest.mark.parametrize("kind", ["uniform", "exponential"])
def test_random_requests_cost_what_is_expected(batch, kind):
    requests = 48
    probabilities = np.ones(EXAMPLES) if kind == "uniform" else exponential_probabilities(EXAMPLES)
    means = []
    for seed in range(DRAWS):
        assignment = random_assignment(seed, EXAMPLES, SHARDS, len(EPOCHS))
        ids = weighted_stream(10_000 + seed, probabilities, requests)
        means.append(simulate_cost(assignment, EPOCHS, ids, batch=batch).sum() / requests)
    expected = expected_cost(EXAMPLES, SHARDS, EPOCHS, requests=requests, batch=batch)
    error = np.std(means, ddof=1) / np.sqrt(DRAWS)
    assert error < 0.02 * expected  # so the comparison can fail
    assert abs(np.mean(means) - expected) < 4 * error


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_an_adversary_costs_what_is_expected(batch):
    assignment = random_assignment(0, EXAMPLES, SHARDS, len(EPOCHS))
    # As many as the first slices hold.
    ids = adversarial_stream(assignment, EPOCHS, 32, batch=batch)
    assert (assignment.slice[ids] == 0).all()
    found = simulate_cost(assignment, EPOCHS, ids, batch=batch).sum() / 32
    expected = expected_cost(
        EXAMPLES, SHARDS, EPOCHS, stream="adversarial", requests=32, batch=batch
    )
    assert found == pytest.approx(expected, rel=1e-12)
    random = expected_cost(EXAMPLES, SHARDS, EPOCHS, requests=32, batch=batch)
    assert found > random


def test_the_formulas_of_the_paper_are_special_cases():
    examples, epochs = 10**6, 12
    for shards in (1, 5):
        for slices in (1, 2, 3, 5, 7):
            each = slice_epochs(epochs, slices)
            if len(set(each)) > 1:
                continue
            paper = (2 / 3 + 1 / (3 * slices)) * epochs * examples / shards
            assert expected_cost(examples, shards, each) == pytest.approx(paper, rel=1e-4)
    shards, batch = 10, 7
    # Over K single requests with S shards and one slice.
    paper = ((examples / shards + 1 / (2 * shards) - 1) * batch - batch**2 / (2 * shards)) / batch
    assert expected_cost(examples, shards, (1,), requests=batch) == pytest.approx(paper, rel=1e-6)
    paper = (examples * (1 - (1 - 1 / shards) ** batch) - batch) / batch
    found = expected_cost(examples, shards, (1,), requests=batch, batch=batch)
    assert found == pytest.approx(paper, rel=1e-4)


def test_first_requests_to_any_assignment():
    assignment = random_assignment(0, EXAMPLES, SHARDS, len(EPOCHS))
    costs = [simulate_cost(assignment, EPOCHS, [n])[0] for n in range(EXAMPLES)]
    assert expected_request(assignment, EPOCHS) == pytest.approx(np.mean(costs), rel=1e-12)
    assert expected_request(assignment, EPOCHS) == pytest.approx(
        expected_cost(EXAMPLES, SHARDS, EPOCHS), rel=1e-9
    )
    probabilities = exponential_probabilities(EXAMPLES)
    assert expected_request(assignment, EPOCHS, probabilities) == pytest.approx(
        probabilities @ costs, rel=1e-12
    )


def test_knowing_who_will_ask_makes_requests_cheaper():
    probabilities = exponential_probabilities(4000)
    single, batched = {}, {}
    for balance in ("requests", "cost", "size"):
        aware = aware_assignment(0, probabilities, 8, balance=balance)
        single[balance] = expected_request(aware, (10,), probabilities)
        ids = weighted_stream(0, probabilities, 16)
        batched[balance] = simulate_cost(aware, (10,), ids, batch=16)[0]
    blind = expected_request(random_assignment(0, 4000, 8), (10,), probabilities)
    assert single["requests"] == pytest.approx(blind, rel=0.01)
    assert single["size"] == pytest.approx(blind, rel=0.01)
    # (the integral of sqrt(p))^2 for p = 5 exp(-5 x) / (1 - exp(-5)): 0.679; 8 steps come close.
    assert single["cost"] == pytest.approx(0.679 * blind, rel=0.02)
    assert batched["size"] < batched["requests"]
    # The likely are in the last slices too: quarters with 0.0169, 0.0590, 0.2058 and 0.7183 of
    # the requests, whose stages take 10, 9, 7 and 4 passes of 4 epochs over a quarter each.
    sliced = aware_assignment(0, probabilities, 1, 4)
    known = expected_request(sliced, slice_epochs(10, 4), probabilities)
    assert known == pytest.approx(5.014 * 4000, rel=0.01)  # by chance 7.5


def test_streams():
    ids = uniform_stream(0, 30, 30)
    assert sorted(ids.tolist()) == list(range(30)) and ids.tolist() != list(range(30))
    probabilities = exponential_probabilities(1000, rate=5.0)
    first = [weighted_stream(seed, probabilities, 1)[0] for seed in range(200)]
    # Half of them among the first 1000 / 5 * log(2 / (1 + exp(-5))); 200 fair coins: 7 each way.
    assert 70 < np.sum(np.array(first) < 137) < 130
    assert set(weighted_stream(0, np.array([0.0, 1, 1]), 2).tolist()) == {1, 2}


def test_a_later_adversary_moves_on_to_later_slices():
    assignment = random_assignment(0, 24, 2, 3)
    ids = adversarial_stream(assignment, (1, 1, 1), 24)
    assert sorted(ids.tolist()) == list(range(24))
    assert simulate_cost(assignment, (1, 1, 1), ids)[-1] == 0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: slice_epochs(1, 4), "at least 3"),
        (lambda: expected_cost(96, 4, (1,), requests=96), "would leave nothing"),
        (lambda: expected_cost(96, 4, (1,), requests=5, batch=2), "not full"),
        (lambda: expected_cost(96, 4, (1,), stream="worst"), "random or adversarial"),
        (
            lambda: expected_cost(96, 4, EPOCHS, stream="adversarial", requests=33),
            "first slices hold",
        ),
        (lambda: weighted_stream(0, np.array([0.0, 1]), 2), "only 1 examples"),
        (lambda: adversarial_stream(random_assignment(0, 4, 2), (1,), 5), "5 requests of 4"),
        (lambda: simulate_cost(random_assignment(0, 4, 2), (1,), [1, 1]), "occurs twice"),
        (lambda: simulate_cost(random_assignment(0, 4, 2), (1, 2), [1]), "2 numbers of epochs"),
        (lambda: expected_request(random_assignment(0, 4, 2), (1,), np.ones(3)), "one per example"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
