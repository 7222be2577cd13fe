"""Projected updates: what they leave alone, to rounding, and what they do not touch at all."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

import unroll
from unroll import tree
from unroll.models.convolution import Conv
from unroll.training.projection import (
    Basis,
    frozen_leaves,
    iterate_projected,
    project,
    project_updates,
    removed_shares,
)
from unroll.training.step import Examples, start_state


class Mixed(nn.Module):
    """A strided convolution, batch normalisation, and a dense layer."""

    @nn.compact
    def __call__(self, x, train=False, example_weights=None):
        x = Conv(5, strides=(2, 2))(x)
        x = unroll.models.layers.BatchNorm()(x, train, example_weights)
        return nn.Dense(3)(jnp.tanh(x).reshape(len(x), -1))


def make_case(dtype=np.float64, seed=0):
    """Specification, state, examples of the mixed model; `[8, 6, 6, 2]` images."""
    rng = np.random.default_rng(seed)
    spec = unroll.TrainSpec(Mixed(), optimizer=unroll.optax_call("sgd", 0.3, momentum=0.5))
    inputs = jnp.asarray(rng.normal(size=(8, 6, 6, 2)), dtype)
    variables = dict(spec.model.init(jax.random.key(seed), inputs.astype(jnp.float32)))
    cast = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
    state = start_state(
        spec, jax.random.key(1), cast["params"], {"batch_stats": cast["batch_stats"]}
    )
    return spec, state, Examples(inputs, jnp.asarray(rng.integers(0, 3, 8), jnp.int32))


def random_basis(inputs, count, seed=0):
    rng = np.random.default_rng(seed)
    return Basis(np.linalg.qr(rng.normal(size=(inputs, inputs)))[0][:, :count], np.ones(count))


def random_updates(params, seed=3):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), params)


def test_a_projector_is_symmetric_idempotent_and_of_trace_k():
    with jax.enable_x64(True):
        basis = random_basis(18, 7)
        zeros = {"kernel": jnp.zeros((18, 18))}
        inside = np.eye(18) - project_updates({"": basis}, {"kernel": jnp.eye(18)})["kernel"]
        # Products of 18 numbers of order 1 in float64.
        np.testing.assert_allclose(inside, inside.T, atol=1e-14)
        np.testing.assert_allclose(inside @ inside, inside, atol=1e-14)
        assert np.trace(inside) == pytest.approx(7, abs=1e-12)
        assert not project_updates({"": basis}, zeros)["kernel"].any()


def test_projecting_twice_changes_nothing_and_nothing_protected_is_left():
    with jax.enable_x64(True):
        _, state, _ = make_case()
        basis = random_basis(18, 7)
        once = project_updates({"Conv_0": basis}, random_updates(state.params))
        twice = project_updates({"Conv_0": basis}, once)
        np.testing.assert_allclose(twice["Conv_0"]["kernel"], once["Conv_0"]["kernel"], atol=1e-14)
        left = basis.directions.T @ once["Conv_0"]["kernel"].reshape(18, 5)
        np.testing.assert_allclose(left, 0, atol=1e-13)


@pytest.mark.parametrize("count", [0, 7, 18])
def test_a_layer_maps_the_span_as_before_and_the_rest_boundedly(count):
    """`x (W + dW) = x W` on the span; for any x the change is at most |dW| |(1 - P) x|."""
    with jax.enable_x64(True):
        _, state, _ = make_case()
        basis = random_basis(18, count)
        moved = project_updates({"Conv_0": basis}, random_updates(state.params))
        change = moved["Conv_0"]["kernel"].reshape(18, 5)
        rng = np.random.default_rng(5)
        inside = rng.normal(size=(40, count)) @ basis.directions.T
        np.testing.assert_allclose(inside @ change, 0, atol=1e-12)
        anywhere = rng.normal(size=(40, 18))
        outside = anywhere - anywhere @ basis.directions @ basis.directions.T
        bound = np.linalg.norm(change, 2) * np.linalg.norm(outside, axis=1)
        assert (np.linalg.norm(anywhere @ change, axis=1) <= bound + 1e-12).all()
        if count == 18:
            np.testing.assert_allclose(change, 0, atol=1e-13)


def test_scales_take_out_a_share_of_each_direction():
    basis = Basis(np.eye(4)[:, :2], np.array([0.25, 1.0]))
    moved = project_updates({"": basis}, {"kernel": jnp.ones((4, 3))})["kernel"]
    np.testing.assert_allclose(moved, np.array([0.75, 0, 1, 1])[:, None] * np.ones(3))


def test_a_basis_with_a_row_for_the_bias_moves_kernel_and_bias_together():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        inputs = np.concatenate([rng.normal(size=(4, 6)), np.ones((4, 1))], axis=1)
        basis = Basis(np.linalg.svd(inputs, full_matrices=False)[2].T, np.ones(4))
        updates = {"d": {"kernel": jnp.ones((6, 3)), "bias": jnp.arange(3.0)}}
        moved = project_updates({"d": basis}, updates)["d"]
        assert jnp.linalg.norm(moved["bias"]) > 0.1
        change = inputs[:, :-1] @ moved["kernel"] + moved["bias"]
        np.testing.assert_allclose(change, 0, atol=1e-13)


def test_what_has_no_basis_keeps_its_bits():
    """Biases, normalisation with its statistics, and layers that are left out."""
    spec, state, examples = make_case(np.float32)
    schedule = np.arange(8, dtype=np.int32).reshape(2, 4)
    bases = {"Conv_0": random_basis(18, 4)}
    *_, (_, after) = iterate_projected(
        spec, state, examples, 1.0, jax.random.key(0), schedule, bases
    )
    before, after = (flatten_dict(s.params, sep="/") for s in (state, after))
    moved = [path for path in before if not tree.same_bits(before[path], after[path])]
    assert moved == ["Conv_0/kernel"]
    assert set(frozen_leaves(bases, state.params)) == set(before) - set(moved)


def test_statistics_keep_their_bits_in_evaluation_mode_only():
    spec, state, examples = make_case(np.float32)
    schedule = np.arange(8, dtype=np.int32).reshape(2, 4)
    for train in (False, True):
        steps = iterate_projected(
            spec, state, examples, 1.0, jax.random.key(0), schedule, {}, train=train
        )
        *_, (_, after) = steps
        assert tree.same_bits(after.model_state, state.model_state) == (not train)


def test_without_protected_directions_it_is_plain_training():
    """Rank 0 in every layer, biases included: the steps of the library's own loop."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        spec = unroll.TrainSpec(
            nn.Dense(3, param_dtype=jnp.float64),
            optimizer=unroll.optax_call("sgd", 0.3, momentum=0.5),
        )
        inputs = jnp.asarray(rng.normal(size=(8, 5)))
        examples = Examples(inputs, jnp.asarray(rng.integers(0, 3, 8), jnp.int32))
        params = spec.model.init(jax.random.key(0), inputs)["params"]
        state = start_state(spec, jax.random.key(0), params)
        schedule = np.arange(16, dtype=np.int32).reshape(4, 4) % 8
        nothing = {"": Basis(np.zeros((6, 0)), np.zeros(0))}
        *_, (_, after) = iterate_projected(
            spec, state, examples, -1.0, jax.random.key(0), schedule, nothing
        )
        expected, _ = unroll.training.loop.scan_steps(
            spec, state, examples, -jnp.ones(8), jax.random.key(0), schedule
        )
        # The same sums in float64, in another order.
        chex.assert_trees_all_close(after.params, expected.params, rtol=1e-12)


