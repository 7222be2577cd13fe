"""Residual networks for CIFAR-like and ImageNet-like images."""

from __future__ import annotations

from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from unroll.errors import InputError
from unroll.models.convolution import Conv
from unroll.models.layers import Function, Head, activation, global_average_pool, normalization

Depths = tuple[int, ...]

RESNET18: Depths = (2, 2, 2, 2)
RESNET50: Depths = (3, 4, 6, 3)


class ResNet(nn.Module):
    """ResNet (He et al. 2016, arXiv 1512.03385) with a choice of stem and normalisation.

    The bottleneck block has its stride in the 3x3 convolution, as most libraries do. With 10
    classes, width 64 and the CIFAR stem, ResNet-18 has 11.17 and ResNet-50 23.52 million
    parameters. `GroupNorm` is the default, so that no example sees another one.

    Attributes:
        num_classes: number of logits.
        depths: number of blocks in each stage.
        bottleneck: blocks of 1x1, 3x3, 1x1 convolutions instead of two 3x3.
        stem: "cifar" (3x3, stride 1) or "imagenet" (7x7 with stride 2, then 3x3 maximum pooling
            with stride 2).
        width: channels of the first stage; each later stage has twice as many.
        activation: a name from `unroll.models.layers.activation`.
        normalization: a name from `unroll.models.layers.normalization`.
    """

    num_classes: int
    depths: Depths = RESNET18
    bottleneck: bool = False
    stem: str = "cifar"
    width: int = 64
    activation: str = "gelu"
    normalization: str = "group"

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, example_weights: jax.Array | None = None
    ) -> jax.Array:
        """Maps images `[batch, height, width, channels]` to logits `[batch, num_classes]`."""
        activate = activation(self.activation)
        normalize = normalization(self.normalization, train, example_weights)
        block = _bottleneck_block if self.bottleneck else _basic_block
        if self.stem == "cifar":
            x = activate(normalize(_conv(self.width, 3)(x)))
        elif self.stem == "imagenet":
            x = _stem_pool(activate(normalize(_conv(self.width, 7, 2)(x))))
        else:
            raise InputError(f'unknown stem "{self.stem}"; choose "cifar" or "imagenet"')
        for stage, depth in enumerate(self.depths):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                x = block(x, self.width * 2**stage, stride, normalize, activate)
        return Head(self.num_classes, name="head")(global_average_pool(x))


# Blocks are functions: called in the compact method above, they add their layers to the network.


def _conv(features: int, size: int, stride: int = 1) -> Conv:
    """A convolution without bias, since a normalisation follows; padding as in the paper."""
    margin = (size - 1) // 2
    return Conv(features, (size, size), (stride, stride), ((margin, margin),) * 2, use_bias=False)


def _basic_block(
    x: jax.Array, width: int, stride: int, normalize: Function, activate: Function
) -> jax.Array:
    y = activate(normalize(_conv(width, 3, stride)(x)))
    y = normalize(_conv(width, 3)(y))
    return activate(y + _shortcut(x, width, stride, normalize))


def _bottleneck_block(
    x: jax.Array, width: int, stride: int, normalize: Function, activate: Function
) -> jax.Array:
    y = activate(normalize(_conv(width, 1)(x)))
    y = activate(normalize(_conv(width, 3, stride)(y)))
    y = normalize(_conv(4 * width, 1)(y))
    return activate(y + _shortcut(x, 4 * width, stride, normalize))


def _shortcut(x: jax.Array, features: int, stride: int, normalize: Function) -> jax.Array:
    """The identity where shapes agree, a normalised 1x1 projection where they do not."""
    if stride == 1 and x.shape[-1] == features:
        return x
    return normalize(_conv(features, 1, stride)(x))


def _stem_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum pooling with stride 2 and margin 1, as maxima of nine strided slices."""
    batch, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    rows, columns = (height - 1) // 2, (width - 1) // 2
    shifted = [
        lax.slice(
            padded,
            (0, i, j, 0),
            (batch, i + 2 * rows + 1, j + 2 * columns + 1, channels),
            (1, 2, 2, 1),
        )
        for i in range(3)
        for j in range(3)
    ]
    return reduce(jnp.maximum, shifted)
