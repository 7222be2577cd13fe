"""Logistic regression: the model for which every unlearning method has a closed answer."""

from __future__ import annotations

import flax.linen as nn
import jax

from unroll.models.layers import Head, flatten


class LogisticRegression(nn.Module):
    """One linear map from the flattened features to the logits.

    With an l2 penalty the loss is strongly convex, the setting of certified removal (Guo et al.
    2020, arXiv 1911.03030).

    Example:
        >>> LogisticRegression(num_classes=10)
        LogisticRegression(
            # attributes
            num_classes = 10
        )

    Attributes:
        num_classes: number of logits.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps `[batch, ...]` to logits `[batch, num_classes]`."""
        return Head(self.num_classes, name="head")(flatten(x))
