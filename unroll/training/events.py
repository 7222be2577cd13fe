"""Learning events: what the training forward pass says about each example at each of its visits.

    p = softmax(logits of the training step, before its update)
    confidence p_y;   max confidence max_c p_c;   entropy -sum_c p_c log p_c;   correct [argmax = y]

means over all visits of a run are the learning-event proxies of arXiv 2410.16516 (section 3; there
the sign of the entropy is turned), and the changes from correct to wrong between successive visits
are the forgetting events of arXiv 1812.05159 (definition 2.1).

A visit is a filled slot of the schedule. It counts whatever the weight of the example, also 0: how
a model that does not learn an example treats it is an event of that example too.

Design: the compiled loop writes one row of four numbers per slot, `[T, B, 4]`, and means and
transitions are taken on the host, so the history of every visit comes with them. Rejected: sums
`[N]` kept in the loop. They take less memory for long runs and the same time, but know no history.

Microseconds of a step without and with events, and the median ratio of 9 pairs, 2 CPU cores: MLP
64-128-128-10 on digits in batches of 32: 91 and 98, 1.04; CNN 16-32-32 on 32x32x3 in batches of 64:
12446 and 12448, 1.00. Ratios of single pairs scatter by a few percent for the CNN and by more for
the MLP.
"""

from __future__ import annotations

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from unroll import tree
from unroll.checkpoint import Store
from unroll.checks import seed_number
from unroll.data.dataset import Dataset
from unroll.errors import DivergenceError, InputError
from unroll.training import loop
from unroll.training.record import Record
from unroll.training.run import Progress, Run, check_inputs, run_identity
from unroll.training.spec import TrainSpec, description_hash
from unroll.training.step import Examples, initial_state, train_step_and_logits
from unroll.training.timing import Stopwatch
from unroll.training.trajectory import Trajectory
from unroll.types import TrainState

QUANTITIES = ("confidence", "max_confidence", "entropy", "correct")
"""The columns of what is written per slot."""

_NO_SNAPSHOTS = Record()


@dataclasses.dataclass(frozen=True, eq=False)
class Events:
    """Learning events of N examples over a run.

    Attributes:
      confidence: float64 `[N]`, mean probability of the label, in [0, 1].
      max_confidence: float64 `[N]`, mean probability of the likeliest class, in [1/C, 1].
      entropy: float64 `[N]`, mean entropy in nats, in [0, log C]; larger is less certain.
      accuracy: float64 `[N]`, share of the visits at which the example was classified correctly.
      forgetting: int64 `[N]`, number of changes from correct to wrong between successive visits.
      visits: int64 `[N]`, number of visits, 1 or more.
      history: float32 `[sum of visits, 4]`, the `QUANTITIES` of all visits, those of an example
        one after the other in the order of time.
    """

    confidence: np.ndarray
    max_confidence: np.ndarray
    entropy: np.ndarray
    accuracy: np.ndarray
    forgetting: np.ndarray
    visits: np.ndarray
    history: np.ndarray

    def per_visit(self, quantity: str) -> np.ndarray:
        """One of the `QUANTITIES` at each visit, `[N, visits]`.

        Raises:
          InputError: on another quantity, or if examples differ in their number of visits.
        """
        if quantity not in QUANTITIES:
            raise InputError(f"unknown quantity {quantity!r}; choose one of {QUANTITIES}")
        if np.ptp(self.visits):
            raise InputError(
                f"examples have {self.visits.min()} to {self.visits.max()} visits, which is no "
                "table; take their rows from `history`"
            )
        return self.history[:, QUANTITIES.index(quantity)].reshape(len(self.visits), -1)


