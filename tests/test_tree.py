"""Trees as vectors, and equality of bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unroll import tree


def random_tree(seed):
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(size=(3, 2)).astype(np.float32), "b": (rng.normal(size=4), np.int32(3))}


@given(st.integers(0, 1000))
def test_flatten_keeps_every_entry(seed):
    value = random_tree(seed)
    assert tree.flatten(value).shape == (6 + 4 + 1,)
    assert tree.norm(value) == pytest.approx(
        np.sqrt(sum(np.sum(np.asarray(leaf, float) ** 2) for leaf in jax.tree.leaves(value)))
    )


def test_distance_is_taken_in_float64():
    """A million differences of 1e-4 near 1, where a float32 sum would lose digits."""
    one = {"w": np.ones(10**6, np.float32)}
    other = {"w": np.ones(10**6, np.float32) + np.float32(1e-4)}
    exact = np.sqrt(10**6) * float(np.float32(1) + np.float32(1e-4) - 1)
    assert tree.distance(one, other) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "w": np.nextafter(t["w"], np.float32(9))},
        lambda t: {**t, "w": t["w"].astype(np.float64)},
        lambda t: {**t, "w": t["w"].reshape(2, 3)},
        lambda t: {"v": t["w"], "b": t["b"]},
    ],
)
def test_same_bits_sees_value_dtype_shape_and_name(change):
    value = random_tree(0)
    assert tree.same_bits(value, random_tree(0))
    assert not tree.same_bits(value, change(value))


def test_a_copy_of_a_key_outlives_the_key():
    state = {"key": jax.random.key(3), "w": jnp.ones(2)}
    copy, same = tree.to_host(state), tree.to_host(state)
    assert tree.same_bits(copy, same)
    assert not tree.same_bits(copy, {**same, "key": jax.random.key(4)})
    state["key"].delete()
    assert np.array_equal(jax.random.key_data(copy["key"]), jax.random.key_data(same["key"]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_is_finite(bad, dtype):
    assert tree.is_finite({"w": jnp.ones(3, dtype), "step": np.int32(2)})
    assert not tree.is_finite({"w": jnp.array([1.0, bad], dtype)})
