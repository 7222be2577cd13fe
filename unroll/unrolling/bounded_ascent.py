"""The forgetting loss of projected-gradient unlearning: a likelihood that cannot run away.

    L = mean_n [ -log(1 - p_y + offset) - entropy_weight * H(p) ]

Source: Hoang et al. (arXiv 2312.04095), Eq. 1, with their reference code's offset and signs. The
first term is bounded by -log(offset), and its slope in p_y by 1/offset, also at p_y = 1, where all
forgotten examples begin. Cross-entropy to ascend on (`gradient_ascent`) is bounded nowhere.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from unroll.checks import positive_number
from unroll.errors import InputError
from unroll.types import Params


@dataclasses.dataclass(frozen=True)
class BoundedAscent:
    """The loss as an objective to descend on.

    Attributes:
      offset: above 0; -log(offset) bounds the first term.
      entropy_weight: above 0 the entropy is maximised (removal of samples and classes), below 0
        minimised (depoisoning).
      entropy_over: `all` classes, or the `others`: those that are not the label, renormalised.

    Raises:
      InputError: on an offset that is not above 0, or another name for `entropy_over`.
    """

    offset: float = 0.05
    entropy_weight: float = 0.2
    entropy_over: Literal["all", "others"] = "all"

    def __post_init__(self):
        positive_number("offset", self.offset)
        weight = self.entropy_weight
        real = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not real or not math.isfinite(weight):
            raise InputError(f"entropy_weight must be a finite number; got {weight!r}")
        if self.entropy_over not in ("all", "others"):
            raise InputError(f"entropy_over is 'all' or 'others'; got {self.entropy_over!r}")

    def example_losses(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """`[B, C]` logits and int `[B]` labels to `[B]`."""
        own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
        probability = jnp.where(own, jax.nn.softmax(logits), 0.0).sum(axis=-1)
        losses = -jnp.log(1.0 - probability + self.offset)
        if not self.entropy_weight:
            return losses
        if self.entropy_over == "others":
            # Finite, so that 0 * log 0 below is 0 and not NaN.
            logits = jnp.where(own, jnp.finfo(logits.dtype).min / 2, logits)
        return losses - self.entropy_weight * entropy(logits)

    def penalty(self, params: Params) -> jax.Array:
        """No penalty: weight decay would pull on the retained subspace."""
        del params
        return jnp.zeros(())


def entropy(logits: jax.Array) -> jax.Array:
    """Entropy of the softmax in nats, `[B, C]` to `[B]`; finite, with a finite gradient."""
    log_probabilities = jax.nn.log_softmax(logits)
    probabilities = jnp.exp(log_probabilities)
    # Where exp underflows the product is 0; its slope would be 0 * inf for infinite differences.
    terms = jnp.where(probabilities > 0, probabilities * log_probabilities, 0.0)
    return -terms.sum(axis=-1)
