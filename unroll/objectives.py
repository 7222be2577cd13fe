"""Training objectives: a loss per example, and penalties that no example owns.

An objective is split in two, since an example's weight multiplies the first part only:

    L(w) = (1/B) sum_b omega[b] * example_losses(logits, labels)[b]  +  penalty(w)

Penalties that are means over examples (the SD penalty) belong to the first part: removing an
example removes its share of the penalty with it.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import optax

from unroll.errors import InputError
from unroll.types import Params


class AbstractObjective(Protocol):
    """What the training step asks of an objective; a hashable object with these two methods."""

    def example_losses(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Loss of each example: `[B, C]` logits and int32 `[B]` labels to `[B]`."""
        ...

    def penalty(self, params: Params) -> jax.Array:
        """Scalar that does not depend on the examples."""
        ...


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross-entropy in nats, `[B]`."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def squared_error(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Half the squared distance to the one-hot label, `[B]`: least-squares classification."""
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return 0.5 * jnp.sum((logits - targets) ** 2, axis=-1)


def sd_penalty(logits: jax.Array, norm: str = "population") -> jax.Array:
    """Standard deviation of each example's logits over the classes, `[B]`.

    Source: Thudi et al., *Unrolling SGD* (arXiv 2109.13398), the SD loss. `norm="population"`
    divides by C inside the root, `"unbiased"` by C - 1, and `"reference"` is the unbiased form
    divided once more by C, as the public reference code has it.
    """
    classes = logits.shape[-1]
    centred = logits - logits.mean(axis=-1, keepdims=True)
    total = jnp.sum(centred**2, axis=-1)
    divisor = classes if norm == "population" else classes - 1
    # The root has no derivative at 0 (equal logits, for example a zero-initialised head); inside
    # `where` both branches are differentiated, so the argument of the root is made safe first.
    safe = jnp.where(total > 0, total, 1.0)
    deviation = jnp.where(total > 0, jnp.sqrt(safe / divisor), 0.0)
    return deviation / classes if norm == "reference" else deviation


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss with the penalties of the literature.

    Attributes:
      loss: `cross_entropy` or `squared_error`.
      sd_gamma: weight of the SD penalty (arXiv 2109.13398); 0 turns it off.
      sd_norm: `population`, `unbiased` or `reference`, see `sd_penalty`.
      l2: lambda of the penalty `lambda/2 * ||w||^2` over all parameters.

    Raises:
      InputError: on an unknown loss or norm, or a negative weight.
    """

    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"
    sd_gamma: float = 0.0
    sd_norm: Literal["population", "unbiased", "reference"] = "population"
    l2: float = 0.0

    def __post_init__(self):
        if self.loss not in _LOSSES:
            raise InputError(f"unknown loss {self.loss!r}; choose one of {sorted(_LOSSES)}")
        if self.sd_norm not in ("population", "unbiased", "reference"):
            raise InputError(
                f"unknown sd_norm {self.sd_norm!r}; choose population, unbiased or reference"
            )
        if self.sd_gamma < 0 or self.l2 < 0:
            raise InputError("sd_gamma and l2 must not be negative")

    def example_losses(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        losses = _LOSSES[self.loss](logits, labels)
        if self.sd_gamma:
            losses = losses + self.sd_gamma * sd_penalty(logits, self.sd_norm)
        return losses

    def penalty(self, params: Params) -> jax.Array:
        if not self.l2:
            return jnp.zeros(())
        return 0.5 * self.l2 * sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params))


_LOSSES = {"cross_entropy": cross_entropy, "squared_error": squared_error}
