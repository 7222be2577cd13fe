"""All-CNN-C, the all-convolutional network that many unlearning papers train."""

from __future__ import annotations

import flax.linen as nn
import jax

from unroll.models.convolution import Conv
from unroll.models.layers import (
    ExampleDropout,
    Head,
    activation,
    global_average_pool,
    normalization,
    scaled,
)

# (channels, kernel size, stride); dropout follows each stride of 2.
_LAYERS = (
    (96, 3, 1),
    (96, 3, 1),
    (96, 3, 2),
    (192, 3, 1),
    (192, 3, 1),
    (192, 3, 2),
    (192, 3, 1),
    (192, 1, 1),
)


class AllCNN(nn.Module):
    """All-CNN-C (Springenberg et al. 2015, arXiv 1412.6806).

    Eight convolutions, two of them with stride 2 in place of pooling, then a 1x1 convolution to
    the classes and a global average. The paper uses "relu", no normalisation, dropout 0.5 and
    dropout 0.2 on the image; the defaults here are a network that trains without tuning.

    Attributes:
        num_classes: number of logits.
        width: multiplies all channels.
        activation: a name from `unroll.models.layers.activation`.
        normalization: a name from `unroll.models.layers.normalization`.
        dropout: rate of `ExampleDropout` after each convolution with stride 2.
        input_dropout: rate of `ExampleDropout` on the image.
    """

    num_classes: int
    width: float = 1.0
    activation: str = "gelu"
    normalization: str = "group"
    dropout: float = 0.0
    input_dropout: float = 0.0

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
        x = ExampleDropout(self.input_dropout)(x, train, example_keys)
        for channels, size, stride in _LAYERS:
            layer = Conv(scaled(channels, self.width), (size, size), (stride, stride))
            x = activate(normalize(layer(x)))
            if stride == 2:
                x = ExampleDropout(self.dropout)(x, train, example_keys)
        # A 1x1 convolution and a mean over space commute, so the head comes last and costs less.
        return Head(self.num_classes, name="head")(global_average_pool(x))
