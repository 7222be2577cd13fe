"""Example weights other than 0 and 1: a use of weight c is undone c times, by whatever method.

The forget set is used in the last step only, so that what is to be undone is one gradient. Segments
damp that one too; test_followed.py has them.
"""

import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.unrolling.curvature import first_examples
from unroll.unrolling.expansion import single_gradient_at
from unroll.unrolling.tangents import train_with_tangents
from unroll.unrolling.unlearning_error import unlearning_errors

LAST = 4
METHODS = (
    f"single_gradient(start={LAST})",
    "checkpointed_gradient",
    "amnesiac(only='forget')",
    "taylor(order=1)",
    "sampled(examples=24)",
    "deltagrad(period=1)",
    "deltagrad(period=100, burn_in=1)",  # the last step is not exact, where the weights cancel
)


@pytest.fixture(scope="module")
def problem(blobs, mlp_spec):
    weights = np.random.default_rng(0).uniform(0.5, 2.0, len(blobs[0])).astype(np.float32)
    schedule = unroll.data.make_schedule(0, len(blobs[0]), batch_size=24, epochs=1)
    run = unroll.train(mlp_spec, blobs[0], schedule, weights=weights, record=unroll.Record(every=1))
    return unroll.Problem(run, schedule[LAST, :4])


@pytest.fixture(scope="module")
def relative_error(problem):
    twin = unroll.unlearn("retrain", problem).params
    original = problem.run.state.params
    return lambda params: unroll.relative_verification_error(params, twin, original)


@pytest.mark.parametrize("text", METHODS)
def test_methods(problem, relative_error, text):
    # Rounding: the removed update is some 1e-2 of weights in float32.
    assert relative_error(unroll.unlearn(text, problem).params) < 1e-4


def test_single_gradients_along_a_run(problem, relative_error):
    found = dict(single_gradient_at(problem.run, problem.forget, start=LAST))
    assert relative_error(found[LAST + 1]) < 1e-4


def test_tangents(problem, relative_error):
    run = problem.run
    cohorts = {"a": problem.forget}
    trained = train_with_tangents(run.spec, run.dataset, run.schedule, cohorts, weights=run.weights)
    assert relative_error(trained.delete("a").params) < 1e-4


def test_gradients_of_the_unlearning_error(problem):
    """The whole first batch is forgotten, whose gradient the first update shows."""
    run = problem.run
    batch = first_examples(run.dataset, 20)
    (row,) = unlearning_errors(run, run.schedule[0], batch, steps=[run.steps]).rows
    rate = 0.1
    norm = tree.distance(run.snapshots[0].params, run.snapshots[1].params) / rate
    # An update of 1e-2 is a difference of weights in float32.
    assert row.gradient_norm == pytest.approx(norm, rel=1e-4)
    leading = row.sigma_average * rate**2 * LAST * norm
    assert row.proxies["leading"] == pytest.approx(leading, rel=1e-4)
