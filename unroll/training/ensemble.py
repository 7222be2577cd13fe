"""Many runs at once: one specification over many keys, schedules and example weights.

Two ways to the same models, up to rounding:

- `sequential`: one run after the other through `run.train`. Bit-equal to single runs, shares their
  addresses in the store, and can serve as their twins. The processes of a job take turns.
- `batched`: the step is vmapped over the models of a device, and a group of models is laid out over
  the devices of all processes with `jax.shard_map`. The models share one program and need no
  communication. Not bit-equal to a single run (another order of summation), so never used for
  twins or replays.

`auto` takes `sequential` on the CPU for models with convolutions, which use all cores by
themselves, and for optimisers that keep a typed key (`noisy_sgd`), and `batched` otherwise.

The models of one device are a shard. It is stored and resumed as a unit, under the hash of its
members: its bits depend on no other shard, device or process. So a job of several processes
(`unroll.training.devices.join`) that was killed is started again and goes on from what the store
holds, each shard from its own latest state, and ends with the same bits. What each process returns
is the whole ensemble.

Rejected: `jax.pmap`, which is the old form of the same, and data parallelism inside one model: the
models of this library are small and many. Rejected: one entry in the store for a whole group. Some
process would have to gather and write the states of all the others, and another number of
processes could not go on from it.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from unroll import tree
from unroll.checkpoint import Store
from unroll.checks import seed_number, whole_number
from unroll.data.dataset import Dataset
from unroll.errors import DivergenceError, InputError
from unroll.training import devices, loop
from unroll.training.devices import MODELS
from unroll.training.record import Record
from unroll.training.run import Progress, Run, check_inputs, run_identity, train
from unroll.training.spec import TrainSpec, description_hash
from unroll.training.step import Examples, initial_state, train_step
from unroll.training.timing import Stopwatch
from unroll.training.trajectory import Trajectory
from unroll.types import PyTree, TrainState

_NONE = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble:
    """M trained models of one specification.

    Attributes:
      spec: how they were trained.
      seeds: seed of each.
      states: stacked final states, leaves `[M, ...]`, on the host.
      losses: `[M, T]` training losses.
      seconds: time spent in the steps, compilation not counted; in a job of several processes that
        of the slowest.
    """

    spec: TrainSpec
    seeds: tuple[int, ...]
    states: TrainState
    losses: np.ndarray
    seconds: float

    def __len__(self) -> int:
        return len(self.seeds)

    def member(self, index: int) -> TrainState:
        """Final state of one model."""
        return jax.tree.map(lambda leaf: leaf[index], self.states)


@dataclasses.dataclass(frozen=True, eq=False)
class _Models:
    """What is to be trained, checked: `schedules` `[M, T, B]`, or `[T, B]` for all; `weights`."""

    spec: TrainSpec
    dataset: Dataset
    seeds: tuple[int, ...]
    schedules: np.ndarray
    weights: np.ndarray

    @property
    def steps(self) -> int:
        return self.schedules.shape[-2]

    @property
    def shared_schedule(self) -> bool:
        return self.schedules.ndim == 2

    def schedule(self, index: int) -> np.ndarray:
        return self.schedules if self.shared_schedule else self.schedules[index]


def train_ensemble(
    spec: TrainSpec,
    dataset: Dataset,
    schedules: np.ndarray,
    *,
    seeds: tuple[int, ...],
    weights: np.ndarray | None = None,
    mode: Literal["auto", "sequential", "batched"] = "auto",
    group_size: int = 64,
    mesh: Mesh | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Ensemble:
    """Trains one model per seed.

    In a job of several processes each calls this with the same arguments, trains its share and
    returns the whole ensemble.

    Args:
      spec: how to train.
      dataset: the training set of all.
      schedules: int32 `[M, T, B]`, or `[T, B]` shared by all, which takes less memory and time.
      seeds: M seeds.
      weights: `[M, N]` or `[N]` example weights; all 1 by default.
      mode: see the module docstring.
      group_size: most models trained together in `batched` mode, at least one per device; memory
        grows with it. Groups are made as even as possible, so that they share one program.
      mesh: devices for `batched` mode, by default all of the job. The processes of its devices
        share the work, in `sequential` mode too.
      store: where finished and partial models live; a killed ensemble resumes to the same bits.
      progress: called with (steps done, steps in all) summed over the models of all processes.

    Raises:
      InputError: if numbers of seeds, schedules and weights differ, the mode is unknown, or an
        optimiser that keeps a key is to be batched or trained by several processes.
      DivergenceError: if a model diverges; the message names seed and step.
      ProcessLost: if another process of the job has died.
    """
    whole_number("group_size", group_size)
    if mode not in ("auto", "sequential", "batched"):
        raise InputError(f"unknown ensemble mode {mode!r}; choose auto, sequential or batched")
    models = _checked(spec, dataset, schedules, seeds, weights)
    mesh = devices.model_mesh() if mesh is None else mesh
    state = jax.eval_shape(
        lambda: initial_state(spec, jax.random.key(0), jnp.asarray(dataset.inputs[:1]))
    )
    keyed = any(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(state))
    if keyed and (mode == "batched" or mesh.is_multi_process):
        raise InputError(
            "the optimiser keeps a random key, which is trained one model after the other in one "
            "process; choose mode='sequential' there"
        )
    if mode == "auto":
        mode = "sequential" if keyed else _faster_mode(state)
    if mode == "sequential":
        return _sequential(models, mesh, store, progress)
    return _batched(models, mesh, group_size, store, progress)


def _checked(spec, dataset, schedules, seeds, weights) -> _Models:
    count = len(seeds)
    if not count:
        raise InputError("an ensemble needs at least one seed")
    seeds = tuple(seed_number(seed) for seed in seeds)
    weights = np.ones(len(dataset), np.float32) if weights is None else weights
    schedules = _one_or_one_each(schedules, 2, count, "schedules")
    weights = _one_or_one_each(weights, 1, count, "rows of weights")
    if schedules.ndim == 2:
        schedules = first = check_inputs(spec, dataset, schedules, None)[0]
    else:
        schedules = np.stack([check_inputs(spec, dataset, each, None)[0] for each in schedules])
        first = schedules[0]
    # Of the schedule one row is enough here: it has been checked.
    rows = [check_inputs(spec, dataset, first[:1], row)[1] for row in np.atleast_2d(weights)]
    rows = np.broadcast_to(np.stack(rows), (count, len(dataset)))
    return _Models(spec, dataset, seeds, schedules, rows)


def _one_or_one_each(array: np.ndarray, dimensions: int, count: int, what: str) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim != dimensions and (array.ndim != dimensions + 1 or len(array) != count):
        raise InputError(
            f"{len(array)} {what} for {count} seeds; give one for each, or one for all"
        )
    return array


def _faster_mode(state: TrainState) -> str:
    if jax.default_backend() != "cpu":
        return "batched"
    convolutions = any(leaf.ndim == 4 for leaf in jax.tree.leaves(state.params))
    return "sequential" if convolutions else "batched"


def _shifted(progress: Progress | None, before: int, count: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, steps: progress(before * steps + done, count * steps)


def _sequential(models: _Models, mesh: Mesh, store, progress) -> Ensemble:
    """One run after the other; model i is trained by process i modulo their number."""
    meeting = devices.first_devices(mesh)
    rank, processes, count = devices.local_places(meeting)[0], meeting.size, len(models.seeds)
    runs: list[Run] = []
    for begin in range(0, count, processes):
        failure = None
        if begin + rank < count:
            try:
                report = _shifted(progress, begin, count)
                runs.append(_train_one(models, begin + rank, store, report))
            except DivergenceError as error:
                failure = error
        failed = devices.gathered(meeting, np.int32(failure is not None))
        if failure is not None:
            raise failure
        if failed.any():
            raise DivergenceError(
                f"the model with seed {models.seeds[begin + int(failed.argmax())]} diverged in "
                "another process, whose log says at which step"
            )
    results = [(run.state, run.losses) for run in runs]
    seconds = sum(run.seconds for run in runs)
    if processes > 1:
        # A process that had no turn in the last round fills up with what nobody looks at.
        rounds = -(-count // processes)
        results += [_blank(models, 0)] * (rounds - len(results))
        stacked = devices.on_every_host(meeting, devices.lay_out(meeting, [_stacked(results)]))
        order = [(i % processes) * rounds + i // processes for i in range(count)]
        states, losses = jax.tree.map(lambda leaf: leaf[order], stacked)
        seconds = float(devices.gathered(meeting, np.float32(seconds)).max())
    else:
        states, losses = _stacked(results)
    return Ensemble(models.spec, models.seeds, states, losses, seconds)


def _train_one(models: _Models, index: int, store, progress) -> Run:
    seed = models.seeds[index]
    settings = dict(seed=seed, weights=models.weights[index], store=store, progress=progress)
    try:
        return train(models.spec, models.dataset, models.schedule(index), **settings)
    except DivergenceError as error:
        raise DivergenceError(f"model with seed {seed}: {error}") from None


def _blank(models: _Models, index: int) -> tuple[TrainState, np.ndarray]:
    """A model before its first step, with the bits of a single run, and its losses."""
    key = jax.random.key(models.seeds[index])
    state = initial_state(models.spec, key, models.dataset.inputs)
    return tree.to_host(state), np.zeros(models.steps, np.float32)


def _stacked(trees: list[PyTree]) -> PyTree:
    def stack(*leaves):
        if not tree.is_key(leaves[0]):
            return np.stack(leaves)
        bits = np.stack([jax.random.key_data(leaf) for leaf in leaves])
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaves[0]))

    return jax.tree.map(stack, *trees)


class _Shard:
    """The models of one device, stored as a unit.

    Beyond the last model it repeats that one, so that all devices run one program. A shard of
    nothing but repetitions takes no steps and is not stored.

    Attributes:
      members: indices of its models.
      position: step before which `state` and `losses` are.
      seconds: what it has taken to get there.
    """

    def __init__(self, models: _Models, begin: int, width: int, store: Store | None):
        last = len(models.seeds) - 1
        self.members = np.minimum(np.arange(begin, begin + width), last)
        self.seeds = np.array([models.seeds[index] for index in self.members], np.uint32)
        self.weights = models.weights[self.members]
        self.schedules = models.schedules
        if not models.shared_schedule:
            self.schedules = models.schedules[self.members]
        blank = _stacked([_blank(models, index) for index in self.members])
        self._trajectory = None
        self.position, self.seconds = models.steps, 0.0
        self.state, self.losses = blank
        if begin <= last:
            identity = {} if store is None else self._identity(models)
            address = description_hash(identity)
            self._trajectory = Trajectory(store, address, identity, Record(), models.steps)
            begun = self._trajectory.begin(blank)
            self.position, self.state, self.losses, self.seconds = begun

    def _identity(self, models: _Models) -> dict:
        """As `run_identity`, with all members where that has one run."""
        first = int(self.members[0])
        shared = run_identity(
            models.spec,
            models.dataset,
            models.seeds[first],
            models.schedule(first),
            models.weights[first],
        )
        schedule = "one schedule" if models.shared_schedule else "a schedule each"
        return {
            **shared,
            "program": f"batched, {schedule}",
            "seed": self.seeds.tolist(),
            "schedule": tree.content_hash(self.schedules),
            "weights": tree.content_hash(self.weights),
        }

    def visit(self, position: int, state: PyTree, losses: PyTree, elapsed: float) -> None:
        """Keeps a state that the shard has been advanced to, if it is time to."""
        if position > self.position:
            self._trajectory.visit(position, state, losses, self.seconds + elapsed)


def _batched(models: _Models, mesh: Mesh, group_size: int, store, progress) -> Ensemble:
    count = len(models.seeds)
    most = max(1, group_size // mesh.size)
    groups = -(-count // (most * mesh.size))
    width = -(-count // (groups * mesh.size))
    examples = devices.replicate(mesh, loop.device_examples(models.dataset))
    parts = []
    for begin in range(0, count, width * mesh.size):
        shards = [
            _Shard(models, begin + place * width, width, store)
            for place in devices.local_places(mesh)
        ]
        parts.append(_train_group(models, mesh, shards, examples, _shifted(progress, begin, count)))
    states, losses, seconds = zip(*parts, strict=True)
    states, losses = jax.tree.map(
        lambda *leaves: np.concatenate(leaves)[:count], *zip(states, losses, strict=True)
    )
    return Ensemble(models.spec, models.seeds, states, losses, sum(seconds))


@functools.partial(jax.jit, static_argnames=("spec", "mesh"), donate_argnames=("state", "losses"))
def _advance_batched(
    spec: TrainSpec,
    mesh: Mesh,
    state: TrainState,
    losses: jax.Array,
    examples: Examples,
    weights: jax.Array,
    seeds: jax.Array,
    schedules: jax.Array,
    done: jax.Array,
    start: jax.Array,
    stop: jax.Array,
) -> tuple[TrainState, jax.Array, jax.Array]:
    """`loop.advance` for a group: leading axes of size M, laid out over the mesh.

    A device whose models are at step `done` already (`[devices]`) starts there. The third result,
    int32 `[M]`, tells the health of the models; see `_health`.
    """
    one_schedule = schedules.ndim == 2
    step_of_all = jax.vmap(
        functools.partial(train_step, spec),
        in_axes=(0, None, 0, 0, None, None if one_schedule else 0),
    )

    def local(state, losses, examples, weights, seeds, schedules, done, start, stop):
        keys = jax.vmap(jax.random.key)(seeds)
        axis = 0 if one_schedule else 1

        def body(step, carry):
            state, losses = carry
            slots = jax.lax.dynamic_index_in_dim(schedules, step, axis, keepdims=False)
            state, loss = step_of_all(state, examples, weights, keys, step, slots)
            return state, losses.at[:, step].set(loss)

        begin = jnp.maximum(start, done[0])
        state, losses = jax.lax.fori_loop(begin, stop, body, (state, losses))
        return state, losses, _health(state, losses, stop)

    each, shared = PartitionSpec(MODELS), PartitionSpec()
    rows = shared if one_schedule else each
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(each, each, shared, each, each, rows, each, shared, shared),
        out_specs=(each, each, each),
        check_vma=False,
    )(state, losses, examples, weights, seeds, schedules, done, start, stop)


def _health(state: TrainState, losses: jax.Array, stop: jax.Array) -> jax.Array:
    """Per model the step of the first loss that is not finite, T if only the state is not, or -1.

    Found on the device, so that the host need not fetch states and losses to look for it.
    """
    count, total = losses.shape
    bad = ~jnp.isfinite(losses) & (jnp.arange(total) < stop)
    leaves = [leaf for leaf in jax.tree.leaves(state) if tree.is_floating(leaf)]
    sound = [jnp.isfinite(leaf).reshape(count, -1).all(axis=1) for leaf in leaves]
    sound = functools.reduce(jnp.logical_and, sound)
    by_state = jnp.where(sound, _NONE, total)
    return jnp.where(bad.any(axis=1), bad.argmax(axis=1), by_state).astype(jnp.int32)


def _train_group(models, mesh, shards, examples, progress) -> tuple[PyTree, np.ndarray, float]:
    """Trains the shards of a group to the end; returns all its states, losses, and seconds."""
    total = models.steps
    start = int(devices.gathered(mesh, np.int32(min(s.position for s in shards))).min())
    carry = devices.lay_out(mesh, [(shard.state, shard.losses) for shard in shards])
    lockstep = _Lockstep(models, mesh, shards, examples)
    watch, waiting, elapsed = Stopwatch(), 0.0, 0.0
    for position, carry in loop.chunks(lockstep, carry, start, total):  # noqa: B020
        paused = time.perf_counter()
        elapsed = watch.seconds() - waiting
        if lockstep.failure is None:
            parts = devices.local_parts(mesh, carry)
            for shard, (state, losses) in zip(shards, parts, strict=True):
                shard.visit(position, state, losses, elapsed)
            if progress is not None:
                members = min(mesh.size * len(shards[0].members), len(models.seeds))
                progress(position * members, total)
        waiting += time.perf_counter() - paused
    lockstep.agree(total)
    states, losses = devices.on_every_host(mesh, carry)
    seconds = np.float32(max(shard.seconds for shard in shards) + elapsed)
    return states, losses, float(devices.gathered(mesh, seconds).max())


class _Lockstep:
    """Advances a group, for `loop.chunks`, by the same stretches in all processes.

    Each process proposes where the next stretch is to end, by its own clock, and the nearest end is
    taken. With it they exchange whether a model has diverged, so that all raise the same error.

    Attributes:
      failure: the first of this process's models that diverged, and at which step.
    """

    def __init__(self, models: _Models, mesh: Mesh, shards: list[_Shard], examples: Examples):
        self._models, self._mesh, self._shards = models, mesh, shards
        self._examples = examples
        each = [(shard.weights, shard.seeds) for shard in shards]
        self._weights, self._seeds = devices.lay_out(mesh, each)
        if models.shared_schedule:
            self._schedules = devices.replicate(mesh, models.schedules)
        else:
            self._schedules = devices.lay_out(mesh, [shard.schedules for shard in shards])
        done = [np.array([shard.position], np.int32) for shard in shards]
        self._done = devices.lay_out(mesh, done)
        self.failure: tuple[int, int] | None = None

    def __call__(self, carry: PyTree, begin: int, end: int) -> PyTree:
        while begin < end:
            stop = self.agree(end)
            *carry, health = _advance_batched(
                self._models.spec,
                self._mesh,
                *carry,
                self._examples,
                self._weights,
                self._seeds,
                self._schedules,
                self._done,
                begin,
                stop,
            )
            self._examine(health, stop)
            begin = stop
        return tuple(carry)

    def _examine(self, health: jax.Array, stop: int) -> None:
        total = self._models.steps
        parts = devices.local_parts(self._mesh, health)
        for shard, steps in zip(self._shards, parts, strict=True):
            for member, step in zip(shard.members, np.asarray(steps), strict=True):
                # A state that overflowed on the way shows in the next loss, with its step.
                if step >= 0 and (step < total or stop == total) and self.failure is None:
                    self.failure = int(member), int(step)

    def agree(self, end: int) -> int:
        """The nearest end that a process proposes.

        Raises:
          DivergenceError: if a model has diverged.
          ProcessLost: if another process has died.
        """
        failure = (_NONE, _NONE) if self.failure is None else self.failure
        votes = devices.gathered(self._mesh, np.array([end, *failure], np.int32))
        if (failed := votes[votes[:, 1] != _NONE]).size:
            _, member, step = min(failed.tolist(), key=lambda vote: vote[1])
            what = f"the loss of step {step}" if step < self._models.steps else "the final state"
            raise DivergenceError(
                f"training diverged (model with seed {self._models.seeds[member]}): {what} is not "
                "finite; lower the learning rate or clip the gradients"
            )
        return int(votes[:, 0].min())
