"""Segment-wise unrolling with one curvature per segment (SOURCE; Bae et al., arXiv 2405.12186).

Training is cut into L segments of K steps. Within one the curvature is taken as constant, the mean
Gauss-Newton matrix A over a sample of retained examples at the middle of the segment, each with its
weight, the whole scaled by the share of the slots that hold a retained example, plus the Hessian of
the penalties; the recursion of `unrolling.recorded` then has the closed form

    d <- exp(-X) d  +  X^-1 (1 - exp(-X)) sum of the segment's eta g_t,    X = (sum eta) A,

whose two functions of A are applied by Lanczos in a Krylov space of `rank` vectors (the paper uses
EK-FAC and a stationary gradient instead; here the forgotten gradients are those of the run's own
uses, at the middle of the segment). The Gauss-Newton matrix has no negative eigenvalue, so the
recursion cannot blow up.

What it cannot see: which examples met in which batch. On small batches that is most of the
difference to the twin (docs/unrolling.md).

Rejected: the Hessian for A (its negative eigenvalues grow exponentially in a segment), and one
explicit step per segment (`sum eta lambda` is far above 2).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from unroll.checks import whole_number
from unroll.data.ids import make_generator
from unroll.objectives import losses_at
from unroll.problem import Method, Unlearned
from unroll.training import loop
from unroll.training.spec import apply_model
from unroll.training.step import gather
from unroll.training.timing import Stopwatch
from unroll.tree import to_host
from unroll.unrolling.recorded import preparation_note, record_weights, slot_gradient


def segments(count: int = 12, examples: int = 128, rank: int = 5) -> Method:
    """Unlearns segment by segment with constant curvature.

    Args:
      count: number of segments L.
      examples: retained examples that the curvature of a segment is measured on.
      rank: products with the curvature per segment and function.

    Raises (when called):
      InputError: for anything but plain sgd, batch normalisation, a `renormalise` denominator, or a
        record that does not fit the memory.
    """
    for name, value in (("count", count), ("examples", examples), ("rank", rank)):
        whole_number(name, value)

    def unlearn(key, access):
        run, forget = access.run, access.forget_ids
        if not len(forget):
            return Unlearned(run.state.params, run.state.model_state, example_gradients=0)
        recorded = record_weights(run, "segments")
        watch = Stopwatch()
        data = loop.device_examples(run.dataset)
        retained = np.setdiff1d(np.arange(len(run.dataset)), forget)
        generator = make_generator(int(jax.random.key_data(key)[-1]), "segments")
        size = min(examples, len(retained))
        bounds = np.linspace(0, run.steps, min(count, run.steps) + 1).astype(int)
        d = jnp.zeros_like(recorded.weights[0])
        spent = 0
        for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
            middle = (begin + end) // 2
            rates = np.asarray(recorded.learning_rates[begin:end], np.float64)
            uses = _summed_step_sizes(run.schedule[begin:end], rates, len(run.dataset))
            sample = generator.choice(retained, size, replace=False).astype(np.int32)
            scale = _retained_share(run.schedule[begin:end], forget)
            d = _advance(
                run.spec,
                recorded.unflatten,
                data,
                run.key,
                recorded.weights[middle],
                middle,
                jnp.asarray(forget, jnp.int32),
                jnp.asarray(uses[forget] * run.weights[forget], recorded.weights.dtype),
                jnp.asarray(sample),
                jnp.asarray(scale * run.weights[sample], recorded.weights.dtype),
                jnp.asarray(rates.sum(), recorded.weights.dtype),
                d,
                run.schedule.shape[1],
                rank,
            )
            # A Gauss-Newton product is a forward derivative and a backward pass: 4/3 of a gradient.
            spent += (uses[forget] > 0).sum() + 2 * rank * size * 4 / 3
        params = to_host(recorded.unflatten(recorded.weights[-1] + d))
        return Unlearned(
            params,
            run.state.model_state,
            example_gradients=float(spent),
            info=preparation_note(
                recorded.seconds, recorded.example_gradients, run, recorded.weights.nbytes / 1e6
            ),
            seconds=watch.seconds(),
        )

    hyperparameters = {"count": count, "examples": examples, "rank": rank}
    return Method("segments", hyperparameters, frozenset({"run"}), unlearn)


def _summed_step_sizes(schedule: np.ndarray, rates: np.ndarray, count: int) -> np.ndarray:
    """Sum of the step sizes over the uses of each of `count` examples, `[count]`."""
    total = np.zeros(count)
    filled = schedule >= 0
    np.add.at(total, schedule[filled], np.broadcast_to(rates[:, None], filled.shape)[filled])
    return total


def _retained_share(schedule: np.ndarray, forget: np.ndarray) -> float:
    """Share of the slots that hold a retained example: their mean over B for one over them."""
    return float(((schedule >= 0) & ~np.isin(schedule, forget)).mean())


def krylov_functions(product, start: jax.Array, rank: int, functions) -> list[jax.Array]:
    """`f(A) start` for each function f of a symmetric matrix A, by Lanczos with `rank` products.

    Full reorthogonalisation; the space ends early where A maps it into itself.
    """

    def step(k, carry):
        basis, matrix = carry
        image = product(basis[k])
        overlaps = basis @ image
        image = image - overlaps @ basis
        image = image - (basis @ image) @ basis
        length = jnp.linalg.norm(image)
        ended = length <= 1e-6 * jnp.maximum(jnp.abs(overlaps).max(), 1e-30)
        following = jnp.where(ended, 0.0, image / jnp.where(ended, 1.0, length))
        basis = basis.at[k + 1].set(following)
        return basis, matrix.at[k].set(overlaps[: len(matrix)])

    norm = jnp.linalg.norm(start)
    basis = jnp.zeros((rank + 1, start.size), start.dtype)
    basis = basis.at[0].set(start / jnp.where(norm > 0, norm, 1.0))
    matrix = jnp.zeros((rank, rank), start.dtype)
    basis, matrix = jax.lax.fori_loop(0, rank, step, (basis, matrix))
    # Row k holds the products with the vectors up to k; those after it were not there yet.
    symmetric = jnp.tril(matrix) + jnp.tril(matrix, -1).T
    values, vectors = jnp.linalg.eigh(symmetric)
    return [norm * (vectors * f(values)) @ vectors[0] @ basis[:rank] for f in functions]


@jax.jit(static_argnames=("spec", "unflatten", "batch_size", "rank"))
def _advance(
    spec, unflatten, data, key, w, step, forget, uses, sample, shares, horizon, d, batch_size, rank
):
    """The difference after a segment.

    `uses` are the summed step sizes of each forgotten id, `shares` the weights of the sample's
    losses in their mean, and `horizon` the sum of the step sizes.
    """
    gradient = slot_gradient(spec, unflatten, data, key, batch_size)
    batch = gather(spec, data, jnp.ones(len(data.labels)), key, step, sample)

    def logits_of(v):
        return apply_model(spec, unflatten(v), {}, batch.inputs, train=False)[0]

    def gauss_newton(vector):
        logits, change = jax.jvp(logits_of, (w,), (vector,))
        _, curved = jax.jvp(
            jax.vmap(jax.grad(lambda z, y: losses_at(spec.objective, z[None], y[None], step)[0])),
            (logits, batch.labels),
            (change, np.zeros(batch.labels.shape, jax.dtypes.float0)),
        )
        product = jax.vjp(logits_of, w)[1](curved * shares[:, None] / len(sample))[0]
        return (
            product
            + jax.jvp(jax.grad(lambda v: spec.objective.penalty(unflatten(v))), (w,), (vector,))[1]
        )

    def decay(values):
        return jnp.exp(-horizon * jnp.maximum(values, 0.0))

    def response(values):
        x = horizon * jnp.maximum(values, 1e-12)
        return -jnp.expm1(-x) / x

    injected = gradient(w, step, forget, uses)
    (kept,) = krylov_functions(gauss_newton, d, rank, [decay])
    (added,) = krylov_functions(gauss_newton, injected, rank, [response])
    # Outside the Krylov space the curvature is taken as 0, so nothing but these parts is damped.
    return kept + added
