"""The layers that models share, against their definitions."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unroll.errors import InputError
from unroll.models import layers


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("name", ["gelu", "relu", "silu", "tanh"])
def test_activation_equals_flax(name):
    x = normal(0, 50)
    chex.assert_trees_all_close(layers.activation(name)(x), getattr(nn, name)(x), rtol=1e-6)


@pytest.mark.parametrize("lookup", [layers.activation, layers.normalization, layers.pool])
def test_unknown_names_list_the_choices(lookup):
    with pytest.raises(InputError, match="choose one of"):
        lookup("nonsense")


@pytest.mark.parametrize(("channels", "groups"), [(12, None), (12, 3), (64, None), (1, None)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_group_norm_equals_flax(channels, groups, offset):
    x = normal(1, 3, 5, 4, channels) + offset
    ours = layers.GroupNorm(groups)
    variables = {"params": {"scale": normal(2, channels), "bias": normal(3, channels)}}
    expected_groups = groups or {12: 6, 64: 32, 1: 1}[channels]
    flax = nn.GroupNorm(expected_groups, use_fast_variance=False)
    value, expected = ours.apply(variables, x), flax.apply(variables, x)
    chex.assert_trees_all_close(value, expected, atol=2e-5, rtol=1e-5)
    shapes = jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x))
    assert shapes == jax.tree.map(jnp.shape, flax.init(jax.random.key(0), x))


def test_group_norm_groups_must_divide():
    with pytest.raises(InputError, match="divides 10"):
        layers.GroupNorm(4).init(jax.random.key(0), jnp.ones((1, 2, 2, 10)))


def test_one_pixel_keeps_a_gradient():
    """One channel per group would make the output constant there."""
    x = normal(4, 2, 1, 1, 16)
    variables = layers.GroupNorm().init(jax.random.key(0), x)
    layer = layers.GroupNorm(epsilon=0.1)
    gradient = jax.grad(lambda x: jnp.vdot(jnp.cos(jnp.arange(32.0)), layer.apply(variables, x)))
    assert jnp.any(jnp.abs(gradient(x)) > 1e-3)


def train_batch_norm(x, weights=None, layer=None):
    layer = layer or layers.BatchNorm(momentum=0.8)
    variables = layer.init(jax.random.key(0), x)
    return layer.apply(variables, x, True, weights, mutable=["batch_stats"])


def test_batch_norm_equals_flax():
    x = 2 * normal(5, 6, 3, 3, 4) + 1
    flax = nn.BatchNorm(use_running_average=False, momentum=0.8, use_fast_variance=False)
    expected = flax.apply(flax.init(jax.random.key(0), x), x, mutable=["batch_stats"])
    chex.assert_trees_all_close(train_batch_norm(x), expected, rtol=1e-5, atol=1e-6)
    weighted = train_batch_norm(x, jnp.full(6, 0.3))
    chex.assert_trees_all_close(weighted, expected, rtol=1e-5, atol=1e-6)


def test_batch_norm_evaluation_uses_running_averages():
    x = normal(6, 4, 3, 3, 2)
    stats = {"mean": jnp.array([1.0, 2.0]), "var": jnp.array([4.0, 9.0])}
    variables = {"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}, "batch_stats": stats}
    value = layers.BatchNorm(epsilon=0.0).apply(variables, x)
    chex.assert_trees_all_close(value, (x - stats["mean"]) / jnp.array([2.0, 3.0]), rtol=1e-6)


def test_weight_zero_is_deletion_in_batch_norm():
    x, weights = normal(7, 5, 3, 3, 4), jnp.array([1.0, 2.0, 0.0, 1.0, 0.0])
    kept = jnp.array([0, 1, 3])
    value, stats = train_batch_norm(x, weights)
    expected, expected_stats = train_batch_norm(x[kept], weights[kept])
    chex.assert_trees_all_close(value[kept], expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(stats, expected_stats, rtol=1e-5, atol=1e-6)
    full, _ = train_batch_norm(x)
    assert not np.allclose(full[kept], expected, atol=1e-2)


def test_running_averages_keep_their_dtype():
    """A loop over training steps carries them."""
    with jax.enable_x64(True):
        _, stats = train_batch_norm(jnp.ones((2, 3, 3, 4), jnp.float64))
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype("float32")}


def test_batch_norm_of_nobody_keeps_the_averages():
    x = normal(8, 3, 2, 2, 4)
    value, stats = train_batch_norm(x, jnp.zeros(3))
    chex.assert_tree_all_finite((value, stats))
    initial = layers.BatchNorm().init(jax.random.key(0), x)["batch_stats"]
    chex.assert_trees_all_equal(stats["batch_stats"], initial)
    gradient = jax.grad(lambda weights: jnp.sum(train_batch_norm(x, weights)[0] ** 2))
    chex.assert_tree_all_finite(gradient(jnp.zeros(3)))


class TwoDropouts(nn.Module):
    rate: float = 0.4

    @nn.compact
    def __call__(self, x, train, example_keys):
        first = layers.ExampleDropout(self.rate)(x, train, example_keys)
        return first, layers.ExampleDropout(self.rate)(x, train, example_keys)


def keys(ids):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(9), i))(jnp.asarray(ids))


def test_dropout_is_keyed_by_example():
    """Removing or moving an example leaves every other mask as it was."""
    full = TwoDropouts().apply({}, jnp.ones((4, 30)), True, keys([0, 1, 2, 3]))
    some = TwoDropouts().apply({}, jnp.ones((2, 30)), True, keys([3, 1]))
    chex.assert_trees_all_equal(jax.tree.map(lambda y: y[jnp.array([3, 1])], full), some)
    assert not np.array_equal(full[0][0], full[0][1]), "two examples share a mask"
    assert not np.array_equal(full[0], full[1]), "two layers share a mask"


def test_dropout_rate_and_scale():
    value = TwoDropouts(0.25).apply({}, jnp.ones((50, 400)), True, keys(range(50)))[0]
    assert set(np.unique(value)) == {0.0, np.float32(1 / 0.75)}
    assert abs(float(jnp.mean(value == 0)) - 0.25) < 0.01


def test_dropout_off():
    x = jnp.ones((2, 3))
    chex.assert_trees_all_equal(TwoDropouts().apply({}, x, False, None)[0], x)
    chex.assert_trees_all_equal(TwoDropouts(0.0).apply({}, x, True, None)[0], x)
    with pytest.raises(InputError, match="example_keys"):
        TwoDropouts().apply({}, x, True, None)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    ("ours", "flax"), [(layers.max_pool, nn.max_pool), (layers.avg_pool, nn.avg_pool)]
)
def test_pools_equal_flax(ours, flax, size):
    x = normal(10, 2, 7, 6, 3)
    window = (size, size)

    def both(pool):
        value, pullback = jax.vjp(pool, x)
        return value, pullback(jnp.cos(value))

    expected = both(lambda x: flax(x, window, window))
    chex.assert_trees_all_close(both(lambda x: ours(x, size)), expected, rtol=1e-6)


def test_pool_of_a_tiny_image():
    with pytest.raises(InputError, match="smaller than the window"):
        layers.max_pool(jnp.ones((1, 1, 4, 2)))


def test_global_average_pool():
    x = normal(11, 2, 3, 4, 5)
    chex.assert_trees_all_close(layers.global_average_pool(x), x.mean(axis=(1, 2)), rtol=1e-6)
