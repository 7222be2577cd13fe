"""Layers that the models share: activations, normalisations, dropout and pooling.

They keep two promises that unlearning needs. No example leaves a mark on another one: the
statistics of `BatchNorm` are weighted by the examples' weights and the masks of `ExampleDropout`
are keyed by example. And every derivative of every order is cheap: pooling is a reshape and a
reduction, since the gradient of XLA's pooling windows is several times slower on the CPU.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp

from unroll.errors import InputError

Function = Callable[[jax.Array], jax.Array]


def _gelu(x: jax.Array) -> jax.Array:
    """The tanh form, `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.

    Forward and backward take 0.36 ms for 64x32x32x16 floats, the exact form with erf 0.54 ms.
    """
    return jax.nn.gelu(x, approximate=True)


def _relu(x: jax.Array) -> jax.Array:
    """As a maximum, which nested `jvp` and `jet` take; its derivative at 0 is 1/2."""
    return jnp.maximum(x, 0)


_ACTIVATIONS: dict[str, Function] = {
    "gelu": _gelu,
    "relu": _relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


def activation(name: str) -> Function:
    """Looks up an activation function by name.

    Expansions in the example weights need derivatives of the network of every order, so "gelu"
    (tanh form, Hendrycks and Gimpel 2016, arXiv 1606.08415) is the default of all models; "relu"
    has no second derivative at its kink.

    Example:
        >>> activation("tanh")(jnp.zeros(2))
        Array([0., 0.], dtype=float32)

    Args:
        name: "gelu", "relu", "silu" or "tanh".

    Returns:
        an elementwise function.
    """
    if name not in _ACTIVATIONS:
        raise InputError(f'unknown activation "{name}"; choose one of {sorted(_ACTIVATIONS)}')
    return _ACTIVATIONS[name]


def _default_groups(channels: int) -> int:
    """At most 32 groups of at least two channels each, all of one size.

    With one channel a group would be constant, and its gradient zero, where the image has shrunk
    to one pixel.
    """
    return max((n for n in range(2, 33) if channels % n == 0 and 2 * n <= channels), default=1)


def _group_mean(x: jax.Array, groups: int) -> jax.Array:
    """The mean over space and over each group of channels, repeated for every channel.

    Sums per channel first: on 64x32x32x64 floats, forward and backward, 12 ms instead of the
    21 ms of a reduction over the reshaped `[batch, height, width, groups, channels]`.
    """
    batch, channels = x.shape[0], x.shape[-1]
    per_channel = x.mean(axis=tuple(range(1, x.ndim - 1)))
    per_group = per_channel.reshape(batch, groups, -1).mean(axis=-1)
    repeated = jnp.repeat(per_group, channels // groups, axis=1)
    return repeated.reshape(batch, *[1] * (x.ndim - 2), channels)


class GroupNorm(nn.Module):
    """Group normalisation (Wu and He 2018, arXiv 1803.08494); each example stands alone.

    The variance is that of the centred values, which stays accurate where the mean is large. It
    equals `flax.linen.GroupNorm(use_fast_variance=False)`.

    Attributes:
        num_groups: must divide the channels; by default the largest divisor up to 32 that leaves
            two channels in each group.
        epsilon: added to the variance.
    """

    num_groups: int | None = None
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, ..., channels]` to the same shape."""
        channels = x.shape[-1]
        groups = self.num_groups or _default_groups(channels)
        if channels % groups:
            raise InputError(f"GroupNorm: choose num_groups that divides {channels}; got {groups}")
        scale = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        centred = x - _group_mean(x, groups)
        variance = _group_mean(centred * centred, groups)
        return centred * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015, arXiv 1502.03167) with weighted statistics.

    In training, mean and variance are weighted by `example_weights`, normalised to sum 1. An
    example of weight 0 therefore leaves no mark, neither on the outputs of others nor on the
    running averages: deleting an example and giving it weight 0 are the same. Where all weights
    are 0, the running averages serve and stay as they are.

    The collection "batch_stats" holds the running averages "mean" and "var", each `[channels]`;
    make it mutable when you train.

    Attributes:
        momentum: the share of the old running average in the new one.
        epsilon: added to the variance.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, example_weights: jax.Array | None = None
    ) -> jax.Array:
        """Maps `[batch, ..., channels]` to the same shape; weights are `[batch]` or None."""
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones_init(), channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), channels, jnp.float32)
        mean_store = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        variance_store = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        mean, variance = mean_store.value, variance_store.value
        if train:
            mean, variance, present = _weighted_moments(x, example_weights, mean, variance)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                rate = (1 - self.momentum) * present
                _move(mean_store, mean, rate)
                _move(variance_store, variance, rate)
        return (x - mean) * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias


def _move(store: nn.Variable, target: jax.Array, rate: jax.Array) -> None:
    """Moves a running average towards its target; keeps its dtype, which a scan carry must."""
    old = store.value
    store.value = (old + rate * (target - old)).astype(old.dtype)


def _weighted_moments(
    x: jax.Array, weights: jax.Array | None, mean: jax.Array, variance: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weighted mean and variance per channel, the given ones if all weights are 0; and which."""
    weights = jnp.ones(x.shape[0], x.dtype) if weights is None else weights.astype(x.dtype)
    total = weights.sum()
    present = total != 0
    share = weights / jnp.where(present, total, 1)
    space = tuple(range(1, x.ndim - 1))
    mean = jnp.where(present, share @ x.mean(axis=space), mean)
    centred = x - mean
    variance = jnp.where(present, share @ (centred * centred).mean(axis=space), variance)
    return mean, variance, present


