"""Training objectives: a loss per example, and penalties that no example owns.

An objective is split, since an example's weight multiplies the first part only:

    data(w) = (1/B) sum_b omega[b] * example_losses(logits, labels, step)[b]
    L(w)    = data(w)  +  penalty(w)  [ + gamma |v^T H v|,  H the Hessian of data(w) ]

Penalties that are means over examples (the SD penalty, the softmax Hessian's trace) belong to the
first part: removing an example removes its share of the penalty with it. The same holds for the
bracket, the singular-value penalty, since an example of weight 0 leaves nothing in H.

Design: the step asks an objective for no more than it declares. `example_losses` gets the index of
the step if its signature names it; a *stateful* objective is handed the data term as a function of
the parameters, returns its gradient, and has a memory that travels in `TrainState`. Rejected:
`jax.lax.stop_gradient` on the vector v. It would also cut v off from the derivatives of a whole run
(Taylor series, metagradients), in which v does depend on the example weights; instead v is computed
before the gradient in the parameters is taken, and is a constant of that derivative only.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from unroll.checks import whole_number
from unroll.errors import InputError
from unroll.types import Params, PyTree

DataLoss = Callable[[Params], tuple[jax.Array, PyTree]]
"""The weighted loss of one batch: parameters to the scalar and the model's new state."""


