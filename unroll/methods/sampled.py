"""Following the difference to the twin on a sample of each batch.

    d <- d - eta [G_s(w_t + d) - G_s(w_t)] + eta g_t,   G_s = (1/B) sum_{sample} grad loss / q_b

`unrolling.recorded` has the exact recursion; here its bracket is an unbiased estimate from a few
examples of each batch, drawn once for all deletions with probabilities q proportional to
`||softmax(z) - y||` (their share of the gradient in the logits; a confident example has no
curvature to speak of). The gradients of the sample at w_t are recorded, so a deletion costs one
gradient per sampled slot and one per forgotten use. With the whole batch it is the twin itself, up
to rounding.

Error: each step adds `eta Var(H_n d / q)^(1/2)`, independent over the steps, so the error grows
with `eta sqrt(T / examples)`. It is small where few examples of a batch carry curvature (digits)
and hopeless where all do, in directions of their own; there, `eta H_s` also amplifies
(docs/unrolling.md has the figures).

Rejected: a Hessian-vector product on the sample (twice the gradients, and blind beyond first
order), and drawing the sample anew for every deletion (its gradients at w_t would have to be paid
each time).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from unroll.checks import whole_number
from unroll.errors import DivergenceError, InputError
from unroll.problem import Method, Unlearned
from unroll.training import loop
from unroll.training.spec import apply_model
from unroll.training.step import gather
from unroll.training.timing import Stopwatch
from unroll.tree import is_finite, to_host
from unroll.unrolling.recorded import (
    forgotten_slots,
    penalty_gradient,
    preparation_note,
    record_weights,
    slot_gradient,
)


def sampled(examples: int = 8) -> Method:
    """Follows the difference to the twin with a few examples of each batch.

    Args:
      examples: how many of each batch, at most all.

    Raises (when called):
      InputError: for anything but plain sgd, batch normalisation, a `renormalise` denominator, or a
        record that does not fit the memory.
      DivergenceError: if the sampled recursion blows up.
    """
    whole_number("examples", examples)

    def unlearn(key, access):
        run = access.run
        batch_size = run.schedule.shape[1]
        if examples > batch_size:
            raise InputError(f"examples={examples} of a batch of {batch_size}; choose fewer")
        recorded = record_weights(run, "sampled")
        watch = Stopwatch()
        data = loop.device_examples(run.dataset)
        slots, scales, gradients = jax.block_until_ready(
            _draw_and_record(
                run.spec,
                recorded.unflatten,
                data,
                jnp.asarray(run.weights),
                (run.key, key),
                jnp.asarray(run.schedule),
                recorded.weights,
                examples,
            )
        )
        prepared = recorded.seconds + watch.seconds()
        # A forward pass over the batch to draw from, a third of a gradient, and the sample's own.
        spent = recorded.example_gradients * (1 + 1 / 3) + run.steps * examples

        watch = Stopwatch()
        forgotten = forgotten_slots(run.schedule, access.forget_ids)
        difference = _follow(
            run.spec,
            recorded.unflatten,
            data,
            run.key,
            recorded.learning_rates,
            recorded.weights,
            (slots, scales, gradients),
            jnp.asarray(np.isin(np.arange(len(run.dataset)), access.forget_ids)),
            jnp.asarray(run.weights),
            forgotten,
            batch_size,
        )
        params = to_host(recorded.unflatten(recorded.weights[-1] + difference))
        if not is_finite(params):
            raise DivergenceError("the sampled recursion diverged; take more examples")
        megabytes = (recorded.weights.nbytes + gradients.nbytes) / 1e6
        return Unlearned(
            params if len(access.forget_ids) else run.state.params,
            run.state.model_state,
            example_gradients=int((np.asarray(slots) >= 0).sum() + (forgotten >= 0).sum()),
            info=preparation_note(prepared, spent, run, megabytes),
            seconds=watch.seconds(),
        )

    return Method("sampled", {"examples": examples}, frozenset({"run"}), unlearn)


def inclusion_probabilities(scores: jax.Array, count: int) -> jax.Array:
    """Probabilities `[B]` proportional to the scores, at most 1, that sum to `count`.

    Examples whose share would be above 1 are taken for certain, and the others share what is left:
    with the scores in descending order, the fewest certain ones such that no other share exceeds 1.
    Scores of 0 have probability 0; where fewer than `count` are positive, all these have 1.
    """
    descending = jnp.sort(scores)[::-1]
    rest = jnp.cumsum(descending[::-1])[::-1]  # rest[c]: sum without the c largest
    certain = jnp.arange(len(scores))
    fits = (count - certain) * descending <= rest
    number = jnp.argmax(fits)
    share = (count - number) * scores / jnp.maximum(rest[number], 1e-30)
    q = jnp.where(scores > descending[number], 1.0, jnp.minimum(share, 1.0))
    return jnp.where(scores > 0, jnp.where(fits.any(), q, 1.0), 0.0)


def systematic_sample(q: jax.Array, uniform: jax.Array, count: int) -> jax.Array:
    """Positions `[count + 1]` of a systematic sample with inclusion probabilities q; B marks none.

    Rounding of the sum of q can give one position more than `count`.
    """
    above = jnp.cumsum(q) + uniform
    chosen = jnp.floor(above) > jnp.floor(above - q)
    positions = jnp.where(chosen, jnp.arange(len(q)), len(q))
    return jnp.sort(positions)[: count + 1]


@jax.jit(static_argnames=("spec", "unflatten", "examples"))
def _draw_and_record(spec, unflatten, data, omega, keys, schedule, trajectory, examples):
    """Sampled slots `[T, b + 1]`, their scales omega / q, and their gradients at w_t `[T, P]`."""
    run_key, sampling_key = keys
    gradient = slot_gradient(spec, unflatten, data, run_key, schedule.shape[1])

    def body(_, step):
        w, slots = trajectory[step], schedule[step]
        batch = gather(spec, data, omega, run_key, step, slots)
        logits, _ = apply_model(spec, unflatten(w), {}, batch.inputs, train=False)
        residual = jax.nn.softmax(logits) - jax.nn.one_hot(batch.labels, logits.shape[-1])
        scores = jnp.linalg.norm(residual, axis=-1) + 1e-4
        q = inclusion_probabilities(jnp.where(batch.weights != 0, scores, 0.0), examples)
        uniform = jax.random.uniform(jax.random.fold_in(sampling_key, step))
        positions = systematic_sample(q, uniform, examples)
        none = positions == len(slots)
        chosen = jnp.where(none, -1, slots[positions % len(slots)])
        scale = jnp.where(none, 0.0, (batch.weights / jnp.maximum(q, 1e-30))[positions % len(q)])
        return None, (chosen, scale, gradient(w, step, chosen, scale))

    return jax.lax.scan(body, None, jnp.arange(len(schedule)))[1]


@jax.jit(static_argnames=("spec", "unflatten", "batch_size"))
def _follow(
    spec, unflatten, data, key, rates, trajectory, sample, forget, omega, forgotten, batch_size
):
    """The difference to the twin after the last step, `[P]`.

    A forgotten example in the sample has gradients on record that the twin never had: they are
    taken out together with its contribution to g_t, in one gradient at w_t.
    """
    slots, scales, gradients = sample
    gradient = slot_gradient(spec, unflatten, data, key, batch_size)
    penalty = penalty_gradient(spec, unflatten)
    forgotten = jnp.asarray(forgotten)

    def body(step, d):
        w, ids, scale = trajectory[step], slots[step], scales[step]
        gone = forgotten[step]
        # An example that fills several slots has all their scales, shared out among its uses.
        uses = (gone[None, :] == gone[:, None]).sum(axis=1)
        in_sample = (ids[None, :] == gone[:, None]) @ scale / uses
        moved = gradient(w + d, step, ids, jnp.where(forget[ids], 0.0, scale))
        change = moved - gradients[step] + penalty(w + d) - penalty(w)
        # omega of a forgotten slot minus its scale in the sample, where it is in the sample
        back = gradient(w, step, gone, omega[gone] - in_sample)
        return d - rates[step] * (change - back)

    return jax.lax.fori_loop(0, len(rates), body, jnp.zeros_like(trajectory[0]))
