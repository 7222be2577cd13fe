"""Gaussian noise on the parameters, with a sensitivity that says where it comes from.

Let w be the unlearned and w' the model of comparison on the retained examples. If ||w - w'|| <= v,
noise N(0, sigma^2 I) on both makes them (epsilon, delta)-close as soon as sigma hides a shift of v.
That is a guarantee if the bound v was proved and fixed beforehand. A measured distance is none: it
is one number of one pair of models.

Design: the source of v is part of it, and decides what is said. Rejected: a flag that lets a
measured distance count; there is no such use of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unroll import tree
from unroll.checks import positive_number
from unroll.deletion.gaussian_mechanism import check_guarantee, gaussian_sigma
from unroll.errors import InputError
from unroll.metrics.verification import verification_error
from unroll.models.linear import LogisticRegression
from unroll.objectives import Objective, losses_at
from unroll.problem import Problem
from unroll.training.spec import TrainSpec, apply_model
from unroll.types import Params


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The distance that noise is to hide.

    Attributes:
      value: v; of a measured one `None` until it is measured.
      source: `proved` or `measured`.
      argument: of a proved one, why it holds and what the model of comparison is.
      distance: `(problem, params, twin) -> float` for the unlearned parameters before noise: the
        proved bound of this very update, which must not exceed `value`, or the measurement.

    Raises:
      InputError: if a proved sensitivity has no value or no argument, or a measured one no number
        and no measurement.
    """

    value: float | None
    source: Literal["proved", "measured"]
    argument: str = ""
    distance: Callable[[Problem, Params, Params | None], float] | None = None

    def __post_init__(self):
        if self.source not in ("proved", "measured"):
            raise InputError(f"unknown source {self.source!r}; choose proved or measured")
        if self.value is not None:
            positive_number("sensitivity", self.value)
        if self.source == "proved" and (self.value is None or not self.argument):
            raise InputError("a proved sensitivity needs its value beforehand, and its argument")
        if self.value is None and self.distance is None:
            raise InputError("a measured sensitivity needs its value, or distance= to measure it")


class Noisy(NamedTuple):
    """Parameters with their noise, and what may be said of them.

    Attributes:
      params: what would be served.
      statement: one sentence.
      guarantee: (epsilon, delta), or `None`.
      distance: the bound or measurement of this update, where there is one.
      covered: False if a proved bound of this update is above the sensitivity.
    """

    params: Params
    statement: str
    guarantee: tuple[float, float] | None
    distance: float | None = None
    covered: bool = True


@dataclasses.dataclass(frozen=True)
class NoNoise:
    """The third step left out."""

    def __call__(
        self, key: jax.Array, problem: Problem, params: Params, twin: Params | None
    ) -> Noisy:
        del key, problem, twin
        return Noisy(params, "No noise was added: nothing is guaranteed.", None)


@dataclasses.dataclass(frozen=True)
class OutputNoise:
    """Noise of the size that the sensitivity takes.

    Attributes:
      epsilon: above 0.
      delta: in (0, 1).
      sensitivity: what is to be hidden.
      add: False only says how much noise it would be; for measured sensitivities.
    """

    epsilon: float
    delta: float
    sensitivity: Sensitivity
    add: bool = True

    def __post_init__(self):
        check_guarantee(self.epsilon, self.delta)
        if self.sensitivity.source == "proved" and not self.add:
            raise InputError("a guarantee needs its noise; leave add=False out")

    def __call__(
        self, key: jax.Array, problem: Problem, params: Params, twin: Params | None
    ) -> Noisy:
        given = self.sensitivity
        distance = None if given.distance is None else given.distance(problem, params, twin)
        length = given.value if given.value is not None else distance
        sigma = gaussian_sigma(self.epsilon, self.delta, length)
        if given.source == "measured":
            said = measured_statement(length, self.epsilon, self.delta, tree.flatten(params).size)
            served = add_noise(key, params, sigma) if self.add else params
            return Noisy(served, said, None, distance)
        covered = distance is None or distance <= length
        served = add_noise(key, params, sigma)
        if not covered:
            said = f"The proved bound of this update, {distance:.4g}, is above {length:.4g}."
            return Noisy(served, said, None, distance, False)
        said = (
            f"({self.epsilon:g}, {self.delta:g})-close to the model of comparison with the same "
            f"noise (standard deviation {sigma:.4g}), since the distance before noise is at most "
            f"{length:.4g}: {given.argument}"
        )
        return Noisy(served, said, (self.epsilon, self.delta), distance)


