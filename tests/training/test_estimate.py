"""Expected seconds and bytes of a training: the arithmetic, and that asking changes nothing."""

import jax
import numpy as np
import pytest

import unroll
from unroll.training.estimate import footprint, is_finished, seconds_per_step, step_seconds
from unroll.training.record import Record


@pytest.fixture
def recipe(blobs, mlp_spec):
    train, _ = blobs
    return mlp_spec, train, unroll.data.make_schedule(0, len(train), batch_size=16, epochs=3)


class Clock:
    """Stands still except while steps are taken."""

    def __init__(self, per_step, per_call=0.0):
        self.now, self.per_step, self.per_call = 0.0, per_step, per_call
        self.stretches = []

    def __call__(self):
        return self.now

    def advance_to(self, carry, begin, end):
        self.stretches.append((begin, end))
        self.now += self.per_call + (end - begin) * self.per_step
        return carry + end - begin


def test_seconds_of_a_step():
    clock = Clock(0.01)
    assert seconds_per_step(clock.advance_to, 0, 1000, clock=clock) == pytest.approx(0.01)
    # Compiled by no step at all, then ever longer until 0.2 s: 32 steps of 0.01 s.
    assert clock.stretches == [(0, 0), *((0, 2**k) for k in range(6))]


def test_the_cost_of_a_call_hardly_counts():
    clock = Clock(per_step=0.001, per_call=0.01)
    found = seconds_per_step(clock.advance_to, 0, 1000, clock=clock)
    assert 0.001 < found < 0.0011  # 0.01 s a call on 256 steps


def test_a_short_run_is_measured_whole():
    clock = Clock(1e-5)
    assert seconds_per_step(clock.advance_to, 0, 5, clock=clock) == pytest.approx(1e-5)
    assert clock.stretches[-1] == (0, 5)


def test_a_long_step_is_taken_once():
    clock = Clock(3.0)
    assert seconds_per_step(clock.advance_to, 0, 1000, clock=clock) == pytest.approx(3.0)
    assert clock.stretches == [(0, 0), (0, 1)]


def test_footprint_of_a_training(recipe):
    spec, train, schedule = recipe
    found = footprint(*recipe)
    # 6 features, 16 hidden units, 3 classes, each with a bias.
    assert found.state == 4 * (6 * 16 + 16 + 16 * 3 + 3)
    assert found.examples == len(train) * (6 + 1) * 4
    small = schedule.nbytes + 4 * len(schedule) + 4 * len(train) + 100  # losses, weights, scalars
    needed = found.state + found.examples
    assert needed < found.program.arguments <= needed + small
    assert found.program.aliased >= found.state  # the state is donated
    assert found.program.temporaries >= found.state  # its gradient
    assert not found.convolutions


def test_asking_compiles_once_and_changes_nothing(blobs, caplog):
    train, _ = blobs
    spec = unroll.TrainSpec(unroll.models.build("mlp", num_classes=3, hidden=(13,)))
    schedule = unroll.data.make_schedule(0, len(train), batch_size=16, epochs=3)
    before = unroll.train(spec, train, schedule, seed=3)
    jax.clear_caches()
    footprint(spec, train, schedule)
    step_seconds(spec, train, schedule)
    with jax.log_compiles():
        after = unroll.train(spec, train, schedule, seed=3)
        assert "compilation of jit(advance)" not in caplog.text
        unroll.train(spec, train, schedule[:-1], seed=3)  # another length is another program
        assert "compilation of jit(advance)" in caplog.text
    np.testing.assert_array_equal(before.losses, after.losses)
    jax.tree.map(np.testing.assert_array_equal, before.state, after.state)


def test_a_bad_schedule_is_refused(recipe):
    spec, train, schedule = recipe
    with pytest.raises(unroll.InputError, match="uses id"):
        footprint(spec, train, schedule + len(train))


def test_what_the_store_holds_is_finished(recipe, tmp_path):
    store = unroll.Store(tmp_path)
    weights = np.ones(len(recipe[1]), np.float32)
    weights[3] = 0
    assert not is_finished(None, *recipe)
    assert not is_finished(store, *recipe, seed=1)
    unroll.train(*recipe, seed=1, store=store, record=Record(every=8))
    assert is_finished(store, *recipe, seed=1)
    assert is_finished(store, *recipe, seed=1, weights=np.ones(len(weights)))
    assert is_finished(store, *recipe, seed=1, record=Record(every=8))
    assert not is_finished(store, *recipe, seed=1, record=Record(every=5))
    assert not is_finished(store, *recipe, seed=2)
    assert not is_finished(store, *recipe, seed=1, weights=weights)


@pytest.mark.slow
def test_expected_seconds_are_within_a_factor_of_two():
    train, _ = unroll.data.load("blobs", num_train=1000, num_test=10, num_features=64)
    spec = unroll.TrainSpec(unroll.models.build("mlp", num_classes=2, hidden=(512, 512)))
    schedule = unroll.data.make_schedule(0, len(train), batch_size=32, epochs=40)
    expected = step_seconds(spec, train, schedule) * len(schedule)
    true = unroll.train(spec, train, schedule).seconds
    assert 0.5 < true / expected < 2
