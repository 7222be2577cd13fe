"""What the dense and convolution layers of a model see, as rows that multiply their kernels.

A dense layer's row is its input; a convolution's is a patch, with the strides, padding and
dilation that the layer has. In both cases `rows @ kernel.reshape(-1, features)` is the layer's
output without its bias.

Design: `flax.linen.intercept_methods` reads the arguments of the layers on their way in, so that
any linen model is captured without an edit. Patches are shifted slices side by side, in the order
(row, column, channel) of the kernel itself. Rejected: `lax.conv_general_dilated_patches`, a
convolution with an identity kernel, in the order (channel, row, column); the tests compare the two.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from unroll.errors import InputError
from unroll.models.convolution import Conv
from unroll.training.spec import TrainSpec, apply_model
from unroll.types import Params, PyTree


def layer_rows(
    spec: TrainSpec, params: Params, model_state: PyTree, inputs: jax.Array, *, bias: bool = False
) -> dict[str, jax.Array]:
    """Rows of every dense and convolution layer, in evaluation mode.

    Args:
      spec: names the model; inputs are taken as they are, without preprocessing.
      params: its parameters.
      model_state: its other collections.
      inputs: `[B, ...]` model inputs.
      bias: append a 1 to the rows of layers that have a bias, which multiplies that bias.

    Returns:
      `{path: [B, rows, d]}` in the order of the calls, d = inputs of the kernel (+ 1). A layer that
      is called several times has the rows of all its calls. Convolutions in groups, locally
      connected layers, embeddings and attention's own projections are not captured.
    """
    found: dict[str, list[jax.Array]] = {}

    def capture(call, arguments, keywords, context):
        layer = context.module
        if context.method_name == "__call__" and is_captured(layer):
            rows = _rows(layer, arguments[0] if arguments else keywords["inputs"])
            if bias and layer.use_bias:
                rows = jnp.concatenate([rows, jnp.ones_like(rows[..., :1])], axis=-1)
            found.setdefault("/".join(layer.path), []).append(rows)
        return call(*arguments, **keywords)

    with nn.intercept_methods(capture):
        apply_model(spec, params, model_state, inputs, train=False)
    return {path: jnp.concatenate(rows, axis=1) for path, rows in found.items()}


def is_captured(layer: nn.Module) -> bool:
    """Whether a layer's output is a product of its rows with its kernel."""
    if isinstance(layer, nn.Conv):
        return layer.feature_group_count == 1 and layer.mask is None
    return isinstance(layer, nn.Dense | Conv)


def _rows(layer: nn.Module, x: jax.Array) -> jax.Array:
    """`[B, rows, d]` of a batch of inputs of one layer."""
    if isinstance(layer, nn.Dense):
        return x.reshape(x.shape[0], -1, x.shape[-1])
    size = _per_axis(layer.kernel_size, x.ndim - 2)
    if x.ndim != len(size) + 2:
        raise InputError(f"{'/'.join(layer.path)}: expected one batch axis; got {x.shape}")
    dilation = _per_axis(getattr(layer, "kernel_dilation", 1), len(size))
    if any(one != 1 for one in _per_axis(getattr(layer, "input_dilation", 1), len(size))):
        raise InputError(f"{'/'.join(layer.path)}: input_dilation is not supported here")
    patches = extract_patches(
        x, size, _per_axis(layer.strides or 1, len(size)), layer.padding, dilation
    )
    return patches.reshape(x.shape[0], -1, patches.shape[-1])


def extract_patches(
    x: jax.Array,
    kernel_size: Sequence[int],
    strides: Sequence[int],
    padding: str | int | Sequence[int | tuple[int, int]],
    dilation: Sequence[int],
) -> jax.Array:
    """Patches of `[B, *space, C]`, `[B, *space', h * w * C]` in the order of an HWIO kernel.

    Raises:
      InputError: if the padding is neither "SAME", "VALID" nor numbers.
    """
    space = x.shape[1:-1]
    extents = [(n - 1) * step + 1 for n, step in zip(kernel_size, dilation, strict=True)]
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID"):
            raise InputError(f'patches: padding is "SAME", "VALID" or numbers; got "{padding}"')
        padding = lax.padtype_to_pads(space, extents, strides, padding.upper())
    pairs = [
        (pair, pair) if isinstance(pair, int) else tuple(pair)
        for pair in ([padding] * len(space) if isinstance(padding, int) else padding)
    ]
    x = jnp.pad(x, [(0, 0), *pairs, (0, 0)])
    counts = [
        (n - extent) // stride + 1
        for n, extent, stride in zip(x.shape[1:-1], extents, strides, strict=True)
    ]
    slices = []
    for offsets in itertools.product(*map(range, kernel_size)):
        begins = [offset * step for offset, step in zip(offsets, dilation, strict=True)]
        ends = [
            begin + (count - 1) * stride + 1
            for begin, count, stride in zip(begins, counts, strides, strict=True)
        ]
        slices.append(
            lax.slice(x, (0, *begins, 0), (x.shape[0], *ends, x.shape[-1]), (1, *strides, 1))
        )
    return jnp.concatenate(slices, axis=-1)


def _per_axis(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)