def measured_statement(distance: float, epsilon: float, delta: float, size: int) -> str:
    """What may be said of a measured distance: how much noise it would take if it were a bound.

    Args:
      distance: the measured verification error.
      epsilon: above 0.
      delta: in (0, 1).
      size: number of parameters.
    """
    sigma = gaussian_sigma(epsilon, delta, distance)
    return (
        f"Noise that would be needed if the sensitivity were {distance:.4g}: standard deviation "
        f"{sigma:.4g} in each of {size} parameters, a norm of {sigma * math.sqrt(size):.4g}, for "
        f"epsilon {epsilon:g} and delta {delta:g}. The distance was measured and is no bound, so "
        "nothing is guaranteed."
    )


def measured_distance() -> Sensitivity:
    """The verification error against the twin, which the pipeline must be given."""

    def distance(problem, params, twin):
        del problem
        if twin is None:
            raise InputError("a measured sensitivity needs the retrained model: give twin=")
        return verification_error(params, twin)

    return Sensitivity(None, "measured", distance=distance)


def strongly_convex_distance(value: float) -> Sensitivity:
    """A proved sensitivity for L2-regularised logistic regression or least squares.

    F, the mean loss of the retained examples plus l2/2 ||w||^2, is l2 strongly convex, so that
    ||w - w'|| <= ||grad F(w)|| / l2 with w' its minimiser, the model of comparison. The gradient is
    taken in float64.

    Args:
      value: the sensitivity, fixed beforehand; an update with a larger bound is refused.

    Raises (when measured):
      InputError: for any other model or objective.
    """
    argument = "strong convexity, ||w - w'|| <= ||grad F(w)|| / l2, w' the optimum without S"
    return Sensitivity(
        value, "proved", argument, lambda problem, params, _: optimum_distance(problem, params)
    )


def optimum_distance(problem: Problem, params: Params) -> float:
    """`||grad F(w)|| / l2`, see `strongly_convex_distance`."""
    spec, weights = problem.run.spec, problem.run.weights[problem.retain]
    objective = spec.objective
    plain = type(objective) is Objective and objective.l2 > 0
    plain = plain and objective == Objective(loss=objective.loss, l2=objective.l2)
    if not (type(spec.model) is LogisticRegression and plain and spec.augmentation is None):
        raise InputError(
            "the distance to the optimum is bounded for the linear model with l2 > 0 and no other "
            "penalty or augmentation; choose a measured sensitivity"
        )
    if weights.min() < 0:
        raise InputError("a negative example weight makes the loss non-convex; use weights of 0 up")
    data = problem.retain_data
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        arguments = jnp.asarray(data.inputs), jnp.asarray(data.labels), jnp.asarray(weights)
        slope = tree.to_host(_mean_loss_gradient(spec, wide, *arguments))
    return tree.norm(slope) / objective.l2


@jax.jit(static_argnames=("spec",))
def _mean_loss_gradient(
    spec: TrainSpec, params: Params, inputs: jax.Array, labels: jax.Array, weights: jax.Array
) -> Params:
    def loss(params):
        given = inputs if spec.preprocess is None else spec.preprocess(inputs)
        logits, _ = apply_model(spec, params, {}, given, train=False)
        losses = losses_at(spec.objective, logits, labels)
        return jnp.vdot(weights, losses) / weights.sum() + spec.objective.penalty(params)

    return jax.grad(loss)(params)


def add_noise(key: jax.Array, params: Params, sigma: float) -> Params:
    """Independent Gaussian noise on every entry, drawn in float64, rounded to the leaf's dtype."""
    leaves, structure = jax.tree.flatten(params)
    with jax.enable_x64(True):
        drawn = [
            np.asarray(
                jax.random.normal(jax.random.fold_in(key, index), np.shape(leaf), np.float64)
            )
            for index, leaf in enumerate(leaves)
        ]
    return structure.unflatten(
        [
            (np.asarray(leaf, np.float64) + sigma * noise).astype(leaf.dtype)
            for leaf, noise in zip(leaves, drawn, strict=True)
        ]
    )
