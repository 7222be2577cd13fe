"""A run: training as a function of the example weights, with a record of its trajectory.

    train(spec, data, schedule, weights=1)          the original model
    train(spec, data, schedule, weights=1 - 1_S)    its twin, retrained without S
    fit(..., start=s)                               the same from a recorded state

Design: a run is restarted, replayed and resumed from any recorded state by the same executable
(`loop.advance`), so all of these agree bit for bit. Rejected: a trainer object that owns its state;
its results would depend on the history of calls.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import os
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from unroll import checkpoint, tree
from unroll.checks import seed_number
from unroll.data.dataset import Dataset
from unroll.data.schedule import validate_schedule
from unroll.errors import DivergenceError, InputError
from unroll.training import loop
from unroll.training.record import Record, Snapshots
from unroll.training.spec import TrainSpec, description_hash
from unroll.training.step import initial_state
from unroll.training.timing import Stopwatch
from unroll.training.trajectory import Trajectory
from unroll.training.transforms import Normalize
from unroll.types import TrainState

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all) about twice a second."""

_NO_SNAPSHOTS = Record()
_PACKAGES = ("jax", "jaxlib", "flax", "optax")


def part_of_progress(progress: Progress | None, index: int, count: int) -> Progress | None:
    """The progress of training `index` of `count` of the same length, as that of all of them."""
    if progress is None:
        return None
    return lambda done, total: progress(index * total + done, count * total)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A finished training run, with all that is needed to replay it.

    Attributes:
      spec: how it was trained.
      dataset: the training set.
      seed: seed of the run's key: initialisation, augmentation and dropout.
      schedule: int32 `[T, B]` example ids, -1 for empty slots.
      weights: `[N]` example weights.
      state: state after the last step, on the host.
      snapshots: recorded states by step, 0 and T included.
      losses: `[T]` training loss before each step.
      seconds: time spent in the steps, compilation not counted.
      initial: content hash of the state it was started from; `None` if the seed made that state.
    """

    spec: TrainSpec
    dataset: Dataset
    seed: int
    schedule: np.ndarray
    weights: np.ndarray
    state: TrainState
    snapshots: Snapshots
    losses: np.ndarray
    seconds: float
    initial: str | None = None

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return len(self.schedule)

    @property
    def key(self) -> jax.Array:
        """Typed key of the run."""
        return jax.random.key(self.seed)

    @property
    def example_gradients(self) -> int:
        """Example-gradient evaluations of the run: its filled slots."""
        return int((self.schedule >= 0).sum())

    @functools.cached_property
    def address(self) -> str:
        """Hash of everything that determines the run."""
        return description_hash(
            run_identity(
                self.spec, self.dataset, self.seed, self.schedule, self.weights, self.initial
            )
        )


def run_identity(
    spec: TrainSpec,
    dataset: Dataset,
    seed: int,
    schedule: np.ndarray,
    weights: np.ndarray,
    initial: str | None = None,
) -> dict[str, Any]:
    """What determines a run's bits, as a JSON-able dictionary; its hash is the store's address."""
    return {
        **({} if initial is None else {"initial": initial}),
        "format": checkpoint.FORMAT,
        "spec": spec.describe(),
        "dataset": dataset.fingerprint,
        "seed": int(seed),
        "schedule": array_hash(schedule),
        "weights": array_hash(weights),
        "program": "single",
        **environment(spec),
    }


def environment(spec: TrainSpec) -> dict[str, Any]:
    """What else the bits of a run depend on: versions, settings of jax, the code of the model.

    The code of the library itself stands behind `checkpoint.FORMAT`, that of a model of the user's
    behind the hash of its class. Two CPUs of different make count as one kind of device.
    """
    return {
        "versions": dict(_versions()),
        "device": jax.devices()[0].device_kind,
        "x64": jax.config.jax_enable_x64,
        "prng": jax.config.jax_default_prng_impl,
        "matmul_precision": jax.config.jax_default_matmul_precision,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "code": [source_hash(type(part)) for part in (spec.model, spec.objective)],
    }


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    return tuple((name, importlib.metadata.version(name)) for name in _PACKAGES)


def source_hash(thing: Any) -> str | None:
    """SHA-256 of the source text of a class, function or module; `None` where there is none."""
    try:
        stamp = os.stat(inspect.getsourcefile(thing)).st_mtime_ns
    except (OSError, TypeError):  # a cell of a notebook, whose text has no file
        return _source_hash.__wrapped__(thing, None)
    return _source_hash(thing, stamp)


@functools.cache
def _source_hash(thing: Any, stamp: int | None) -> str | None:
    """Reading a class means parsing its file, at every run; the stamp is that of the file."""
    del stamp
    try:
        return hashlib.sha256(inspect.getsource(thing).encode()).hexdigest()
    except (OSError, TypeError):  # typed into an interpreter that keeps no source
        return None


def array_hash(array: np.ndarray) -> str:
    """SHA-256 over dtype, shape and bytes, as a run's identity has it of schedule and weights."""
    header = f"{array.dtype}|{array.shape}|".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()


