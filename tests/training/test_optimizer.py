"""Described optimisers, and the total effect of one gradient under momentum."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unroll
from unroll.training.optimizer import sgd_rule


def final_position(transformation, gradients):
    position = jnp.zeros(())
    state = transformation.init(position)
    for gradient in gradients:
        updates, state = transformation.update(jnp.asarray(gradient), state, position)
        position = position + updates
    return float(position)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(learning_rate=0.1),
        dict(learning_rate=0.1, momentum=0.9),
        dict(learning_rate=0.1, momentum=0.9, nesterov=True),
        dict(
            learning_rate=unroll.optax_call("linear_schedule", 0.2, 0.0, 8),
            momentum=0.5,
        ),
    ],
)
@pytest.mark.parametrize("entering", [0, 3, 7])
def test_total_step_size_is_the_effect_of_one_gradient(arguments, entering):
    """An impulse at one step moves the end point by minus its total step size."""
    call = unroll.optax_call("sgd", **arguments)
    impulse = np.zeros(8)
    impulse[entering] = 1.0
    expected = sgd_rule(call, 8).total_step_sizes()[entering]
    np.testing.assert_allclose(final_position(call.build(), impulse), -expected, rtol=1e-5)


def test_nested_calls_build():
    call = unroll.optax_call(
        "chain",
        unroll.optax_call("clip_by_global_norm", 1.0),
        unroll.optax_call("adamw", unroll.optax_call("cosine_decay_schedule", 1e-3, 100)),
    )
    assert isinstance(call.build(), optax.GradientTransformation)
    assert "cosine_decay_schedule(0.001, 100)" in str(call)


def test_equal_descriptions_are_equal():
    one = unroll.optax_call("sgd", momentum=0.9, learning_rate=0.1)
    other = unroll.optax_call("sgd", learning_rate=0.1, momentum=0.9)
    assert one == other and hash(one) == hash(other)
    assert one != unroll.optax_call("sgd", learning_rate=0.1)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("sdg", {}, "no function 'sdg'"),
        ("sgd", {"rate": 0.1}, "does not take"),
        ("sgd", {"learning_rate": [0.1]}, "must be numbers"),
    ],
)
def test_bad_calls(name, arguments, message):
    with pytest.raises(unroll.InputError, match=message):
        unroll.optax_call(name, **arguments)


def test_other_optimisers_have_no_sgd_rule():
    with pytest.raises(unroll.InputError, match="plain sgd"):
        sgd_rule(unroll.optax_call("adam", 0.1), 3)
