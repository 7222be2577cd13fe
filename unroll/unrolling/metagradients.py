"""Metagradients: what every training example did to the outcome of a run, in one backward pass.

A run maps example weights to a final state, `s_T = F(omega)`, and a metric maps the state to a
number. For all N examples at once,

    G[n] = d metric(F(omega)) / d omega[n],

and taking a set S out of training changes the metric by `-sum_{n in S} omega[n] G[n]` to first
order (arXiv 2504.16430). With `lambda_T = d metric / d s_T`, step t adds its part and hands on:

    G[n]     += lambda_{t+1} . d step(s_t, omega) / d omega[n]
    lambda_t  = lambda_{t+1} . d step(s_t, omega) / d s_t,        t = T - 1, ..., 0.

Design: an explicit adjoint loop over short stretches. A stretch is replayed forward into a buffer
of states, then walked backwards with the pullback of ONE step, so every optimiser, penalty and
normalisation comes along. The bounds are arguments as in `loop.advance`: one program serves all
stretches of all runs of a specification. With buffers of about sqrt(T) states memory is O(sqrt T)
for any run, since a long gap between snapshots is first cut into stretches by a replay of its own
(two levels of the checkpoint tree of arXiv 2503.13751). Rejected: `jax.grad` through `scan_steps`,
which compiles anew for every length and keeps all T states or, nested, hides what it recomputes;
and one weight per slot instead of the whole vector omega, whose scatter into [N] was measured to
cost as much (an MLP, 16 metrics) while the step would have to be taken apart.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from unroll import tree
from unroll.checks import whole_number
from unroll.errors import DivergenceError, InputError
from unroll.training import loop
from unroll.training.run import Progress, Run
from unroll.training.spec import TrainSpec
from unroll.training.step import Examples, train_step
from unroll.training.timing import Stopwatch
from unroll.types import TrainState
from unroll.unrolling.differentiability import kink_warning, refuse_half_precision_of
from unroll.unrolling.outcomes import (
    Metric,
    as_sequence,
    join,
    metric_names,
    moving_leaves,
    values_and_gradients,
)

Mode = Literal["auto", "together", "in_turn"]


@dataclasses.dataclass(frozen=True, eq=False)
class Attribution:
    """Derivatives of M metrics of a final state in the weights of N examples, or estimates of them.

    Attributes:
      names: name of each metric.
      values: `[M]` the metrics at the end of the run, float64.
      gradients: `[M, N]` derivatives, of the dtype of the weights.
      example_gradients: example-gradient evaluations spent; a Hessian-vector product counts two.
      seconds: time spent, compilation not counted.
      training_example_gradients: those of the run.
      training_seconds: those of the run.
      info: what else is to be said, JSON-able; the key `warning` is shown in reports.
    """

    names: tuple[str, ...]
    values: np.ndarray
    gradients: np.ndarray
    example_gradients: float
    seconds: float
    training_example_gradients: int
    training_seconds: float
    info: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def cost_ratio_gradients(self) -> float:
        """Example gradients spent, in multiples of the training's."""
        return self.example_gradients / self.training_example_gradients

    @property
    def cost_ratio_seconds(self) -> float:
        """Seconds spent, in multiples of the training's."""
        return self.seconds / self.training_seconds


