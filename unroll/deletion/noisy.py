"""Noisy fine-tuning: a guarantee for any network, by clipping and noise on the retained data.

Koloskova et al. 2025, "Certified Unlearning for Neural Networks" (arXiv 2506.06985). The original
model x^ saw the forget set S; the steps see retained examples only. With r a reference that depends
on no data (the initial parameters of a seed), clip(x, C) the point of the ball of radius C around r
nearest to x, and xi_t ~ N(0, sigma^2 I):

    gradient   x_0 = clip(x^, C0),   x_{t+1} = x_t - eta (g_t |_{<= C1} + decay (x_t - r)) + xi_t
    model      x_0 = x^,             x_{t+1} = clip(x_t - eta (g_t + decay (x_t - r)), C0) + xi_t

g_t is the gradient of a batch of retained examples at x_t. Compare with the same steps, batches and
noise law from any other start, for example a model retrained without S: that is the algorithm on
D - S which the result is (epsilon, delta)-close to, in both directions. Both start from points, and
from then on only the start differs. No property of the loss is used.

Gradient clipping, by shifted Renyi divergences (Feldman et al., arXiv 1808.06651). One step without
noise brings two points at distance z to at most `rho z + s`, rho = |1 - eta decay|, s = 2 eta C1,
since the two clipped gradients differ by at most 2 C1. Noise takes a distance a_t off at a Renyi
divergence of alpha a_t^2 / (2 sigma^2). From z_0 = 2 C0 to z_T = 0 after T steps,

    sum_t rho^(T-t) a_t = N = 2 C0 rho^T + s sum_t rho^(T-t)

and the least sum of squares, by Cauchy and Schwarz at a_t ~ rho^(T-t), which keeps all z_t >= 0, is

    A = N^2 / sum_t rho^(2 (T-t)),      D_alpha <= alpha A / (2 sigma^2)

for rho <= 1. This is the Renyi divergence of a Gaussian mechanism of sensitivity sqrt(A); one step
without decay: sqrt(A) = 2 (C0 + eta C1). From there `dp_accounting` goes on to epsilon at delta.

Model clipping. After the clip two points are at most 2 C0 apart, so one step is a kernel whose
hockey-stick contraction is the largest divergence that it makes of two points (Asoodeh et al.,
arXiv 2012.11035): gaussian_delta(epsilon; 2 C0, sigma). The starts have a divergence of at most 1:

    delta(epsilon) = gaussian_delta(epsilon; 2 C0, sigma)^T

Further steps on the retained data without noise (`quiet_steps`) are post-processing.

Design: the batch gradient is clipped, not each example's, since both runs see the same examples;
a step costs what a training step costs. The noise key is a secret, apart from the run's. Noise is
drawn in the parameters' float32: the guarantee is that of the real-valued algorithm, as usual.
Rejected: DP-SGD with group privacy from the start of training, which also costs the original model
its accuracy, and whose epsilon grows with the size of S.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from unroll import tree
from unroll.checks import positive_number, whole_number
from unroll.data.schedule import make_schedule
from unroll.deletion.gaussian_mechanism import check_guarantee, gaussian_delta, gaussian_sigma
from unroll.errors import DivergenceError, InputError
from unroll.objectives import is_stateful
from unroll.problem import Problem
from unroll.training.loop import device_examples
from unroll.training.spec import TrainSpec
from unroll.training.step import Examples, batch_loss, gather, initial_state
from unroll.types import Params


@dataclasses.dataclass(frozen=True)
class NoisySteps:
    """What the accounting depends on.

    Attributes:
      clipping: `gradient` or `model`.
      radius: C0, of the ball around the reference.
      gradient_norm: C1, of `gradient` clipping.
      learning_rate: eta.
      steps: T, with noise.
      decay: pull towards the reference; eta decay is at most 1.

    Raises:
      InputError: if one of them is out of range.
    """

    clipping: Literal["gradient", "model"]
    radius: float
    learning_rate: float
    steps: int
    gradient_norm: float = 1.0
    decay: float = 0.0

    def __post_init__(self):
        if self.clipping not in ("gradient", "model"):
            raise InputError(f"unknown clipping {self.clipping!r}; choose gradient or model")
        for name in ("radius", "learning_rate", "gradient_norm"):
            positive_number(name, getattr(self, name))
        whole_number("steps", self.steps)
        if not 0 <= self.decay * self.learning_rate <= 1 or self.decay < 0:
            raise InputError(f"decay={self.decay!r} must be from 0 to 1 / learning_rate")

    @property
    def sensitivity(self) -> float:
        """sqrt(A) of `gradient` clipping: the length that the noise of all steps has to hide.

        Raises:
          InputError: with `model` clipping, whose steps do not add up to one length.
        """
        if self.clipping == "model":
            raise InputError("model clipping has no sensitivity of all its steps; see `epsilon`")
        shrink = 1 - self.learning_rate * self.decay
        powers = shrink ** np.arange(self.steps, dtype=np.float64)
        first = 2 * self.radius * shrink**self.steps
        needed = first + 2 * self.learning_rate * self.gradient_norm * powers.sum()
        return float(needed / np.linalg.norm(powers))


def renyi_divergence(noisy: NoisySteps, sigma: float, order: float) -> float:
    """Bound on the Renyi divergence of `gradient` clipping at an order above 1."""
    return order * noisy.sensitivity**2 / (2 * sigma**2)


def epsilon_of(noisy: NoisySteps, sigma: float, delta: float) -> float:
    """The epsilon of the result at a delta.

    Args:
      noisy: the steps.
      sigma: standard deviation of the noise of each step.
      delta: in (0, 1).

    Raises:
      InputError: if a number is out of range.
    """
    positive_number("sigma", sigma)
    check_guarantee(1.0, delta)
    if noisy.clipping == "model":
        from dp_accounting.gaussian_mechanism import get_epsilon_gaussian

        each = delta ** (1 / noisy.steps)
        return float(get_epsilon_gaussian(sigma / (2 * noisy.radius), each))
    import dp_accounting

    accountant = dp_accounting.rdp.RdpAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(sigma / noisy.sensitivity))
    return float(accountant.get_epsilon(delta))


def epsilons(
    noisy: NoisySteps, sigma: float, delta: float, steps: Sequence[int]
) -> dict[int, float]:
    """The epsilon at a delta for several numbers of steps."""
    return {
        count: epsilon_of(dataclasses.replace(noisy, steps=count), sigma, delta) for count in steps
    }


def sigma_for(noisy: NoisySteps, epsilon: float, delta: float) -> float:
    """The standard deviation of the noise of each step for a guarantee.

    Raises:
      InputError: if a number is out of range.
    """
    check_guarantee(epsilon, delta)
    if noisy.clipping == "model":
        return gaussian_sigma(epsilon, delta ** (1 / noisy.steps), 2 * noisy.radius)
    import dp_accounting

    found = dp_accounting.calibrate_dp_mechanism(
        dp_accounting.rdp.RdpAccountant,
        dp_accounting.GaussianDpEvent,
        epsilon,
        delta,
        dp_accounting.LowerEndpointAndGuess(1e-3, 1.0),
        tol=1e-9,
    )
    return float(found) * noisy.sensitivity


def delta_of(noisy: NoisySteps, sigma: float, epsilon: float) -> float:
    """The delta of `model` clipping at an epsilon, in closed form.

    Raises:
      InputError: with `gradient` clipping, which is accounted for by `epsilon_of`.
    """
    if noisy.clipping != "model":
        raise InputError("delta_of is of model clipping; use epsilon_of")
    return gaussian_delta(epsilon, 2 * noisy.radius, sigma) ** noisy.steps


@dataclasses.dataclass(frozen=True)
class NoisyUnlearned:
    """Result of noisy fine-tuning.

    Attributes:
      params: parameters, on the host.
      epsilon: of the guarantee.
      delta: of the guarantee.
      sigma: standard deviation of the noise of each step.
      example_gradients: spent.
      info: how far the original was from the reference, and how often something was clipped; the
        guarantee is of `params` alone, so these are for whoever may know S.
    """

    params: Params
    epsilon: float
    delta: float
    sigma: float
    example_gradients: int
    info: dict[str, Any]


def noisy_fine_tune(
    key: jax.Array,
    problem: Problem,
    noisy: NoisySteps,
    *,
    epsilon: float,
    delta: float,
    batch_size: int = 64,
    quiet_steps: int = 0,
    reference_seed: int = 0,
) -> NoisyUnlearned:
    """Unlearns by noisy fine-tuning, with as much noise as the guarantee takes.

    Args:
      key: typed key of the noise and the batches, a secret.
      problem: the request. Only the retained examples and the original parameters are used.
      noisy: the steps.
      epsilon: of the guarantee.
      delta: of the guarantee.
      batch_size: retained examples of a step.
      quiet_steps: steps afterwards with neither noise nor clipping.
      reference_seed: of the initial parameters that are the centre r; r must not depend on the
        data, so it must not be the seed of a search for a good model.

    Raises:
      InputError: if a number is out of range, or the model has other variables than parameters
        (running averages, which carry S and get no noise) or an objective with a memory.
      DivergenceError: if the result is not finite.
    """
    run, spec = problem.run, problem.run.spec
    if run.state.model_state:
        raise InputError("noisy fine-tuning needs a model without running averages; use group")
    if is_stateful(spec.objective):
        raise InputError("noisy fine-tuning does not go with the singular-value penalty")
    whole_number("batch_size", batch_size)
    whole_number("quiet_steps", quiet_steps, least=0)
    sigma = sigma_for(noisy, epsilon, delta)
    retain = problem.retain_data
    noise_key, order_key, example_key = (jax.random.fold_in(key, part) for part in range(3))
    schedule = _schedule(order_key, len(retain), batch_size, noisy.steps + quiet_steps)
    centre = initial_state(spec, jax.random.key(reference_seed), retain.inputs).params
    reference, unravel = ravel_pytree(centre)
    start = ravel_pytree(jax.device_put(run.state.params))[0] - reference
    distance = float(jnp.linalg.norm(start))
    if noisy.clipping == "gradient":
        start = _clipped(start, noisy.radius)
    moved, clipped = _fine_tune(
        spec,
        noisy,
        unravel,
        start,
        reference,
        jnp.asarray(sigma, start.dtype),
        device_examples(retain),
        jnp.asarray(run.weights[problem.retain], start.dtype),
        jnp.asarray(schedule),
        noise_key,
        example_key,
    )
    params = tree.to_host(unravel(reference + moved))
    if not tree.is_finite(params):
        raise DivergenceError("noisy fine-tuning diverged; lower the learning rate or the radius")
    info = {"distance_from_reference": distance, "share_clipped": float(clipped) / noisy.steps}
    spent = int((schedule >= 0).sum())
    return NoisyUnlearned(params, epsilon_of(noisy, sigma, delta), delta, sigma, spent, info)


def _schedule(key: jax.Array, count: int, batch_size: int, steps: int) -> np.ndarray:
    seed = int(jax.random.randint(key, (), 0, np.iinfo(np.int32).max))
    size = min(batch_size, count)
    epochs = math.ceil(steps / math.ceil(count / size))
    return make_schedule(seed, count, batch_size=size, epochs=epochs)[:steps]


def _clipped(vector: jax.Array, length: float) -> jax.Array:
    # Not by a quotient of equal numbers: inside the ball nothing may change.
    norm = jnp.linalg.norm(vector)
    return jnp.where(norm > length, vector * (length / norm), vector)


@jax.jit(static_argnames=("spec", "noisy", "unravel"))
def _fine_tune(
    spec: TrainSpec,
    noisy: NoisySteps,
    unravel: Any,
    start: jax.Array,
    reference: jax.Array,
    sigma: jax.Array,
    examples: Examples,
    weights: jax.Array,
    schedule: jax.Array,
    noise_key: jax.Array,
    example_key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The steps in coordinates around the reference; the result, and how many were clipped."""

    def gradient(at, step):
        batch = gather(spec, examples, weights, example_key, step, schedule[step])
        slope = jax.grad(lambda params: batch_loss(spec, params, {}, batch)[0])
        return ravel_pytree(slope(unravel(reference + at)))[0]

    def noisily(step, carry):
        at, count = carry
        slope = gradient(at, step)
        if noisy.clipping == "gradient":
            clipped = _clipped(slope, noisy.gradient_norm)
            changed = jnp.any(clipped != slope)
            following = at - noisy.learning_rate * (clipped + noisy.decay * at)
        else:
            free = at - noisy.learning_rate * (slope + noisy.decay * at)
            following = _clipped(free, noisy.radius)
            changed = jnp.any(following != free)
        noise = jax.random.normal(jax.random.fold_in(noise_key, step), at.shape, at.dtype)
        return following + sigma * noise, count + changed

    def quietly(step, at):
        return at - noisy.learning_rate * gradient(at, step)

    at, count = jax.lax.fori_loop(0, noisy.steps, noisily, (start, jnp.zeros((), jnp.int32)))
    return jax.lax.fori_loop(noisy.steps, len(schedule), quietly, at), count
