"""L1-sparse: the weight of the penalty, its step in closed form, and what it leaves out."""

import dataclasses

import jax
import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.methods.l1_sparse import DecayingL1, near_zero

RATE, ALPHA = 0.3, 0.05


def full_batch_steps(problem, closed, epochs, over="all", l2=0.0):
    """Full-batch subgradient steps in numpy."""
    ids, at = problem.retain, (closed.kernel, closed.bias)
    labels = problem.run.dataset.labels[ids]
    weights = problem.run.weights[ids].astype(np.float64)
    for epoch in range(epochs):
        pull = ALPHA * (1 - epoch / epochs)
        slopes = closed.gradient(ids, labels, weights, at)
        slopes = [slope + l2 * w for slope, w in zip(slopes, at, strict=True)]
        slopes[0] = slopes[0] + pull * np.sign(at[0])
        if over == "all":
            slopes[1] = slopes[1] + pull * np.sign(at[1])
        at = closed.stepped(slopes, RATE, at)
    return at


# The loop keeps its losses in float32 and the test's are float64.
@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types")
@pytest.mark.parametrize(("over", "l2"), [("all", 0.0), ("kernels", 0.0), ("all", 0.2)])
def test_steps_in_closed_form(logistic, over, l2):
    """Three epochs of one full batch each: alpha, 2/3 alpha, 1/3 alpha."""
    problem, closed = logistic
    run = problem.run
    # The run's weights belong to ids; training on starts from weight 1 for each retained example.
    problem = dataclasses.replace(
        problem,
        run=dataclasses.replace(
            run,
            weights=np.ones(120, np.float32),
            spec=dataclasses.replace(run.spec, objective=unroll.Objective(l2=l2)),
        ),
    )
    method = unroll.methods.l1_sparse(ALPHA, RATE, epochs=3, batch_size=500, over=over)
    found = closed.of(method(jax.random.key(0), problem).params)
    expected = full_batch_steps(problem, closed, 3, over, l2)
    for one, other in zip(found, expected, strict=True):
        # The same sums of 116 numbers in float64; the loop's weight alpha (T - t) / T is rounded.
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


def test_the_weight_decays_linearly_to_alpha_over_t():
    """By epochs, not by steps: five epochs of four steps."""
    objective = DecayingL1(unroll.Objective(), alpha=0.1, epochs=5, steps=4)
    found = [float(objective.weight(step)) for step in range(20)]
    expected = np.repeat([0.1, 0.08, 0.06, 0.04, 0.02], 4)
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # float32
    assert found[-1] == pytest.approx(0.1 / 5)


def test_without_a_penalty_it_is_fine_tuning_bit_for_bit(problem):
    key, options = jax.random.key(3), dict(learning_rate=0.1, epochs=2, batch_size=16)
    tuned = unroll.methods.finetune(**options)(key, problem)
    found = unroll.methods.l1_sparse(alpha=0, **options)(key, problem)
    assert tree.same_bits(found.params, tuned.params)
    assert found.example_gradients == tuned.example_gradients == 2 * 117
    # The program with the penalty takes the same batches.
    small = unroll.methods.l1_sparse(alpha=1e-12, **options)(key, problem)
    assert tree.distance(small.params, tuned.params) < 1e-5  # sixteen steps in float32


def test_more_weights_come_near_zero(problem):
    found = [
        unroll.unlearn(
            f"l1_sparse(alpha={alpha}, learning_rate=0.05, epochs=100, batch_size=16)", problem
        )
        for alpha in (1e-6, 0.05)
    ]
    before, free, sparse = (
        near_zero(params, "all")
        for params in (problem.run.state.params, found[0].params, found[1].params)
    )
    # A subgradient step overshoots zero by at most rate * a_t, 2.5e-3 first and 2.5e-5 last.
    assert sparse > free + 0.2
    assert found[1].info["near_zero"] == {"threshold": 1e-3, "before": before, "after": sparse}


def test_near_zero_counts_the_penalised():
    params = {"kernel": np.array([[0.5, 1e-4], [-1e-5, 2.0]]), "bias": np.array([0.0, 0.0])}
    assert near_zero(params, "kernels") == 2 / 4
    assert near_zero(params, "all") == 4 / 6


def test_with_batch_normalisation_and_a_singular_value_penalty(normalized_problem, blobs, mlp_spec):
    result = unroll.unlearn("l1_sparse(over='kernels')", normalized_problem)
    assert tree.is_finite(result.params)
    spec = dataclasses.replace(mlp_spec, objective=unroll.Objective(singular_gamma=0.01))
    schedule = unroll.data.make_schedule(0, len(blobs[0]), batch_size=16, epochs=1)
    problem = unroll.Problem(unroll.train(spec, blobs[0], schedule), [3, 17])
    key, options = jax.random.key(0), dict(learning_rate=0.05, epochs=1, batch_size=16)
    tuned = unroll.methods.finetune(**options)(key, problem)
    found = unroll.methods.l1_sparse(alpha=1e-12, **options)(key, problem)
    # Eight steps in float32; the penalty's own pull is far below that.
    assert tree.distance(found.params, tuned.params) < 1e-5


def test_divergence_and_progress(problem):
    with pytest.raises(unroll.DivergenceError, match="not finite"):
        unroll.unlearn("l1_sparse(learning_rate=1e30, epochs=3)", problem)
    seen = []
    unroll.methods.l1_sparse(epochs=2, batch_size=16)(
        jax.random.key(0), problem, lambda *at: seen.append(at)
    )
    assert seen[-1] == (16, 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alpha=-1", "alpha must be"),
        ("alpha=True", "alpha must be"),
        ("alpha=1e400", "alpha must be"),
        ("learning_rate=0", "learning_rate must be"),
        ("epochs=0", "epochs must be"),
        ("batch_size=0", "batch_size must be"),
        ("over='biases'", "over must be"),
    ],
)
def test_bad_hyperparameters(text, message):
    with pytest.raises(unroll.InputError, match=message):
        unroll.methods.method(f"l1_sparse({text})")
