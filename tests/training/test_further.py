"""Training on from a model, with an objective that has a memory."""

import dataclasses

import pytest

import unroll
from unroll import tree


@pytest.mark.parametrize("text", ["finetune(epochs=1)", "gradient_ascent(epochs=1)"])
def test_goes_on_from_a_run_with_a_singular_value_penalty(blobs, mlp_spec, text):
    spec = dataclasses.replace(mlp_spec, objective=unroll.Objective(singular_gamma=0.01))
    schedule = unroll.data.make_schedule(0, len(blobs[0]), batch_size=16, epochs=1)
    problem = unroll.Problem(unroll.train(spec, blobs[0], schedule), [3, 17])
    result = unroll.unlearn(text, problem)
    assert tree.is_finite(result.params)
    assert tree.distance(result.params, problem.run.state.params) > 0
