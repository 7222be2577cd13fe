"""Amnesiac unlearning (Graves et al., arXiv 2010.10981): take back the updates of the batches.

    "batch"     w'' = w_T + sum over affected t of (w_t - w_{t+1})
    "forget"    w'' = w_T + sum_t R_t (1/B) sum_{x in x_f and batch t} omega[x] grad loss(w_t; x)

A step is affected if its batch holds a forgotten example. The method as published takes back the
whole updates, and with them what the retained examples of these batches taught; `info` says how
many uses are lost. Its other form takes back the forgotten examples' share only, the variant of
the experiments of *Unrolling SGD* (arXiv 2109.13398). That is the first-order expansion along the
trajectory (`taylor(order=1)`) without its Hessian terms: exact where the loss has no curvature or
nothing follows the last use.

Both are the second formula, with all examples of the affected batches in place of x_f for "batch".
R_t is how far a gradient that enters at step t moves the final weights (`unrolling.step_response`);
with plain SGD and no penalty R_t times the batch's gradient *is* w_t - w_{t+1}, and with momentum
it is what the batch did in all later steps too, while the recorded difference would be mostly the
trace of other batches.

Design: the updates are had by replaying the run once from its snapshots, in one compiled loop that
gathers batches as training did, so augmentation and dropout are those of each use. Rejected:
storing the updates during training, one model per step.
"""

from __future__ import annotations

import itertools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from unroll import tree
from unroll.data.schedule import EMPTY
from unroll.errors import DivergenceError, InputError
from unroll.problem import Method, Unlearned
from unroll.training import loop
from unroll.training.run import Run
from unroll.training.spec import TrainSpec
from unroll.training.step import Examples, data_loss, gather, train_step
from unroll.types import Params, TrainState
from unroll.unrolling.step_response import left_out, step_responses


def amnesiac(only: Literal["batch", "forget"] = "batch") -> Method:
    """Takes back recorded updates, of whole batches or of the forgotten examples alone.

    The replay costs up to one pass of training; only stretches from a snapshot to the last affected
    step before the next one are replayed. `info["example_gradients_if_recorded"]` is what it would
    cost had training stored what is needed: every step's update for "batch", every step's state
    for "forget".

    Args:
      only: whose updates to take back, `batch` or `forget`.

    Raises (when called):
      InputError: for an optimiser other than sgd, a `renormalise` denominator, or a model with
        running statistics (they keep the forgotten examples).
      DivergenceError: if the replay does not stay finite.
    """
    if only not in ("batch", "forget"):
        raise InputError(f"amnesiac: only={only!r} is unknown; choose 'batch' or 'forget'")

    def unlearn(key, access):
        del key
        run, ids = access.run, access.forget_ids
        _check(run)
        responses = step_responses(run)
        taken = _taken(run.schedule, ids, only)
        affected = (taken != EMPTY).any(axis=1)
        if not affected.any():
            return Unlearned(run.state.params, run.state.model_state, example_gradients=0)
        stretches = _stretches(run, affected)
        removed = _taken_back(run, taken, responses, stretches, access.progress)
        params = jax.tree.map(lambda w, g: (w + g).astype(w.dtype), run.state.params, removed)
        if not tree.is_finite(params):
            raise DivergenceError("amnesiac: the replayed updates are not finite")
        replayed = sum(int((run.schedule[begin:last] >= 0).sum()) for begin, last in stretches)
        gradients = int((taken != EMPTY).sum())
        stored = 0 if only == "batch" else gradients
        info = {"example_gradients_if_recorded": stored, **left_out(run)}
        if only == "batch":
            info["retained_uses_lost"] = gradients - int(np.isin(taken, ids).sum())
        return Unlearned(params, run.state.model_state, replayed + gradients, info=info)

    return Method("amnesiac", {"only": only}, frozenset({"run"}), unlearn)


def _check(run: Run) -> None:
    if run.state.model_state:
        raise InputError("amnesiac needs a model without batch normalisation; use group")
    if run.spec.denominator != "batch":
        raise InputError("amnesiac needs TrainSpec(denominator='batch')")


def _taken(schedule: np.ndarray, ids: np.ndarray, only: str) -> np.ndarray:
    """The examples whose gradients are taken back at each step, int32 `[T, width]`, -1 for none."""
    forgotten = np.isin(schedule, ids)
    if only == "batch":
        return np.where(forgotten.any(axis=1, keepdims=True), schedule, EMPTY)
    width = max(int(forgotten.sum(axis=1).max()), 1)
    front = np.argsort(~forgotten, axis=1, kind="stable")[:, :width]
    return np.take_along_axis(np.where(forgotten, schedule, EMPTY), front, axis=1)


def _stretches(run: Run, affected: np.ndarray) -> list[tuple[int, int]]:
    """For each segment between snapshots with an affected step: its start, its last such step."""
    return [
        (begin, begin + int(np.flatnonzero(affected[begin:end])[-1]))
        for begin, end in itertools.pairwise(run.snapshots)
        if affected[begin:end].any()
    ]


@jax.jit(static_argnames=("spec",), donate_argnames=("state", "removed"))
def _replay(
    spec: TrainSpec,
    state: TrainState,
    removed: Params,
    examples: Examples,
    weights: jax.Array,
    key: jax.Array,
    schedule: jax.Array,
    taken: jax.Array,
    scales: jax.Array,
    start: int | jax.Array,
    stop: int | jax.Array,
    last: int | jax.Array,
) -> tuple[TrainState, Params]:
    """Adds scales[t] times the gradient of `taken[t]` at w_t to `removed`, for `start <= t < stop`.

    The run advances after each step except `last`, after which its state is not needed. Other
    arguments as in `loop.advance`.
    """

    def add(step, params, removed):
        batch = gather(spec, examples, weights, key, step, taken[step])
        batch = batch._replace(denominator=jnp.ones_like(batch.denominator))
        gradient = jax.grad(lambda params: data_loss(spec, params, {}, batch)[0])(params)
        return jax.tree.map(lambda r, g: r + scales[step].astype(r.dtype) * g, removed, gradient)

    def body(step, carry):
        state, removed = carry
        removed = jax.lax.cond(
            (taken[step] >= 0).any(), add, lambda step, params, r: r, step, state.params, removed
        )
        state = jax.lax.cond(
            step < last,
            lambda s: train_step(spec, s, examples, weights, key, step, schedule[step])[0],
            lambda s: s,
            state,
        )
        return state, removed

    return jax.lax.fori_loop(start, stop, body, (state, removed))


def _taken_back(run: Run, taken, responses, stretches, progress) -> Params:
    """Sum over the stretches of what is taken back, on the host."""
    arrays = (
        loop.device_examples(run.dataset),
        jnp.asarray(run.weights),
        run.key,
        jnp.asarray(run.schedule),
        jnp.asarray(taken),
        jnp.asarray(responses / run.schedule.shape[1]),
    )
    removed = jax.tree.map(np.zeros_like, run.state.params)
    done, total = 0, sum(last + 1 - begin for begin, last in stretches)
    for begin, last in stretches:

        def advance_to(carry, start, stop, last=last):
            return _replay(run.spec, *carry, *arrays, start, stop, last)

        carry = (tree.to_host(run.snapshots[begin]), removed)
        for position, (_, removed) in loop.chunks(advance_to, carry, begin, last + 1):  # noqa: B007
            if progress is not None:
                progress(done + position - begin, total)
        done += last + 1 - begin
    return tree.to_host(removed)