def visit_outputs(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The `QUANTITIES` of a batch, float32 `[B, 4]`; finite for finite logits, and at p = 0.

    Args:
      logits: `[B, C]`.
      labels: int32 `[B]`.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    p = jnp.exp(log_p)
    entropy = -jnp.sum(jnp.where(p > 0, p * log_p, 0.0), axis=-1)
    confidence = jnp.take_along_axis(p, labels[:, None], axis=-1)[:, 0]
    correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return jnp.stack([confidence, p.max(axis=-1), entropy, correct], axis=-1)


@jax.jit(static_argnames=("spec",), donate_argnames=("state", "traces"))
def events_advance(
    spec: TrainSpec,
    state: TrainState,
    traces: dict[str, jax.Array],
    examples: Examples,
    weights: jax.Array,
    key: jax.Array,
    schedule: jax.Array,
    start: int | jax.Array,
    stop: int | jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """`loop.advance` that also writes what the forward pass says about each slot.

    Args:
      spec: what to train.
      state: state before step `start`; donated.
      traces: `losses` `[T]` and `outputs` `[T, B, 4]`; their rows `start <= t < stop` are set, rows
        of empty slots to what nobody reads; donated.
      examples: the training set on the device.
      weights: `[N]` example weights.
      key: typed key of the run.
      schedule: int32 `[T, B]`.
      start: first step.
      stop: step after the last.
    """

    def body(step, carry):
        state, traces = carry
        slots = schedule[step]
        state, loss, logits = train_step_and_logits(
            spec, state, examples, weights, key, step, slots
        )
        # Kept apart, so that the compiler cannot merge this with the loss and round that anew.
        logits = jax.lax.optimization_barrier(logits)
        outputs = visit_outputs(logits, examples.labels[jnp.maximum(slots, 0)])
        return state, {
            "losses": traces["losses"].at[step].set(loss),
            "outputs": traces["outputs"].at[step].set(outputs),
        }

    return jax.lax.fori_loop(start, stop, body, (state, traces))


def train_with_events(
    spec: TrainSpec,
    dataset: Dataset,
    schedule: np.ndarray,
    *,
    seed: int = 0,
    weights: np.ndarray | None = None,
    record: Record = _NO_SNAPSHOTS,
    store: Store | None = None,
    progress: Progress | None = None,
) -> tuple[Run, Events]:
    """Trains like `run.train` and collects the learning events of every example on the way.

    The run is that of `run.train` with the same arguments, with the same bits; in the store it has
    an address of its own, since it is stored with its events. A run that was killed goes on from
    its latest stored state.

    Args:
      spec: how to train.
      dataset: the training set.
      schedule: int32 `[T, B]`; every example must be used at least once.
      seed: seed of initialisation, augmentation and dropout.
      weights: `[N]` example weights, all 1 by default.
      record: which states to keep.
      store: where finished and partial runs live.
      progress: called with (steps done, steps in all).

    Returns:
      The run, whose seconds include the collection, and the events.

    Raises:
      InputError: if the arguments do not fit together, or an example is never used.
      DivergenceError: if a loss or the final state is not finite.
      StoreError: if the store cannot be written.
    """
    seed = seed_number(seed)
    schedule, weights = check_inputs(spec, dataset, schedule, weights)
    _check_all_used(schedule, len(dataset))
    key = jax.random.key(seed)
    first = tree.to_host(initial_state(spec, key, dataset.inputs))
    identity = run_identity(spec, dataset, seed, schedule, weights)
    identity = {**identity, "program": "single with events"}
    trajectory = Trajectory(store, description_hash(identity), identity, record, len(schedule))
    blank = {
        "losses": np.zeros(len(schedule), np.float32),
        "outputs": np.zeros((*schedule.shape, len(QUANTITIES)), np.float32),
    }
    start, state, traces, seconds = trajectory.begin((first, blank))
    steps = functools.partial(
        events_advance,
        spec,
        examples=loop.device_examples(dataset),
        weights=jnp.asarray(weights),
        key=key,
        schedule=jnp.asarray(schedule),
    )
    watch, waiting, previous, elapsed = Stopwatch(), 0.0, start, 0.0
    begin = tree.to_host(state), jax.tree.map(jnp.asarray, traces)
    for position, (state, traces) in loop.chunks(  # noqa: B020
        lambda carry, begin, end: steps(*carry, start=begin, stop=end),
        begin,
        start,
        len(schedule),
        tuple(trajectory.wanted),
    ):
        loop.check_losses(traces["losses"], previous, position)
        if position == len(schedule) and not tree.is_finite(state):
            raise DivergenceError(
                "training with events diverged: the last state is not finite; "
                "lower the learning rate or clip the gradients"
            )
        previous, elapsed, paused = position, watch.seconds() - waiting, time.perf_counter()
        trajectory.visit(position, state, traces, seconds + elapsed)
        if progress is not None:
            progress(position, len(schedule))
        waiting += time.perf_counter() - paused
    state, traces = tree.to_host((state, traces))
    run = Run(
        spec,
        dataset,
        seed,
        schedule,
        weights,
        state,
        trajectory.snapshots(),
        traces["losses"],
        seconds + elapsed,
    )
    return run, collect(schedule, traces["outputs"], len(dataset))


def _check_all_used(schedule: np.ndarray, num_examples: int) -> None:
    counts = np.bincount(schedule[schedule >= 0], minlength=num_examples)
    if not counts.all():
        raise InputError(
            f"example {int(np.argmin(counts))} is never used by the schedule and has no events; "
            "train on dataset.take(ids) of those that are"
        )


def collect(schedule: np.ndarray, outputs: np.ndarray, num_examples: int) -> Events:
    """Events of every example from what was written per slot.

    Args:
      schedule: int32 `[T, B]`, -1 for empty slots, which are passed over.
      outputs: `[T, B, 4]`, the `QUANTITIES` of each slot.
      num_examples: N.

    Raises:
      InputError: if an example has no visit.
    """
    _check_all_used(schedule, num_examples)
    filled = schedule >= 0
    ids = schedule[filled]
    order = np.argsort(ids, kind="stable")  # by example, and within one by time
    ids, history = ids[order], np.asarray(outputs)[filled][order]
    visits = np.bincount(ids, minlength=num_examples)
    first = np.concatenate([[0], np.cumsum(visits)[:-1]])
    means = np.add.reduceat(history.astype(np.float64), first, axis=0) / visits[:, None]
    correct = history[:, QUANTITIES.index("correct")] > 0.5
    lost = correct[:-1] & ~correct[1:] & (ids[:-1] == ids[1:])
    forgetting = np.bincount(ids[1:][lost], minlength=num_examples)
    return Events(*means.T, forgetting, visits, history)
