"""The distance to a teacher, and passes of different kinds in one loop."""

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from scipy.special import rel_entr, softmax

import unroll
from unroll import tree
from unroll.training.distillation import Pass, distillation_sgd, divergence, in_a_row
from unroll.training.loop import device_examples

LOGITS = st.lists(st.floats(-30, 30), min_size=3, max_size=3)


@hypothesis.given(LOGITS, LOGITS, st.floats(0.5, 8))
@hypothesis.settings(deadline=None, max_examples=50)
def test_divergence_against_scipy(teacher, student, temperature):
    with jax.enable_x64(True):
        found = float(divergence(np.array([teacher]), np.array([student]), temperature)[0])
    one, other = (softmax(np.array(x) / temperature) for x in (teacher, student))
    expected = temperature**2 * rel_entr(one, other).sum()
    # Probabilities down to 1e-52 lose digits in scipy's quotient, not in logarithms.
    assert found == pytest.approx(expected, rel=1e-8, abs=1e-10)
    assert found >= -1e-12


def test_student_equal_to_teacher_has_no_divergence_and_no_slope():
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    value, slope = jax.value_and_grad(lambda x: divergence(logits, x, 4.0).sum())(logits)
    assert value == 0
    assert np.abs(slope).max() < 1e-6  # softmax minus itself in float32


def test_passes_of_any_width_stand_in_a_row():
    narrow = Pass(np.array([[4], [7]], np.int32), hard=0.0, soft=-1.0, follow=False)
    wide = Pass(np.array([[1, 2, -1]], np.int32), hard=0.5, soft=0.25)
    steps = in_a_row([narrow, wide], np.float32)
    assert np.asarray(steps.schedule).tolist() == [[4, -1, -1], [7, -1, -1], [1, 2, -1]]
    assert np.asarray(steps.divisors).tolist() == [1, 1, 3]
    assert np.asarray(steps.hard).tolist() == [0, 0, 0.5]
    assert np.asarray(steps.soft).tolist() == [-1, -1, 0.25]
    assert np.asarray(steps.follow).tolist() == [False, False, True]


def test_the_divergence_of_a_pass_is_a_mean_over_its_examples(recorded_run):
    """At rate 0 nothing moves, and every pass measures the model that it is given."""
    run, state = recorded_run, recorded_run.state
    own = unroll.predict(run.spec, state.params, state.model_state, run.dataset)
    teacher = own + np.random.default_rng(1).normal(size=own.shape).astype(np.float32)
    ids = [np.array([0, 3, 5, 8, 9]), np.arange(20, 120)]
    passes = [
        Pass(unroll.data.make_schedule(0, ids[0], 2, 2), 0.0, -1.0, follow=False),
        Pass(unroll.data.make_schedule(0, ids[1], 16, 1), 1.0, 1.0),
    ]
    arguments = (device_examples(run.dataset), np.ones(120), teacher, passes, jax.random.key(0))
    result, means = distillation_sgd(
        run.spec, state, *arguments, learning_rate=0.0, temperature=2.0
    )
    assert tree.same_bits(result.params, state.params)
    expected = [float(divergence(teacher[each], own[each], 2.0).mean()) for each in ids]
    assert means == pytest.approx(expected, rel=1e-4)  # float32, another program