def metagradients(
    run: Run,
    metrics: Metric | Sequence[Metric],
    *,
    start: int = 0,
    keep: int | None = None,
    mode: Mode = "auto",
    progress: Progress | None = None,
) -> Attribution:
    """Differentiates metrics of a run's final state in all its example weights.

    A step costs one gradient in the replay, one more where the run was recorded more sparsely than
    every `keep` steps, one to linearise it, and two (a Hessian-vector product) per number.

    Args:
      run: the recorded run. Snapshots at most `keep` steps apart save a replay; the first and the
        last state suffice.
      metrics: what to differentiate; see `unroll.unrolling.outcomes`.
      start: steps before this one count as if they did not depend on the weights. 0 gives the
        whole derivative; more is a cheaper, truncated one.
      keep: states held at a time, `2 ceil(sqrt(T))` by default.
      mode: several numbers `together` (vmapped) or `in_turn`; they share replay and linearisation.
        `auto` takes turns for convolutions on the CPU, where batching gains nothing.
      progress: called with (steps done, steps in all).

    Raises:
      InputError: if the run computes in less than float32, a metric is no number or vector, or an
        argument is out of range.
      DivergenceError: if a metric or a derivative is not finite.
    """
    keep = 2 * math.ceil(math.sqrt(run.steps)) if keep is None else whole_number("keep", keep)
    if whole_number("start", start, least=0) >= run.steps:
        raise InputError(f"start={start} leaves no step of the run of {run.steps}; choose less")
    if mode not in ("auto", "together", "in_turn"):
        raise InputError(f"unknown mode {mode!r}; choose auto, together or in_turn")
    metrics = as_sequence(metrics)
    examples, weights = loop.device_examples(run.dataset), jnp.asarray(run.weights)
    refuse_half_precision_of(run, "metagradients")
    watch = Stopwatch()
    values, cotangents = values_and_gradients(metrics, run.state)
    gradients, replayed = reverse(
        run.spec,
        run.snapshots,
        cotangents,
        examples,
        weights,
        run.key,
        run.schedule,
        start=start,
        keep=keep,
        together=_together(mode, run.state),
        progress=progress,
    )
    seconds = watch.seconds()
    slots = int((run.schedule[start:] >= 0).sum())
    passes = 1 + 2 * len(values) + replayed / (run.steps - start)
    return Attribution(
        metric_names(metrics, len(values)),
        values,
        gradients,
        example_gradients=slots * passes + sum(_own_cost(metric) for metric in metrics),
        seconds=seconds,
        training_example_gradients=run.example_gradients,
        training_seconds=run.seconds,
        info=_info(run, start, keep, replayed),
    )


def _own_cost(metric: Metric) -> int:
    return getattr(metric, "example_gradients", 0)


def _together(mode: Mode, state: TrainState) -> bool:
    convolutions = any(np.ndim(leaf) == 4 for leaf in jax.tree.leaves(state.params))
    slow = convolutions and jax.default_backend() == "cpu"
    return mode == "together" or (mode == "auto" and not slow)


def _info(run: Run, start: int, keep: int, replayed: int) -> dict[str, Any]:
    info: dict[str, Any] = {"start": start, "keep": keep, "replayed_steps": replayed}
    sentences = []
    if warning := kink_warning(run.spec, "check the recipe with smoothness()"):
        sentences.append(warning)
    gap = max(last - first for first, last in _gaps(run.snapshots, start, run.steps))
    if gap > keep:
        sentences.append(
            f"the run was recorded every {gap} steps only, so {replayed - run.steps + start} steps "
            f"were replayed twice; record every {keep}"
        )
    return {**info, "warning": "; ".join(sentences)} if sentences else info


# The way back through the run.


def reverse(
    spec: TrainSpec,
    snapshots: Mapping[int, TrainState],
    cotangents: TrainState,
    examples: Examples,
    weights: jax.Array,
    key: jax.Array,
    schedule: np.ndarray,
    *,
    start: int = 0,
    keep: int,
    together: bool = True,
    progress: Progress | None = None,
) -> tuple[np.ndarray, int]:
    """Pulls cotangents of the final state back to the example weights.

    Args:
      spec: how the run was trained.
      snapshots: recorded states by step, 0 included.
      cotangents: of the final state, with a leading axis M; see `values_and_gradients`.
      examples: the training set on the device.
      weights: `[N]` example weights.
      key: typed key of the run.
      schedule: int32 `[T, B]` example ids, -1 for empty slots.
      start: the first step to go back to.
      keep: states held at a time.
      together: whether the M cotangents are vmapped or taken in turn.
      progress: called with (steps done, steps in all).

    Returns:
      Derivatives `[M, N]`, and how many steps were replayed.

    Raises:
      DivergenceError: if a cotangent is not finite.
    """
    count = jax.tree.leaves(cotangents)[0].shape[0]
    gradients = jnp.zeros((count, len(weights)), weights.dtype)
    schedule = jnp.asarray(schedule)
    total, replayed = len(schedule), 0
    for first, last in _gaps(snapshots, start, total):
        states, advanced = _cut(
            spec, snapshots[first], examples, weights, key, schedule, first, start, last, keep
        )
        replayed += advanced
        for begin, state in reversed(states):
            end = min(begin + keep, last)
            cotangents, gradients = _reverse_stretch(
                spec,
                keep,
                together,
                state,
                cotangents,
                gradients,
                examples,
                weights,
                key,
                schedule,
                begin,
                end,
            )
            _check_finite(spec, cotangents, begin)
            replayed += end - begin
            if progress is not None:
                progress(total - begin, total - start)
    gradients = np.asarray(gradients)
    if not np.isfinite(gradients).all():
        raise DivergenceError("a metagradient is not finite; lower the learning rate")
    return gradients, replayed


