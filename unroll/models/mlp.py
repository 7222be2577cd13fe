"""Multilayer perceptron on flattened features."""

from __future__ import annotations

import flax.linen as nn
import jax

from unroll.models.layers import ExampleDropout, Head, activation, flatten


class MLP(nn.Module):
    """Dense layers with an activation and dropout after each, then a linear head.

    Example:
        >>> model = MLP(num_classes=10, hidden=(256, 256))
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 8, 8)))  # doctest: +SKIP

    Attributes:
        num_classes: number of logits.
        hidden: width of each hidden layer.
        activation: a name from `unroll.models.layers.activation`.
        dropout: rate of `ExampleDropout` after each hidden layer.
    """

    num_classes: int
    hidden: tuple[int, ...] = (128, 128)
    activation: str = "gelu"
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, example_keys: jax.Array | None = None
    ) -> jax.Array:
        """Maps `[batch, ...]` to logits `[batch, num_classes]`."""
        activate = activation(self.activation)
        x = flatten(x)
        for width in self.hidden:
            x = activate(nn.Dense(width)(x))
            x = ExampleDropout(self.dropout)(x, train, example_keys)
        return Head(self.num_classes, name="head")(x)
