"""VGG networks for CIFAR-like images."""

from __future__ import annotations

import flax.linen as nn
import jax

from unroll.models.convolution import Conv
from unroll.models.layers import (
    ExampleDropout,
    Head,
    activation,
    global_average_pool,
    max_pool,
    normalization,
    scaled,
)

Stages = tuple[tuple[int, int], ...]

# (number of convolutions, channels) of each stage.
VGG_SMALL: Stages = ((1, 32), (1, 64), (2, 128))
VGG16: Stages = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
VGG19: Stages = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))


class VGG(nn.Module):
    """VGG (Simonyan and Zisserman 2015, arXiv 1409.1556) with one linear layer as its head.

    Each stage is a row of 3x3 convolutions with normalisation and activation, then maximum
    pooling by 2 as long as the image is larger than one pixel. The three dense layers of the
    ImageNet network are left out, as is usual on CIFAR.

    Attributes:
        num_classes: number of logits.
        stages: (number of convolutions, channels) of each stage.
        width: multiplies all channels.
        activation: a name from `unroll.models.layers.activation`.
        normalization: a name from `unroll.models.layers.normalization`.
        dropout: rate of `ExampleDropout` before the head.
    """

    num_classes: int
    stages: Stages = VGG16
    width: float = 1.0
    activation: str = "gelu"
    normalization: str = "group"
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        train: bool = False,
        example_keys: jax.Array | None = None,
        example_weights: jax.Array | None = None,
    ) -> jax.Array:
        """Maps images `[batch, height, width, channels]` to logits `[batch, num_classes]`."""
        activate = activation(self.activation)
        normalize = normalization(self.normalization, train, example_weights)
        for count, channels in self.stages:
            for _ in range(count):
                x = activate(normalize(Conv(scaled(channels, self.width))(x)))
            if min(x.shape[1:3]) >= 2:
                x = max_pool(x)
        x = ExampleDropout(self.dropout)(global_average_pool(x), train, example_keys)
        return Head(self.num_classes, name="head")(x)
