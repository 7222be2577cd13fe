"""SCRUB: its steps in closed form, and how many passes there are."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

import unroll
from unroll import tree
from unroll.methods.scrub import alternating_passes, epoch_batches, teacher_logits
from unroll.problem import Access
from unroll.training.distillation import in_a_row

RATE, TEMPERATURE = 0.3, 2.0


def unit_weights(problem):
    run = dataclasses.replace(problem.run, weights=np.ones(120, np.float32))
    return dataclasses.replace(problem, run=run)


def of_logits(closed, problem, ids, at):
    inputs = problem.run.dataset.inputs[ids].astype(np.float64)
    return inputs, inputs @ at[0] + at[1]


def slope_of_divergence(closed, problem, teacher, ids, at):
    """d KD / d logits = T (softmax(student / T) - softmax(teacher / T)), summed over inputs."""
    inputs, logits = of_logits(closed, problem, ids, at)
    apart = softmax(logits / TEMPERATURE, axis=1) - softmax(teacher[ids] / TEMPERATURE, axis=1)
    residual = TEMPERATURE * apart / len(ids)
    return inputs.T @ residual, residual.sum(axis=0)


def test_two_epochs_in_closed_form(logistic):
    """Full batches of 4 and 116, each divided by its own size: (up), down, up, down."""
    problem, closed = logistic
    gamma, beta = 0.7, 0.4
    problem = unit_weights(problem)
    forget, retain = problem.forget, problem.retain
    access = Access(problem, frozenset({"original", "forget", "retain"}))
    teacher = teacher_logits(access.spec, access.original, access.parts()).astype(np.float64)
    at = (closed.kernel, closed.bias)
    _, expected = of_logits(closed, problem, np.arange(120), at)
    np.testing.assert_allclose(teacher, expected, rtol=0, atol=1e-5)  # kept in float32
    for _ in range(2):
        up = slope_of_divergence(closed, problem, teacher, forget, at)
        at = closed.stepped(up, -RATE, at)
        own = closed.gradient(retain, problem.run.dataset.labels[retain], np.ones(116), at)
        soft = slope_of_divergence(closed, problem, teacher, retain, at)
        slopes = [gamma * a + beta * b for a, b in zip(own, soft, strict=True)]
        at = closed.stepped(slopes, RATE, at)
    method = unroll.methods.scrub(
        RATE, 2, 2, 500, 500, temperature=TEMPERATURE, gamma=gamma, beta=beta
    )
    result = method(jax.random.key(0), problem)
    for found, wanted in zip(closed.of(result.params), at, strict=True):
        # The same sums in float64.
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-13)
    assert result.example_gradients == 2 * 116 + 2 * 4 + 120 / 3


def test_exactly_so_many_ascending_passes():
    """Every forgotten id as often as there are ascending passes, every retained one each epoch."""
    up = epoch_batches(0, np.array([3, 5, 9]), 2, 2)
    down = epoch_batches(0, np.array([0, 1, 2, 4, 6]), 2, 4)
    passes = alternating_passes(up, down, gamma=0.5, beta=0.25)
    assert [each.soft for each in passes] == [-1, 0.25, -1, 0.25, 0.25, 0.25]
    assert [each.hard for each in passes] == [0, 0.5, 0, 0.5, 0.5, 0.5]
    steps = in_a_row(passes, np.float32)
    ascending, ids = np.asarray(steps.soft) < 0, np.asarray(steps.schedule)
    for rows, members, times in ((ids[ascending], [3, 5, 9], 2), (ids[~ascending], [0, 6], 4)):
        assert [(rows == member).sum() for member in members] == [times] * len(members)
    assert not np.isin(ids[ascending], [0, 1, 2, 4, 6]).any()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_passes_are_counted_and_measured(problem, count):
    text = f"scrub(epochs=3, maximisation_epochs={count}, batch_size=16)"
    result = unroll.unlearn(text, problem)
    assert result.info["maximisation_passes"] == len(result.info["forget_divergence"]) == count
    assert len(result.info["retain_divergence"]) == 3
    assert result.example_gradients == 3 * 117 + count * 3 + 120 / 3
    if count:
        # The first one stands still: at the teacher there is no slope to climb.
        assert abs(result.info["forget_divergence"][0]) < 1e-5
    if count == 3:
        assert result.info["forget_divergence"][2] > 1e-4


def test_without_teacher_and_ascent_it_is_fine_tuning(problem, normalized_problem):
    """The same batches and noise, over several of them, by another program in float32."""
    key = jax.random.key(3)
    for case in (problem, normalized_problem):
        tuned = unroll.methods.finetune(0.05, epochs=2, batch_size=16)(key, case)
        found = unroll.methods.scrub(0.05, 2, 0, 16, beta=0.0)(key, case)
        chex.assert_trees_all_close(found.params, tuned.params, atol=2e-5)
        chex.assert_trees_all_close(found.model_state, tuned.model_state, atol=2e-5)
        assert tree.distance(found.params, case.run.state.params) > 1e-2


def test_with_the_teacher_alone_nothing_moves(logistic):
    """gamma 0 and no ascent: the student is at the minimum of KD already."""
    problem, closed = logistic
    method = unroll.methods.scrub(RATE, 2, 0, 16, gamma=0.0, beta=1.0)
    found = closed.of(method(jax.random.key(0), problem).params)
    # The teacher's logits are kept in float32.
    np.testing.assert_allclose(found[0], closed.kernel, rtol=0, atol=1e-5)


def test_running_averages_follow_the_retained_batches_alone(normalized_problem):
    """The ascent changes them through the weights only: with a tiny rate not at all."""
    key = jax.random.key(0)
    results = [
        unroll.methods.scrub(1e-9, 1, count, 64)(key, normalized_problem) for count in (0, 1)
    ]
    chex.assert_trees_all_close(results[0].model_state, results[1].model_state, atol=1e-6)
    start = normalized_problem.run.state.model_state
    assert not tree.same_bits(results[1].model_state, start)


def test_the_ascent_drives_it_away_on_the_forget_set(recorded_run):
    problem = unroll.Problem(recorded_run, np.arange(0, 30, 3))

    def moved(params, data):
        both = (recorded_run.state.params, params)
        old, new = (log_softmax(unroll.predict(recorded_run.spec, p, {}, data), 1) for p in both)
        return (np.exp(old) * (old - new)).sum(axis=1).mean()

    options = "learning_rate=0.1, epochs=10, batch_size=16, forget_batch_size=2"
    calm, driven = (
        unroll.unlearn(f"scrub({options}, maximisation_epochs={count})", problem).params
        for count in (0, 10)
    )
    forgotten = moved(driven, problem.forget_data)
    assert forgotten > 2 * moved(calm, problem.forget_data)
    assert forgotten > 1.5 * moved(driven, problem.retain_data)


def test_divergence_progress_and_refusal(problem):
    with pytest.raises(unroll.DivergenceError, match="not finite"):
        unroll.unlearn("scrub(learning_rate=1e30)", problem)
    seen = []
    unroll.methods.scrub(epochs=2, batch_size=16)(
        jax.random.key(0), problem, lambda *at: seen.append(at)
    )
    assert seen[-1] == (2 * 8 + 2, 2 * 8 + 2)
    spec = dataclasses.replace(problem.run.spec, objective=unroll.Objective(singular_gamma=0.1))
    run = dataclasses.replace(problem.run, spec=spec)
    with pytest.raises(unroll.InputError, match="singular"):
        unroll.unlearn("scrub", dataclasses.replace(problem, run=run))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate=0", "learning_rate must be"),
        ("temperature=-1", "temperature must be"),
        ("epochs=0", "epochs must be"),
        ("epochs=1", "maximisation_epochs must be at most"),
        ("maximisation_epochs=-1", "maximisation_epochs must be"),
        ("forget_batch_size=0", "forget_batch_size must be"),
        ("gamma=-1", "gamma must be"),
        ("beta=True", "beta must be"),
        ("beta=1e400", "beta must be"),
    ],
)
def test_bad_hyperparameters(text, message):
    with pytest.raises(unroll.InputError, match=message):
        unroll.methods.method(f"scrub({text})")
