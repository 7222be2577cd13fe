"""DeltaGrad: exact gradients now and then, L-BFGS between (Wu, Dobriban, Davidson, 2006.14755).

    d <- d - eta B_t d + eta g_t              between the exact steps
    d <- d - eta [G'_t(w_t + d) - G'_t(w_t)] + eta g_t    in a burn-in and at every period-th step

in the notation of `unrolling.recorded` (the paper's algorithm 1, its stochastic form). Each exact
step gives a pair (d, G'_t(w_t + d) - G'_t(w_t)) for the L-BFGS matrix B_t; a pair without positive
curvature is not used (the paper's rule for non-convex losses takes an exact step there: so does the
next step here).

With full batches a secant pair speaks for the next steps, since the loss is the same. With small
batches it speaks for one batch and is applied to others; docs/unrolling.md has what comes of it.

Rejected: keeping each step's gradient beside the weights, as the paper does. With plain SGD the
gradient is the difference of two recorded weights.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from unroll.checks import whole_number
from unroll.errors import DivergenceError
from unroll.problem import Method, Unlearned
from unroll.training import loop
from unroll.training.timing import Stopwatch
from unroll.tree import is_finite, to_host
from unroll.unrolling.recorded import (
    forgotten_slots,
    penalty_gradient,
    preparation_note,
    record_weights,
    slot_gradient,
)


def deltagrad(period: int = 5, burn_in: int = 10, memory: int = 2) -> Method:
    """Replays without the forget set, with exact gradients at some steps only.

    Args:
      period: every period-th step is exact (the paper's T0).
      burn_in: the first steps, all exact (j0).
      memory: pairs of the L-BFGS matrix.

    Raises (when called):
      InputError: for anything but plain sgd, batch normalisation, a `renormalise` denominator, or a
        record that does not fit the memory.
      DivergenceError: if the recursion blows up.
    """
    for name, value in (("period", period), ("burn_in", burn_in), ("memory", memory)):
        whole_number(name, value)

    def unlearn(key, access):
        del key
        run = access.run
        recorded = record_weights(run, "deltagrad")
        watch = Stopwatch()
        forgotten = forgotten_slots(run.schedule, access.forget_ids)
        difference, exact = _follow(
            run.spec,
            recorded.unflatten,
            loop.device_examples(run.dataset),
            run.key,
            recorded.learning_rates,
            recorded.weights,
            jnp.asarray(run.schedule),
            jnp.asarray(access.twin_weights),
            jnp.asarray(run.weights),
            jnp.asarray(forgotten),
            period,
            burn_in,
            memory,
        )
        params = to_host(recorded.unflatten(recorded.weights[-1] + difference))
        if not is_finite(params):
            raise DivergenceError("deltagrad diverged; choose a shorter period")
        exact = np.asarray(exact)
        slots = (run.schedule >= 0).sum(axis=1)
        return Unlearned(
            params if len(access.forget_ids) else run.state.params,
            run.state.model_state,
            # At an exact step G'_t(w_t) is the recorded gradient less the forgotten one.
            example_gradients=int((slots * exact).sum() + (forgotten >= 0).sum()),
            info={
                **preparation_note(
                    recorded.seconds,
                    recorded.example_gradients,
                    run,
                    recorded.weights.nbytes / 1e6,
                ),
                "exact_steps": int(exact.sum()),
            },
            seconds=watch.seconds(),
        )

    hyperparameters = {"period": period, "burn_in": burn_in, "memory": memory}
    return Method("deltagrad", hyperparameters, frozenset({"run"}), unlearn)


def quasi_newton_product(pairs_s: jax.Array, pairs_y: jax.Array, vector: jax.Array) -> jax.Array:
    """L-BFGS approximation of a Hessian times a vector, from pairs `[m, P]`, newest last.

    The compact form of Byrd, Nocedal and Schnabel (1994), with the Hessian itself and not its
    inverse; unused pairs are rows of zeros, and without any pair the product is zero.
    """
    sy = pairs_s @ pairs_y.T
    used = jnp.diag(sy) > 0
    diagonal = jnp.where(used, jnp.diag(sy), 1.0)
    newest = len(pairs_s) - 1 - jnp.argmax(used[::-1])
    sigma = (pairs_y[newest] @ pairs_y[newest]) / diagonal[newest] * used.any()
    lower = jnp.tril(sy, -1)
    left = sigma * pairs_s @ pairs_s.T + jnp.diag(jnp.where(used, 0.0, 1.0))
    middle = jnp.block([[left, lower], [lower.T, -jnp.diag(diagonal)]])
    right = jnp.concatenate([sigma * pairs_s @ vector, pairs_y @ vector])
    solved = jnp.linalg.solve(middle, right)
    size = len(pairs_s)
    return sigma * vector - sigma * solved[:size] @ pairs_s - solved[size:] @ pairs_y


@jax.jit(static_argnames=("spec", "unflatten", "period", "burn_in", "memory"))
def _follow(
    spec,
    unflatten,
    data,
    key,
    rates,
    trajectory,
    schedule,
    twin_omega,
    omega,
    forgotten,
    period,
    burn_in,
    memory,
):
    """The difference to the twin after the last step `[P]`, and which steps were exact `[T]`."""
    gradient = slot_gradient(spec, unflatten, data, key, schedule.shape[1])
    penalty = penalty_gradient(spec, unflatten)

    def body(step, carry):
        d, pairs_s, pairs_y, again, exact = carry
        w, slots, gone, rate = trajectory[step], schedule[step], forgotten[step], rates[step]
        removed = gradient(w, step, gone, omega[gone])

        def exactly(pairs_s, pairs_y):
            # With rate 0 the recorded weights say nothing of the gradient, and it has no effect.
            whole = (w - trajectory[step + 1]) / jnp.where(rate == 0, 1.0, rate)
            moved = gradient(w + d, step, slots, twin_omega[slots]) + penalty(w + d)
            y = moved - (whole - removed)
            good = (rate != 0) & (d @ y > 1e-12 * (d @ d))
            shifted_s, shifted_y = (
                jnp.roll(pairs, -1, axis=0).at[-1].set(new)
                for pairs, new in ((pairs_s, d), (pairs_y, y))
            )
            kept_s = jnp.where(good, shifted_s, pairs_s)
            kept_y = jnp.where(good, shifted_y, pairs_y)
            return y, kept_s, kept_y, ~good & jnp.any(d != 0)

        def approximately(pairs_s, pairs_y):
            change = quasi_newton_product(pairs_s, pairs_y, d)
            return change, pairs_s, pairs_y, jnp.asarray(False)

        here = (step < burn_in) | (step % period == 0) | again
        change, pairs_s, pairs_y, again = jax.lax.cond(
            here, exactly, approximately, pairs_s, pairs_y
        )
        d = d - rate * (change - removed)
        return d, pairs_s, pairs_y, again, exact.at[step].set(here)

    zero = jnp.zeros_like(trajectory[0])
    pairs = jnp.zeros((memory, zero.size), zero.dtype)
    start = (zero, pairs, pairs, jnp.asarray(False), jnp.zeros(len(rates), bool))
    d, _, _, _, exact = jax.lax.fori_loop(0, len(rates), body, start)
    return d, exact