class AbstractObjective(Protocol):
    """What the training step asks of an objective; a hashable object with these two methods.

    `example_losses` may name a third parameter `step`; it then receives the index of the step, an
    int32 scalar that may be traced. Where no step is known it must work without (a default of 0).
    """

    def example_losses(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Loss of each example: `[B, C]` logits and int32 `[B]` labels to `[B]`."""
        ...

    def penalty(self, params: Params) -> jax.Array:
        """Scalar that does not depend on the examples."""
        ...


class StatefulObjective(AbstractObjective, Protocol):
    """An objective with a memory, which differentiates the data term itself.

    Attributes:
      stateful: whether the two methods below are used; an objective without the attribute is not.
    """

    stateful: bool

    def initial_state(self, key: jax.Array, params: Params) -> PyTree:
        """The memory before the first step, with at least one leaf."""
        ...

    def value_and_gradient(
        self, loss: DataLoss, params: Params, state: PyTree
    ) -> tuple[jax.Array, Params, PyTree, PyTree]:
        """Value and gradient of the data term with what is added to it; `penalty` is not.

        Returns the value, the gradient, the model's new state and the new memory.
        """
        ...


def losses_at(
    objective: AbstractObjective,
    logits: jax.Array,
    labels: jax.Array,
    step: int | jax.Array = 0,
) -> jax.Array:
    """`example_losses` at a step, `[B]`; the step goes to those objectives that name it."""
    if "step" in inspect.signature(objective.example_losses).parameters:
        return objective.example_losses(logits, labels, step=step)
    return objective.example_losses(logits, labels)


def is_stateful(objective: AbstractObjective) -> bool:
    """Whether a `TrainState` must carry a memory of the objective."""
    return getattr(objective, "stateful", False)


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


def softmax_hessian_penalty(logits: jax.Array) -> jax.Array:
    """`sum_c p_c (1 - p_c)` with p the softmax of each example's logits, `[B]`.

    It is the trace of the Hessian `diag(p) - p p^T` of the softmax cross-entropy in the logits:
    the part of the loss's curvature that no layer can remove. Source: the Hessian-loss variant in
    the reference code of *Unrolling SGD* (arXiv 2109.13398).
    """
    probabilities = jax.nn.softmax(logits, axis=-1)
    return jnp.sum(probabilities * (1.0 - probabilities), axis=-1)


def decayed(gamma: float, decay: float, every: int, step: int | jax.Array, dtype: Any) -> jax.Array:
    """`gamma / decay^floor(step / every)`, a scalar of the given dtype."""
    divisions = jnp.asarray(jnp.asarray(step) // every, dtype)
    return gamma / decay**divisions


class DirectionalDerivatives(NamedTuple):
    """A loss and its derivatives at a point, along v: g = grad L, H = its Hessian.

    Attributes:
      value: `L`, a scalar.
      gradient: `g`, like the parameters.
      product: `H v`, like the parameters.
      curvature_gradient: `grad (v^T H v)` with v constant, like the parameters.
      model_state: what the loss returned beside its value.
    """

    value: jax.Array
    gradient: Params
    product: Params
    curvature_gradient: Params
    model_state: PyTree


def directional_derivatives(
    loss: DataLoss, params: Params, direction: Params
) -> DirectionalDerivatives:
    """Everything that the singular-value penalty needs, in one nested forward pass.

    `grad_w (v^T H(w) v)` is the second derivative of `eps -> grad L(w + eps v)` at 0, the first one
    is `H v`, and the zeroth is the gradient that training needs anyway.
    """

    def gradient(at):
        (value, model_state), slope = jax.value_and_grad(loss, has_aux=True)(at)
        return slope, (value, model_state)

    def along(at):
        slope, product, kept = jax.jvp(gradient, (at,), (direction,), has_aux=True)
        return (slope, product), kept

    (slope, product), (_, third), (value, model_state) = jax.jvp(
        along, (params,), (direction,), has_aux=True
    )
    return DirectionalDerivatives(value, slope, product, third, model_state)


def power_iterations(loss: DataLoss, params: Params, vector: Params, iterations: int) -> Params:
    """`H v / ||H v||`, repeated: towards the eigenvector of the largest |eigenvalue| of H."""
    for _ in range(iterations):
        slope = jax.grad(lambda at: loss(at)[0])
        vector = normalized(jax.jvp(slope, (params,), (vector,))[1], vector)
    return vector


def normalized(vector: Params, otherwise: Params) -> Params:
    """The tree scaled to norm 1; `otherwise` where it is zero (a batch without weight: H = 0)."""
    square = _dot(vector, vector)
    is_zero = square == 0
    scale = jax.lax.rsqrt(jnp.where(is_zero, 1.0, square))
    return jax.tree.map(
        lambda leaf, other: jnp.where(is_zero, other, (leaf * scale).astype(leaf.dtype)),
        vector,
        otherwise,
    )


def random_direction(key: jax.Array, params: Params) -> Params:
    """A direction drawn uniformly: a tree like the parameters, of norm 1."""
    leaves, structure = jax.tree.flatten(params)
    drawn = [
        jax.random.normal(jax.random.fold_in(key, index), leaf.shape, leaf.dtype)
        for index, leaf in enumerate(leaves)
    ]
    vector = structure.unflatten(drawn)
    return normalized(vector, vector)


def _dot(one: Params, other: Params) -> jax.Array:
    return sum(
        jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss with the penalties of the literature; each is off at weight 0.

    Attributes:
      loss: `cross_entropy` or `squared_error`.
      sd_gamma: weight of the SD penalty (arXiv 2109.13398).
      sd_norm: `population`, `unbiased` or `reference`, see `sd_penalty`.
      l2: lambda of the penalty `lambda/2 * ||w||^2` over all parameters.
      sd_decay: the weight of the SD penalty is divided by this every `sd_decay_every` steps; 1
        keeps it.
      sd_decay_every: steps between two divisions; step `sd_decay_every` is the first with a
        smaller weight. The reference code divides every 10 epochs, one step later: after the
        first step of epoch 10, 20, ... Where no step is known, the weight of step 0 applies.
      hessian_gamma: weight of `softmax_hessian_penalty`, with `cross_entropy` only.
      singular_gamma: weight of the singular-value penalty `|v^T H v|`, see `value_and_gradient`.
      singular_iterations: its power iterations per step, 1 or more.

    Raises:
      InputError: on an unknown loss or norm, a weight that is negative or not finite, or options
        that do not go together.
    """

    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"
    sd_gamma: float = 0.0
    sd_norm: Literal["population", "unbiased", "reference"] = "population"
    l2: float = 0.0
    sd_decay: float = 1.0
    sd_decay_every: int = 0
    hessian_gamma: float = 0.0
    singular_gamma: float = 0.0
    singular_iterations: int = 1

    def __post_init__(self):
        if self.loss not in _LOSSES:
            raise InputError(f"unknown loss {self.loss!r}; choose one of {sorted(_LOSSES)}")
        if self.sd_norm not in ("population", "unbiased", "reference"):
            raise InputError(
                f"unknown sd_norm {self.sd_norm!r}; choose population, unbiased or reference"
            )
        for name in ("sd_gamma", "l2", "hessian_gamma", "singular_gamma"):
            value = getattr(self, name)
            if not _is_finite_number(value) or value < 0:
                raise InputError(f"{name} must not be negative, and finite; got {value!r}")
        if not _is_finite_number(self.sd_decay) or self.sd_decay <= 0:
            raise InputError(f"sd_decay must be a finite number above 0; got {self.sd_decay!r}")
        whole_number("sd_decay_every", self.sd_decay_every, least=0)
        if self.sd_decay != 1 and not self.sd_decay_every:
            raise InputError("sd_decay needs sd_decay_every: the steps between two divisions")
        if self.hessian_gamma and self.loss != "cross_entropy":
            raise InputError(
                "hessian_gamma weighs the Hessian of the softmax cross-entropy; "
                "set loss='cross_entropy'"
            )
        whole_number("singular_iterations", self.singular_iterations)

    def example_losses(
        self, logits: jax.Array, labels: jax.Array, step: int | jax.Array = 0
    ) -> jax.Array:
        losses = _LOSSES[self.loss](logits, labels)
        if self.sd_gamma:
            losses = losses + self._sd_weight(step, losses.dtype) * sd_penalty(logits, self.sd_norm)
        if self.hessian_gamma:
            losses = losses + self.hessian_gamma * softmax_hessian_penalty(logits)
        return losses

    def _sd_weight(self, step: int | jax.Array, dtype: Any) -> float | jax.Array:
        if self.sd_decay == 1:
            return self.sd_gamma
        return decayed(self.sd_gamma, self.sd_decay, self.sd_decay_every, step, dtype)

    def penalty(self, params: Params) -> jax.Array:
        if not self.l2:
            return jnp.zeros(())
        return 0.5 * self.l2 * sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params))

    @property
    def stateful(self) -> bool:
        """Whether the singular-value penalty is on, whose vector travels in `TrainState`."""
        return self.singular_gamma > 0

    def initial_state(self, key: jax.Array, params: Params) -> PyTree:
        """The vector before the first step: a random direction of norm 1, like the parameters."""
        return random_direction(key, params)

    def value_and_gradient(
        self, loss: DataLoss, params: Params, state: PyTree
    ) -> tuple[jax.Array, Params, PyTree, PyTree]:
        """The data term with its singular-value penalty: `data(w) + gamma |v^T H(w) v|`.

        H is the Hessian of this batch's data term, `penalty` not included. Its largest singular
        value is its largest |eigenvalue|, and v comes from `singular_iterations` power iterations
        per step, started from the vector of the step before. The last of them is a by-product of
        the gradient and serves the next step, so v is always one iteration behind, and with one
        iteration per step it has not seen the batch that it is used on.

        v is a constant of the gradient. That is right where v is an eigenvector (Hellmann and
        Feynman): `d(v^T H v) = v^T dH v + 2 dv^T H v`, and with `H v = lambda v` the second term is
        `2 lambda dv^T v = lambda d(v^T v) = 0`, since v keeps its norm. Elsewhere the term left out
        is of the size of the residual `||H v - lambda v||`. In derivatives of a whole run v is no
        constant: it is part of the state.

        Cost of a training step, in plain ones: 3.7 to 4.1 with one iteration, 5.1 to 5.7 with two
        (small CNN 16-32-32 on 32x32x3, batch 64, float32, two CPU cores; l2 1.1, the others
        1.00 to 1.01).

        Args:
          loss: the data term of this batch as a function of the parameters.
          params: where to take the gradient.
          state: v from the step before, like the parameters, of norm 1.

        Returns:
          value, gradient, the model's new state, the vector for the next step.
        """
        vector = power_iterations(loss, params, state, self.singular_iterations - 1)
        at = directional_derivatives(loss, params, vector)
        curvature = _dot(vector, at.product)
        signed = self.singular_gamma * jnp.sign(curvature)
        gradient = jax.tree.map(
            lambda slope, third: slope + (signed * third).astype(slope.dtype),
            at.gradient,
            at.curvature_gradient,
        )
        value = at.value + self.singular_gamma * jnp.abs(curvature)
        return value, gradient, at.model_state, normalized(at.product, vector)


def _is_finite_number(value: Any) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


_LOSSES = {"cross_entropy": cross_entropy, "squared_error": squared_error}
