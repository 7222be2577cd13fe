"""SalUn: which parameters are salient, and that no other one moves."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.training.joint import Parts, masked
from unroll.training.relabelling import Relabelling, relabelled_sgd
from unroll.unrolling.saliency import largest, moved_outside, saliency

KEY = 5


@hypothesis.given(
    st.lists(st.integers(0, 4), min_size=1, max_size=40), st.floats(0.01, 1.0), st.integers(0, 40)
)
@hypothesis.settings(deadline=None)
def test_the_largest_are_marked_and_ties_go_to_the_first(values, fraction, cut):
    """Against a stable sort; small integers tie often. The tree's leaves are ranked together."""
    flat = np.array(values, np.float64)
    found, threshold = largest([flat[:cut], flat[cut:]], fraction)
    count = max(1, round(fraction * len(flat)))
    order = np.argsort(-flat, kind="stable")[:count]
    np.testing.assert_array_equal(np.flatnonzero(np.concatenate(found)), np.sort(order))
    assert threshold == flat[order].min()


def test_shapes_are_kept_and_what_is_not_finite_is_refused():
    values = {"a": np.array([[3.0, 1.0], [2.0, 5.0]]), "b": np.array(4.0)}
    mask, threshold = largest(values, 0.6)
    assert mask["a"].tolist() == [[True, False], [False, True]] and bool(mask["b"])
    assert threshold == 3.0
    with pytest.raises(unroll.DivergenceError, match="not finite"):
        largest({"a": np.array([1.0, np.nan])}, 0.5)


@pytest.mark.parametrize("batch_size", [256, 3, 1])
def test_saliency_is_the_gradient_of_the_forget_loss_in_closed_form(logistic, batch_size):
    """With their own labels, at the original model, each example once, without the penalty."""
    problem, closed = logistic
    spec = dataclasses.replace(problem.run.spec, objective=unroll.Objective(l2=0.5))
    ids = problem.forget
    kernel, bias = closed.gradient(ids, problem.forget_data.labels, np.ones(4))
    found = saliency(spec, problem.run.state, problem.forget_data, batch_size)
    # The same sums of four numbers in float64.
    np.testing.assert_allclose(closed.of(found)[0], np.abs(kernel), rtol=0, atol=1e-14)
    np.testing.assert_allclose(closed.of(found)[1], np.abs(bias), rtol=0, atol=1e-14)


def test_one_step_is_the_masked_step_of_random_labels(logistic):
    """The third of the entries with the largest forget gradients moves as it would alone."""
    problem, closed = logistic
    key = jax.random.key(KEY)
    free = unroll.methods.random_label(0.3, epochs=1, batch_size=500)(key, problem)
    result = unroll.methods.salun(1 / 3, 0.3, epochs=1, batch_size=500)(key, problem)
    gradient = closed.gradient(problem.forget, problem.forget_data.labels, np.ones(4))
    sizes = np.abs(np.concatenate([part.ravel() for part in gradient]))
    at_least = np.sort(sizes)[-round(sizes.size / 3)]
    parts = zip(closed.of(result.params), closed.of(free.params), gradient, strict=True)
    for (found, random, slope), start in zip(parts, (closed.kernel, closed.bias), strict=True):
        kept = np.abs(slope) >= at_least
        np.testing.assert_allclose(found[kept], random[kept], rtol=0, atol=1e-14)
        np.testing.assert_array_equal(found[~kept], start[~kept])
    assert result.info["masked_parameters"] == round(sizes.size / 3)
    assert result.info["parameters"] == sizes.size
    assert result.info["threshold"] == pytest.approx(at_least, abs=1e-14)


@pytest.mark.parametrize("redraw", [False, True])
def test_outside_the_mask_no_bit_moves(problem, redraw):
    """With a penalty too, which pulls on every parameter."""
    spec = dataclasses.replace(problem.run.spec, objective=unroll.Objective(l2=0.1))
    problem = dataclasses.replace(problem, run=dataclasses.replace(problem.run, spec=spec))
    start = problem.run.state
    method = unroll.methods.salun(0.3, 0.1, epochs=2, batch_size=16, redraw=redraw)
    result = method(jax.random.key(KEY), problem)
    mask, _ = largest(saliency(spec, start, problem.forget_data), 0.3)
    marks, before, after = map(jax.tree.leaves, (mask, start.params, result.params))
    for mark, one, other in zip(marks, before, after, strict=True):
        assert one[~mark].tobytes() == other[~mark].tobytes()
        assert (one[mark] != other[mark]).mean() > 0.9
    assert result.info["moved_outside_mask"] == 0.0


def test_negative_zeros_stay_negative():
    weights, mask = {"w": jnp.array([-0.0, -0.0])}, {"w": np.array([True, False])}
    after = weights["w"] + masked(mask, {"w": jnp.zeros(2)})["w"]
    assert np.signbit(after).tolist() == [False, True]


def test_all_parameters_are_random_labels_bit_for_bit(problem):
    key = jax.random.key(KEY)
    options = dict(learning_rate=0.05, epochs=2, batch_size=16)
    free = unroll.methods.random_label(**options)(key, problem)
    whole = unroll.methods.salun(1.0, **options)(key, problem)
    assert tree.same_bits(whole.params, free.params)
    assert whole.example_gradients == free.example_gradients
    half = unroll.methods.salun(0.5, **options)(key, problem)
    assert half.example_gradients == free.example_gradients + len(problem.forget)


def test_a_mask_of_ones_changes_nothing_but_rounding(problem):
    """The program with a mask, where the one above has none."""
    run, results = problem.run, []
    parts = Parts(problem.forget_data, problem.forget, problem.retain_data, run.weights)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), run.state.params)
    for mask in (None, ones):
        training = Relabelling(0.05, 2, 16, True, False)
        key = jax.random.key(KEY)
        results.append(relabelled_sgd(training, run.spec, run.state, parts, key, mask=mask))
    # Sixteen steps in float32 by two programs.
    assert tree.distance(results[0].params, results[1].params) < 1e-5


def test_under_projection_the_projection_keeps_its_promise(problem):
    """It comes last, and info says how much of the movement it took outside the mask."""
    text = "salun(fraction=0.3, projection='energy(threshold={}, bias=\"moves\")')"
    result = unroll.unlearn(text.format(0.5), problem)
    assert 0 < result.info["moved_outside_mask"] < 1
    assert unroll.unlearn(text.format(0), problem).info["moved_outside_mask"] == 0
    assert unroll.unlearn(text.format(1), problem).info["moved_outside_mask"] == 0


def test_shares_of_a_movement():
    mask, before = [np.array([True, False])], [np.zeros(2)]
    assert moved_outside(mask, before, [np.array([3.0, 4.0])]) == pytest.approx(16 / 25)
    assert moved_outside(mask, before, before) == 0


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, True, "'all'"])
def test_bad_fraction(fraction):
    with pytest.raises(unroll.InputError, match="fraction must be"):
        unroll.methods.method(f"salun(fraction={fraction})")


def test_other_hyperparameters_are_checked_too():
    with pytest.raises(unroll.InputError, match="epochs must be"):
        unroll.methods.salun(epochs=0)