def check_inputs(
    spec: TrainSpec, dataset: Dataset, schedule: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns schedule and weights in canonical form.

    Raises:
      InputError: if the schedule or the weights do not fit the training set, or the inputs are raw
        images and the specification does not say how to scale them.
    """
    # A copy: the caller may go on using the array, and a run must stay what it was.
    schedule = validate_schedule(schedule, len(dataset)).copy()
    _check_model_inputs(spec, dataset)
    if dataset.inputs.dtype == np.uint8 and spec.preprocess is None:
        raise InputError(
            f"{dataset.name} holds uint8 images; set TrainSpec(preprocess=Normalize(mean, std))"
        )
    weights = np.ones(len(dataset), np.float32) if weights is None else np.asarray(weights)
    weights = weights.astype(np.float32)
    if weights.shape != (len(dataset),):
        raise InputError(
            f"weights have shape {weights.shape}, the training set {len(dataset)} examples; "
            "give one weight per example"
        )
    if not np.isfinite(weights).all():
        raise InputError(
            f"the weight of example {int(np.argmin(np.isfinite(weights)))} is not finite"
        )
    return schedule, weights


def _check_model_inputs(spec: TrainSpec, dataset: Dataset) -> None:
    if isinstance(spec.preprocess, Normalize) and dataset.inputs.dtype != np.uint8:
        raise InputError(
            f"Normalize divides by 255, but {dataset.name} holds {dataset.inputs.dtype}; "
            "leave preprocess out"
        )
    words = getattr(spec.model, "vocabulary_size", None)
    if words is not None and dataset.inputs.max() >= words:
        raise InputError(
            f"{dataset.name} has token {dataset.inputs.max()}, but the model knows {words}; "
            "give data and model the same vocabulary_size"
        )


def train(
    spec: TrainSpec,
    dataset: Dataset,
    schedule: np.ndarray,
    *,
    seed: int = 0,
    weights: np.ndarray | None = None,
    initial: TrainState | None = None,
    record: Record = _NO_SNAPSHOTS,
    store: checkpoint.Store | None = None,
    progress: Progress | None = None,
    mode: Literal["compiled", "stepwise"] = "compiled",
) -> Run:
    """Trains a model and records its trajectory.

    With a store, a finished run is read back instead of trained again, and a run that was killed
    goes on from its latest stored state and ends with the same bits.

    Args:
      spec: how to train.
      dataset: the training set.
      schedule: int32 `[T, B]`, see `unroll.data.make_schedule`.
      seed: seed of initialisation, augmentation and dropout.
      weights: `[N]` example weights, all 1 by default.
      initial: state to start from, for example a pretrained model's; by default
        the seed makes one.
      record: which states to keep; in the store if there is one, else in memory.
      store: where finished and partial runs live.
      progress: called with (steps done, steps in all).
      mode: one compiled loop, or a Python loop over the jitted step (the same bits, slower).

    Raises:
      InputError: if the arguments do not fit together.
      DivergenceError: if a loss or the final state is not finite; the message names the step.
      StoreError: if the store cannot be written.
    """
    if mode not in ("compiled", "stepwise"):
        raise InputError(f"unknown mode {mode!r}; choose compiled or stepwise")
    seed = seed_number(seed)
    schedule, weights = check_inputs(spec, dataset, schedule, weights)
    made = tree.to_host(initial_state(spec, jax.random.key(seed), dataset.inputs))
    first, initial_hash = made, None
    if initial is not None:
        first = check_initial(initial, made)
        initial_hash = tree.content_hash(first)
    identity = run_identity(spec, dataset, seed, schedule, weights, initial_hash)
    trajectory = Trajectory(store, description_hash(identity), identity, record, len(schedule))
    blank = (first, np.zeros(len(schedule), np.float32))
    start, state, losses, seconds = trajectory.begin(blank)
    if start < len(schedule):
        arguments = (spec, dataset, state, losses, schedule, weights, jax.random.key(seed))
        for position, state, losses, elapsed in _iterate(
            *arguments, start=start, boundaries=trajectory.wanted, mode=mode
        ):
            trajectory.visit(position, state, losses, seconds + elapsed)
            if progress is not None:
                progress(position, len(schedule))
        seconds += elapsed
        state, losses = tree.to_host(state), np.array(losses)
    elif progress is not None:
        progress(len(schedule), len(schedule))
    return Run(
        spec,
        dataset,
        seed,
        schedule,
        weights,
        state,
        trajectory.snapshots(),
        losses,
        seconds,
        initial_hash,
    )


def check_initial(initial: TrainState, made: TrainState) -> TrainState:
    """The given first state on the host, if it has the leaves of a state of this specification.

    Args:
      initial: state to start from.
      made: the state on the host that the seed makes.

    Raises:
      InputError: if structures, shapes or dtypes differ.
    """

    def form(state: TrainState) -> tuple:
        leaves, structure = jax.tree.flatten(state)
        return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]

    initial = tree.to_host(initial)
    if form(initial) != form(made):
        raise InputError(
            "the initial state does not fit the specification: it has other parameters or another "
            "optimiser's state; give the state of a run with the same model and optimiser, or "
            "start_state(...) of its parameters"
        )
    return initial


def fit(
    spec: TrainSpec,
    dataset: Dataset,
    state: TrainState,
    schedule: np.ndarray,
    weights: np.ndarray,
    key: jax.Array,
    *,
    start: int = 0,
    progress: Progress | None = None,
) -> TrainState:
    """Runs the steps from `start` to the end of the schedule from a given state; nothing is kept.

    This is how a run is replayed from a snapshot with other weights, and how methods take training
    steps of their own (fine-tuning; ascent, with weights of -1).

    Raises:
      DivergenceError: if a loss or the final state is not finite.
    """
    schedule, weights = check_inputs(spec, dataset, schedule, weights)
    losses = np.zeros(len(schedule), np.float32)
    latest = state
    stretches = _iterate(spec, dataset, state, losses, schedule, weights, key, start=start)
    for position, latest, _, _ in stretches:  # noqa: B007
        if progress is not None:
            progress(position - start, len(schedule) - start)
    return tree.to_host(latest)


def _iterate(
    spec, dataset, state, losses, schedule, weights, key, *, start, boundaries=(), mode="compiled"
):
    """Yields `(position, state, losses, seconds)` along the run and stops at divergence."""
    advance = {"compiled": loop.advance, "stepwise": loop.advance_stepwise}[mode]
    examples = loop.device_examples(dataset)
    schedule, weights = jnp.asarray(schedule), jnp.asarray(weights)
    watch, waiting, previous = Stopwatch(), 0.0, start

    def advance_to(carry, begin, end):
        return advance(spec, *carry, examples, weights, key, schedule, begin, end)

    total = len(schedule)
    # A copy, since the loop is donated the buffers, and a caller's typed keys would go with them.
    begin = (tree.to_host(state), jnp.asarray(losses))
    for position, (state, losses) in loop.chunks(  # noqa: B020
        advance_to, begin, start, total, tuple(boundaries)
    ):
        loop.check_losses(losses, previous, position)
        if position == total and not tree.is_finite(state):
            raise DivergenceError(
                f"training diverged: the state after step {total - 1} is not finite; "
                "lower the learning rate or clip the gradients"
            )
        previous = position
        paused = time.perf_counter()
        yield position, state, losses, watch.seconds() - waiting
        waiting += time.perf_counter() - paused