def normalization(
    name: str, train: bool = False, example_weights: jax.Array | None = None
) -> Function:
    """Looks up a normalisation by name; call it in the compact method of a module.

    Each call of the result adds one layer to that module.

    Example:
        >>> x = normalization("group")(x)  # doctest: +SKIP

    Args:
        name: "batch", "group", "layer" or "none". Only "batch" lets examples see each other.
        train: whether "batch" uses the statistics of the batch.
        example_weights: `[batch]`, for "batch".

    Returns:
        a function from `[batch, ..., channels]` to the same shape.
    """
    layers: dict[str, Function] = {
        "batch": lambda x: BatchNorm()(x, train, example_weights),
        "group": lambda x: GroupNorm()(x),
        "layer": lambda x: nn.LayerNorm(use_fast_variance=False)(x),
        "none": lambda x: x,
    }
    if name not in layers:
        raise InputError(f'unknown normalization "{name}"; choose one of {sorted(layers)}')
    return layers[name]


class ExampleDropout(nn.Module):
    """Dropout whose mask depends on the example's own key and on the layer, on nothing else.

    Removing an example from a batch, or moving it, shifts nobody else's mask. The layer enters by
    a hash of its path in the model, so that a module used twice repeats its mask.

    Attributes:
        rate: share of the values that are set to 0; the others are divided by `1 - rate`.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, example_keys: jax.Array | None = None
    ) -> jax.Array:
        """Maps `[batch, ...]` to the same shape; `example_keys` are `[batch]` typed keys."""
        if not train or self.rate == 0:
            return x
        if example_keys is None:
            raise InputError("dropout in training: pass example_keys, one typed key per example")
        salt = zlib.crc32("/".join(self.path).encode())

        def mask(key: jax.Array) -> jax.Array:
            return jax.random.bernoulli(jax.random.fold_in(key, salt), 1 - self.rate, x.shape[1:])

        return jnp.where(jax.vmap(mask)(example_keys), x / (1 - self.rate), 0)


def _windows(x: jax.Array, size: int) -> jax.Array:
    """Cuts `[B, H, W, C]` into windows, `[B, H // size, size, W // size, size, C]`."""
    height, width = x.shape[1] // size, x.shape[2] // size
    if not (height and width):
        raise InputError(f"pooling: image {x.shape[1:3]} is smaller than the window {size}")
    x = x[:, : height * size, : width * size]
    return x.reshape(x.shape[0], height, size, width, size, x.shape[3])


def max_pool(x: jax.Array, size: int = 2) -> jax.Array:
    """Maximum over windows that do not overlap; rows and columns left over are dropped.

    Entries that tie share the gradient. Forward and backward take 6 ms as pairwise maxima, and 46
    ms with `flax.linen.max_pool` (64x32x32x64, 2 cores, AMD EPYC, float32).

    Example:
        >>> max_pool(jnp.ones((1, 7, 8, 3))).shape
        (1, 3, 4, 3)

    Args:
        x: `[batch, height, width, channels]`.
        size: side of the window.

    Returns:
        `[batch, height // size, width // size, channels]`.
    """
    windows = _windows(x, size)
    rows = reduce(jnp.maximum, [windows[:, :, i] for i in range(size)])
    return reduce(jnp.maximum, [rows[:, :, :, i] for i in range(size)])


def avg_pool(x: jax.Array, size: int = 2) -> jax.Array:
    """Mean over windows that do not overlap; rows and columns left over are dropped.

    Args:
        x: `[batch, height, width, channels]`.
        size: side of the window.

    Returns:
        `[batch, height // size, width // size, channels]`.
    """
    return _windows(x, size).mean(axis=(2, 4))


_POOLS: dict[str, Function] = {"avg": avg_pool, "max": max_pool}


def pool(name: str) -> Function:
    """Looks up pooling by 2: "avg" or "max"."""
    if name not in _POOLS:
        raise InputError(f'unknown pool "{name}"; choose one of {sorted(_POOLS)}')
    return _POOLS[name]


def global_average_pool(x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the mean over space, `[batch, channels]`."""
    return x.mean(axis=(1, 2))


def flatten(x: jax.Array) -> jax.Array:
    """Maps `[batch, ...]` to `[batch, features]`."""
    return x.reshape(x.shape[0], -1)


class Head(nn.Module):
    """The last layer of every model: a linear map to logits of at least float32.

    Attributes:
        num_classes: number of logits.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, features]` to `[batch, num_classes]`."""
        logits = nn.Dense(self.num_classes, name="dense")(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def scaled(channels: int, width: float) -> int:
    """The number of channels times a width multiplier, at least 1."""
    return max(1, round(channels * width))
