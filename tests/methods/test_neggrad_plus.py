"""NegGrad+: between fine-tuning and ascent."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.training.joint import cycled_schedule

RATE = 0.3


@pytest.mark.parametrize("l2", [0.0, 0.7])
@pytest.mark.parametrize("alpha", [1.0, 0.8, 0.25, 0.0])
def test_one_full_batch_step_in_closed_form(logistic, alpha, l2):
    """A penalty counts once, whatever alpha; retained examples have the weights of the run."""
    problem, closed = logistic
    spec = dataclasses.replace(problem.run.spec, objective=unroll.Objective(l2=l2))
    problem = dataclasses.replace(problem, run=dataclasses.replace(problem.run, spec=spec))
    labels = problem.run.dataset.labels
    retained, forgotten = problem.retain, problem.forget
    down = closed.gradient(
        retained, labels[retained], problem.run.weights[retained].astype(np.float64)
    )
    up = closed.gradient(forgotten, labels[forgotten], np.ones(len(forgotten)))
    gradient = [
        alpha * a - (1 - alpha) * b + l2 * w
        for a, b, w in zip(down, up, (closed.kernel, closed.bias), strict=True)
    ]
    method = unroll.methods.neggrad_plus(alpha, RATE, epochs=1, batch_size=500)
    result = method(jax.random.key(0), problem)
    for found, expected in zip(
        closed.of(result.params), closed.stepped(gradient, RATE), strict=True
    ):
        # The same sums of 120 numbers in float64.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_alpha_one_is_fine_tuning_and_zero_is_ascent(problem, normalized_problem):
    """The same batches in the same order, over several of them, up to rounding in float32."""
    key = jax.random.key(3)
    for case in (problem, normalized_problem):
        tuned = unroll.methods.finetune(0.05, epochs=2, batch_size=16)(key, case)
        found = unroll.methods.neggrad_plus(1.0, 0.05, epochs=2, batch_size=16)(key, case)
        chex.assert_trees_all_close(found.params, tuned.params, atol=2e-5)
        chex.assert_trees_all_close(found.model_state, tuned.model_state, atol=2e-5)
        assert tree.distance(found.params, case.run.state.params) > 1e-2
    # All three forgotten in one batch: 8 steps for a pass over 117 retained ones.
    up = unroll.methods.gradient_ascent(0.05, epochs=8, batch_size=16)(key, problem)
    found = unroll.methods.neggrad_plus(0.0, 0.05, epochs=1, batch_size=16)(key, problem)
    chex.assert_trees_all_close(found.params, up.params, atol=2e-5)


def test_running_averages_follow_the_retained_batches_alone(normalized_problem):
    """One step: their new values depend on the weights before it, not on alpha."""
    key = jax.random.key(0)
    tuned = unroll.methods.finetune(0.01, epochs=1, batch_size=64)(key, normalized_problem)
    for alpha in (1.0, 0.5):
        found = unroll.methods.neggrad_plus(alpha, 0.01, epochs=1, batch_size=64)(
            key, normalized_problem
        )
        chex.assert_trees_all_close(found.model_state, tuned.model_state, atol=1e-6)
        assert not tree.same_bits(found.model_state, normalized_problem.run.state.model_state)


def test_forget_batches_are_cycled_in_fresh_orders():
    schedule = cycled_schedule(0, np.array([4, 9, 11, 20, 30]), batch_size=2, steps=7)
    assert schedule.shape == (7, 2)
    first, second = schedule[:3].ravel(), schedule[3:6].ravel()
    for epoch in (first, second):
        assert sorted(epoch[epoch >= 0]) == [4, 9, 11, 20, 30]
    assert first.tolist() != second.tolist()


def test_both_sets_are_counted(problem):
    """117 retained in batches of 16: 8 steps an epoch, each with the 3 forgotten examples."""
    result = unroll.unlearn("neggrad_plus(epochs=2, batch_size=16)", problem)
    assert result.example_gradients == 2 * 117 + 16 * 3
    assert result.info == {"forget_passes": 16.0}
    # Batches of 2 hold the 3 in two halves, the second with an empty slot: 59 steps.
    result = unroll.unlearn("neggrad_plus(epochs=1, batch_size=2)", problem)
    assert result.example_gradients == 117 + 29 * 3 + 2


def test_less_alpha_raises_the_forget_loss(problem):
    def loss(alpha):
        text = f"neggrad_plus(alpha={alpha}, epochs=3, batch_size=16)"
        params = unroll.unlearn(text, problem).params
        logits = unroll.predict(problem.run.spec, params, {}, problem.forget_data)
        return unroll.metrics.outputs.loss(logits, problem.forget_data.labels)

    assert loss(0.6) > loss(0.9) > loss(1.0)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, True, "half", float("nan")])
def test_bad_alpha(alpha):
    with pytest.raises(unroll.InputError, match="alpha must lie between 0 and 1"):
        unroll.methods.neggrad_plus(alpha)


@pytest.mark.parametrize("text", ["epochs=0", "learning_rate=0", "batch_size=0", "projection='x'"])
def test_bad_hyperparameters(text):
    with pytest.raises(unroll.InputError, match=text.split("=")[0].replace("projection", "rank")):
        unroll.methods.method(f"neggrad_plus({text})")
