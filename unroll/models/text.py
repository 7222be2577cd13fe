"""Text classifiers on token ids."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from unroll.errors import InputError
from unroll.models.layers import ExampleDropout, Head, activation


class TextClassifier(nn.Module):
    """Classifies rows of token ids by a bag of embeddings or a small transformer.

    "bag" is the mean of the embeddings (Joulin et al. 2017, arXiv 1607.01759). "transformer" adds
    positions and pre-norm encoder blocks (Vaswani et al. 2017, arXiv 1706.03762) before the mean.
    Token 0 is padding: it is masked everywhere and takes no position, so that padding on either
    side changes no logit.

    The gradient of the embedding, a scatter, costs 0.4 ms inside `lax.scan` for 32x200 tokens, 64
    channels and 20,000 words; a matrix of token counts was not faster.

    Example:
        >>> model = TextClassifier(num_classes=2, vocabulary_size=10_000, encoder="transformer")

    Attributes:
        num_classes: number of logits.
        vocabulary_size: number of token ids, padding included.
        embedding: channels of an embedding.
        encoder: "bag" or "transformer".
        layers: number of transformer blocks.
        heads: number of attention heads; divides `embedding`.
        activation: of the transformer; a name from `unroll.models.layers.activation`.
        dropout: rate of `ExampleDropout` on each branch and before the head.
    """

    num_classes: int
    vocabulary_size: int
    embedding: int = 64
    encoder: str = "bag"
    layers: int = 2
    heads: int = 4
    activation: str = "gelu"
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, example_keys: jax.Array | None = None
    ) -> jax.Array:
        """Maps token ids `[batch, length]`, int32, to logits `[batch, num_classes]`."""
        if self.encoder not in ("bag", "transformer"):
            raise InputError(f'unknown encoder "{self.encoder}"; choose "bag" or "transformer"')
        present = x != 0
        tokens = nn.Embed(self.vocabulary_size, self.embedding, name="embed")(x)
        if self.encoder == "transformer":
            tokens = tokens + _positions(present, self.embedding).astype(tokens.dtype)
            for _ in range(self.layers):
                tokens = self._block(tokens, present, train, example_keys)
            tokens = nn.LayerNorm()(tokens)
        count = jnp.maximum(present.sum(axis=1, keepdims=True), 1)
        mean = jnp.where(present[..., None], tokens, 0).sum(axis=1) / count
        mean = ExampleDropout(self.dropout)(mean, train, example_keys)
        return Head(self.num_classes, name="head")(mean)

    def _block(
        self,
        x: jax.Array,
        present: jax.Array,
        train: bool,
        example_keys: jax.Array | None,
    ) -> jax.Array:
        """One encoder block on `[batch, length, embedding]`."""
        y = nn.LayerNorm()(x)
        y = nn.MultiHeadDotProductAttention(self.heads)(y, mask=present[:, None, None, :])
        x = x + ExampleDropout(self.dropout)(y, train, example_keys)
        y = nn.Dense(4 * self.embedding)(nn.LayerNorm()(x))
        y = nn.Dense(self.embedding)(activation(self.activation)(y))
        return x + ExampleDropout(self.dropout)(y, train, example_keys)


def _positions(present: jax.Array, channels: int) -> jax.Array:
    """Sinusoids of the rank of each token among those present, `[batch, length, channels]`."""
    rank = jnp.cumsum(present, axis=1) - 1
    frequencies = 10_000.0 ** (-jnp.arange(0, channels, 2) / channels)
    angles = rank[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[..., :channels]