@pytest.mark.parametrize(
    "optimizer",
    [
        unroll.optax_call("sgd", 0.1, momentum=0.9),
        unroll.optax_call("adamw", 0.05, weight_decay=0.1),
    ],
    ids=str,
)
def test_any_optimiser_stays_in_the_complement(optimizer):
    """Adam scales coordinates and decays weights; the projection comes after both."""
    with jax.enable_x64(True):
        spec, state, examples = make_case()
        spec = dataclasses.replace(spec, optimizer=optimizer)
        state = start_state(spec, jax.random.key(0), state.params, state.model_state)
        basis = random_basis(18, 7)
        schedule = np.arange(8, dtype=np.int32).reshape(2, 4)
        *_, (_, after) = iterate_projected(
            spec, state, examples, 1.0, jax.random.key(0), schedule, {"Conv_0": basis}
        )
        change = after.params["Conv_0"]["kernel"] - state.params["Conv_0"]["kernel"]
        assert jnp.linalg.norm(change) > 1e-3
        np.testing.assert_allclose(basis.directions.T @ change.reshape(18, 5), 0, atol=1e-12)


def test_as_an_optax_transformation_it_composes_with_any_other():
    _, state, _ = make_case(np.float32)
    bases = {"Conv_0": random_basis(18, 7)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1), project(bases))
    updates, _ = optimizer.update(
        random_updates(state.params), optimizer.init(state.params), state.params
    )
    left = bases["Conv_0"].directions.T @ updates["Conv_0"]["kernel"].reshape(18, 5)
    np.testing.assert_allclose(left, 0, atol=1e-6)  # float32, updates of size 0.1
    assert not updates["Dense_0"]["kernel"].any()


def test_removed_shares_are_those_of_the_squared_norm():
    basis = Basis(np.eye(4)[:, :1], np.ones(1))
    gradient = {"kernel": jnp.array([[3.0], [4.0], [0.0], [0.0]])}
    assert removed_shares({"": basis}, gradient)[""] == pytest.approx(9 / 25)


@pytest.mark.parametrize(
    ("bases", "message"),
    [
        ({"Dense_7": random_basis(18, 3)}, "no 'Dense_7/kernel'.*Conv_0"),
        ({"Conv_0": random_basis(17, 3)}, "17 rows, its kernel 18"),
    ],
)
def test_bases_of_another_model_are_refused(bases, message):
    _, state, _ = make_case(np.float32)
    with pytest.raises(unroll.InputError, match=message):
        project_updates(bases, state.params)


def test_divergence_and_an_objective_with_a_memory_are_refused():
    spec, state, examples = make_case(np.float32)
    schedule = np.zeros((3, 4), np.int32)
    basis = {"Dense_0": random_basis(45, 4)}
    hot = dataclasses.replace(spec, optimizer=unroll.optax_call("sgd", 3e38))
    state = start_state(hot, jax.random.key(0), state.params, state.model_state)
    with pytest.raises(unroll.DivergenceError, match="projection|projected"):
        list(iterate_projected(hot, state, examples, 1.0, jax.random.key(0), schedule, basis))
    stateful = dataclasses.replace(spec, objective=unroll.Objective(singular_gamma=0.1))
    with pytest.raises(unroll.InputError, match="singular_gamma=0"):
        list(iterate_projected(stateful, state, examples, 1.0, jax.random.key(0), schedule, basis))