def _gaps(snapshots: Iterable[int], start: int, total: int) -> list[tuple[int, int]]:
    """Recorded steps and their successors, last first, as far as they lie behind `start`."""
    recorded = sorted({step for step in snapshots if step < total} | {total})
    pairs = zip(recorded[:-1], recorded[1:], strict=True)
    return [(first, last) for first, last in pairs if last > start][::-1]


def _cut(
    spec, state, examples, weights, key, schedule, first, start, last, keep
) -> tuple[list[tuple[int, TrainState]], int]:
    """States every `keep` steps of a gap, and the steps it took to find them.

    The program is the one that trained, so they are bit-equal to what a denser record would hold.
    """
    begins = range(max(first, start), last, keep)
    states, position = [], first
    losses = jnp.zeros(len(schedule), weights.dtype)
    for begin in begins:
        if begin > position:
            # A copy, whose buffers are donated; what is kept is the host's.
            state, losses = loop.advance(
                spec,
                tree.to_host(state),
                losses,
                examples,
                weights,
                key,
                schedule,
                position,
                begin,
            )
            state = tree.to_host(state)
        states.append((begin, state))
        position = begin
    return states, position - first


@jax.jit(static_argnames=("spec", "keep", "together"), donate_argnames=("cotangents", "gradients"))
def _reverse_stretch(
    spec: TrainSpec,
    keep: int,
    together: bool,
    state: TrainState,
    cotangents: TrainState,
    gradients: jax.Array,
    examples: Examples,
    weights: jax.Array,
    key: jax.Array,
    schedule: jax.Array,
    start: jax.Array,
    stop: jax.Array,
) -> tuple[TrainState, jax.Array]:
    """The steps `start <= t < stop`, at most `keep` of them, backwards."""

    def step_from(state, weights, step):
        return train_step(spec, state, examples, weights, key, step, schedule[step])[0]

    def replay(step, carry):
        state, states = carry
        states = jax.tree.map(lambda kept, leaf: kept.at[step - start].set(leaf), states, state)
        return step_from(state, weights, step), states

    empty = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (keep, *jnp.shape(leaf))), state)
    _, states = jax.lax.fori_loop(start, stop, replay, (state, empty))

    def back(index, carry):
        cotangents, gradients = carry
        step = stop - 1 - index
        before = jax.tree.map(lambda kept: kept[step - start], states)
        _, pullback = jax.vjp(
            lambda moving, weights: moving_leaves(step_from(join(moving, before), weights, step)),
            moving_leaves(before),
            weights,
        )
        pull = jax.vmap(pullback) if together else functools.partial(jax.lax.map, pullback)
        cotangents, change = pull(cotangents)
        return cotangents, gradients + change

    return jax.lax.fori_loop(0, stop - start, back, (cotangents, gradients))


def _check_finite(spec: TrainSpec, cotangents: TrainState, position: int) -> None:
    if tree.is_finite(cotangents):
        return
    hint = (
        "adam's square root has no derivative where a gradient is exactly 0: train with "
        "eps_root=1e-8"
        if "adam" in str(spec.optimizer)
        else "derivatives grow along this run beyond all numbers: lower the learning rate"
    )
    raise DivergenceError(f"the metagradient is not finite before step {position}; {hint}")
