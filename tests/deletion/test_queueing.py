"""A single-server queue against answers by hand and the formula of Pollaczek and Khinchine."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unroll.deletion.queueing import queue
from unroll.errors import InputError


def alone(count):
    return [[number] for number in range(count)]


def test_regular_arrivals_and_constant_service():
    arrivals = np.arange(10.0)
    # As fast as they come: nobody waits for another, the server never rests.
    found = queue(arrivals, alone(10), np.full(10, 1.0))
    assert found.waits.tolist() == [1.0] * 10 and found.longest == 1 and found.busy == 1.0
    # Half of the time: nine gaps of 0.5 in 9.5 seconds.
    found = queue(arrivals, alone(10), np.full(10, 0.5))
    assert found.waits.tolist() == [0.5] * 10 and found.longest == 1
    assert found.busy == pytest.approx(5 / 9.5)
    # Too slow by 1 second for each: request n has n seconds of work of others before it.
    found = queue(arrivals, alone(10), np.full(10, 2.0))
    assert found.waits.tolist() == [2.0 + n for n in range(10)] and found.busy == 1.0
    # The last comes at 9, when four of the others have gone (at 2, 4, 6 and 8).
    assert found.longest == 6


def test_a_busy_period_by_hand():
    # 0: served 0 to 3; 1, 2: wait for it, 3 to 5 and 5 to 5.5; 7: idle before, served 7 to 8.
    found = queue([0, 1, 2, 7], alone(4), [3, 2, 0.5, 1])
    assert found.waits.tolist() == [3, 4, 3.5, 1]
    assert found.longest == 3 and found.busy == pytest.approx(6.5 / 8)
    assert found.mean_wait == pytest.approx(11.5 / 4) and found.longest_wait == 4


def test_groups_are_served_when_their_last_request_is_there():
    # Request 2 is in no group (a prediction, say); {0, 1} from 4 to 6, {3} after it, 6 to 7.
    found = queue([0, 4, 4.5, 5], [[0, 1], [3]], [2, 1])
    assert found.waits[[0, 1, 3]].tolist() == [6, 2, 2] and np.isnan(found.waits[2])
    assert found.longest == 3 and found.busy == pytest.approx(3 / 7)
    assert found.mean_wait == pytest.approx(10 / 3)
    # A policy that lets the first group wait until 10.
    found = queue([0, 4, 4.5, 5], [[0, 1], [3]], [2, 1], ready=[10, 0])
    assert found.waits[[0, 1, 3]].tolist() == [12, 8, 8] and found.busy == pytest.approx(3 / 13)


def test_nothing_and_no_time():
    found = queue([], [], [])
    assert (found.longest, found.busy, found.mean_wait, found.longest_wait) == (0, 0.0, 0.0, 0.0)
    found = queue([1.0, 2.0], alone(2), [0.0, 0.0])
    assert found.waits.tolist() == [0.0, 0.0] and (found.longest, found.busy) == (0, 0.0)


@pytest.mark.parametrize("rate", [0.3, 0.6])
def test_poisson_arrivals_wait_as_long_as_pollaczek_and_khinchine_say(rate):
    """M/D/1 with a service time of 1: the mean wait is 1 + r / (2 (1 - r)), the share busy r."""
    means, busy = [], []
    for seed in range(40):
        gaps = np.random.default_rng(seed).exponential(1 / rate, 4000)
        found = queue(np.cumsum(gaps), alone(4000), np.ones(4000))
        # The empty queue at the beginning is forgotten after a few busy periods.
        means.append(found.waits[500:].mean())
        busy.append(found.busy)
    expected = 1 + rate / (2 * (1 - rate))
    error = np.std(means, ddof=1) / np.sqrt(len(means))
    assert error < 0.01 * expected  # so the comparison can fail
    # Four standard errors of the mean over seeds: one run in 16,000 lies outside by chance.
    assert abs(np.mean(means) - expected) < 4 * error
    assert np.mean(busy) == pytest.approx(rate, abs=4 * np.std(busy, ddof=1) / np.sqrt(40))


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 9)), min_size=1, max_size=9
    )
)
def test_no_second_is_lost(parts):
    """Waits end when a server that never rests while somebody is there would end them."""
    parts = sorted(parts)
    arrivals = [float(part[0]) for part in parts]
    seconds = [float(part[2]) for part in parts]
    found = queue(arrivals, alone(len(parts)), seconds)
    # The unfinished work, second by second: integers, so nothing is rounded.
    for number, arrival in enumerate(arrivals):
        work, clock = 0.0, 0.0
        for other in range(number):
            work = max(work - (arrivals[other] - clock), 0.0) + seconds[other]
            clock = arrivals[other]
        assert found.waits[number] == max(work - (arrival - clock), 0.0) + seconds[number]
    assert 1 - (sum(seconds) == 0) <= found.longest <= len(parts) and 0 <= found.busy <= 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: queue([1, 0], alone(2), [1, 1]), "arrivals: the times fall"),
        (lambda: queue([0, np.nan], alone(2), [1, 1]), "arrivals: give one finite number"),
        (lambda: queue([0, 1], alone(2), [1]), "1 service times for 2 groups"),
        (lambda: queue([0, 1], alone(2), [1, -1]), "give one, 0 or more"),
        (lambda: queue([0, 1], [[0], [0]], [1, 1]), "listed twice"),
        (lambda: queue([0, 1], [[0], [2]], [1, 1]), "from 0 to 1"),
        (lambda: queue([0, 1], [[0], []], [1, 1]), "no list of requests"),
        (lambda: queue([0, 1], alone(2), [1, 1], ready=[0]), "1 times `ready` for 2 groups"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
