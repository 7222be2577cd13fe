"""Many runs at once: one specification over many keys, schedules and example weights.

Two ways to the same models, up to rounding:

- `sequential`: one run after the other through `run.train`. Bit-equal to single runs, shares their
  addresses in the store, and can serve as their twins.
- `batched`: the step is vmapped over the models of a group, and the group is laid out over the
  local devices with `jax.shard_map`. The models share one program and need no communication. Not
  bit-equal to a single run (another order of summation), so never used for twins or replays.

`auto` takes `sequential` on a single CPU device for models with convolutions, where batching gains
nothing, and `batched` otherwise.

Rejected: `jax.pmap`, which is the old form of the same, and data parallelism inside one model: the
models of this library are small and many.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unroll import tree
from unroll.checkpoint import Store
from unroll.checks import seed_number, whole_number
from unroll.data.dataset import Dataset
from unroll.errors import DivergenceError, InputError
from unroll.training import loop
from unroll.training.devices import MODELS, model_mesh
from unroll.training.record import Record
from unroll.training.run import Progress, Run, check_inputs, run_identity, train
from unroll.training.spec import TrainSpec, description_hash
from unroll.training.step import Examples, initial_state, train_step
from unroll.training.timing import Stopwatch
from unroll.training.trajectory import Trajectory
from unroll.types import TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble:
    """M trained models of one specification.

    Attributes:
      spec: how they were trained.
      seeds: seed of each.
      states: stacked final states, leaves `[M, ...]`, on the host.
      losses: `[M, T]` training losses.
      seconds: time spent in the steps, compilation not counted.
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

    Args:
      spec: how to train.
      dataset: the training set of all.
      schedules: int32 `[M, T, B]`, or `[T, B]` shared by all.
      seeds: M seeds.
      weights: `[M, N]` or `[N]` example weights; all 1 by default.
      mode: see the module docstring.
      group_size: models trained together in `batched` mode; memory grows with it. Part of the
        identity of a stored group.
      mesh: devices for `batched` mode, all local ones by default.
      store: where finished and partial models live; a killed ensemble resumes to the same bits.
      progress: called with (steps done, steps in all) summed over the models.

    Raises:
      InputError: if numbers of seeds, schedules and weights differ, or the mode is unknown.
      DivergenceError: if a model diverges; the message names seed and step.
    """
    count = len(seeds)
    if not count:
        raise InputError("an ensemble needs at least one seed")
    seeds = tuple(seed_number(seed) for seed in seeds)
    whole_number("group_size", group_size)
    weights = np.ones(len(dataset), np.float32) if weights is None else weights
    schedules = _one_per_model(schedules, 2, count, "schedules")
    weights = _one_per_model(weights, 1, count, "rows of weights")
    if mode not in ("auto", "sequential", "batched"):
        raise InputError(f"unknown ensemble mode {mode!r}; choose auto, sequential or batched")
    if mode == "auto":
        mode = _faster_mode(spec, dataset)
    if mode == "sequential":
        return _sequential(spec, dataset, schedules, seeds, weights, store, progress)
    mesh = mesh if mesh is not None else model_mesh()
    parts = []
    for begin in range(0, count, group_size):
        group = slice(begin, min(begin + group_size, count))
        part = _batched_group(
            spec,
            dataset,
            schedules[group],
            seeds[group],
            weights[group],
            mesh,
            store,
            _shifted(progress, begin, count),
        )
        parts.append(part)
    states = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(p.states for p in parts))
    losses = np.concatenate([part.losses for part in parts])
    return Ensemble(spec, tuple(seeds), states, losses, sum(part.seconds for part in parts))


def _one_per_model(array: np.ndarray, dimensions: int, count: int, what: str) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim == dimensions:
        return np.broadcast_to(array, (count, *array.shape))
    if array.ndim != dimensions + 1 or len(array) != count:
        raise InputError(
            f"{len(array)} {what} for {count} seeds; give one for each, or one for all"
        )
    return array


def _faster_mode(spec: TrainSpec, dataset: Dataset) -> str:
    if jax.local_device_count() > 1 or jax.default_backend() != "cpu":
        return "batched"
    state = jax.eval_shape(
        lambda: initial_state(spec, jax.random.key(0), jnp.asarray(dataset.inputs[:1]))
    )
    convolutions = any(leaf.ndim == 4 for leaf in jax.tree.leaves(state.params))
    return "sequential" if convolutions else "batched"


def _shifted(progress: Progress | None, before: int, count: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, steps: progress(before * steps + done, count * steps)


def _sequential(spec, dataset, schedules, seeds, weights, store, progress) -> Ensemble:
    runs: list[Run] = []
    for index, seed in enumerate(seeds):
        report = _shifted(progress, index, len(seeds))
        settings = dict(seed=seed, weights=weights[index], store=store, progress=report)
        try:
            runs.append(train(spec, dataset, schedules[index], **settings))
        except DivergenceError as error:
            raise DivergenceError(f"model with seed {seed}: {error}") from None
    states = jax.tree.map(lambda *leaves: np.stack(leaves), *(run.state for run in runs))
    losses = np.stack([run.losses for run in runs])
    return Ensemble(spec, tuple(seeds), states, losses, sum(run.seconds for run in runs))


@functools.partial(jax.jit, static_argnames=("spec", "mesh"), donate_argnames=("state", "losses"))
def _advance_batched(
    spec: TrainSpec,
    mesh: Mesh,
    state: TrainState,
    losses: jax.Array,
    examples: Examples,
    weights: jax.Array,
    keys: jax.Array,
    schedules: jax.Array,
    start: jax.Array,
    stop: jax.Array,
) -> tuple[TrainState, jax.Array]:
    """`loop.advance` for a group: leading axes of size M, laid out over the mesh."""
    step_of_all = jax.vmap(functools.partial(train_step, spec), in_axes=(0, None, 0, 0, None, 0))

    def local(state, losses, examples, weights, keys, schedules, start, stop):
        def body(step, carry):
            state, losses = carry
            slots = jax.lax.dynamic_index_in_dim(schedules, step, axis=1, keepdims=False)
            state, loss = step_of_all(state, examples, weights, keys, step, slots)
            return state, losses.at[:, step].set(loss)

        return jax.lax.fori_loop(start, stop, body, (state, losses))

    each, shared = PartitionSpec(MODELS), PartitionSpec()
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(each, each, shared, each, each, each, shared, shared),
        out_specs=(each, each),
        check_vma=False,
    )(state, losses, examples, weights, keys, schedules, start, stop)


def _batched_group(spec, dataset, schedules, seeds, weights, mesh, store, progress) -> Ensemble:
    """Trains one group to the end; the group is stored as a unit."""
    checked = [check_inputs(spec, dataset, s, w) for s, w in zip(schedules, weights, strict=True)]
    schedules = np.stack([schedule for schedule, _ in checked])
    weights = np.stack([weight for _, weight in checked])
    total = schedules.shape[1]
    identity = {
        "program": f"batched over {mesh.size} devices",
        "members": [
            run_identity(spec, dataset, *member)
            for member in zip(seeds, schedules, weights, strict=True)
        ],
    }
    trajectory = Trajectory(store, description_hash(identity), identity, Record(), total)
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    blank_state = jax.vmap(lambda key: initial_state(spec, key, dataset.inputs[:1]))(keys)
    blank = (tree.to_host(blank_state), np.zeros(schedules.shape[:2], np.float32))
    start, state, losses, before = trajectory.begin(blank)
    watch, waiting, previous = Stopwatch(), 0.0, start
    elapsed, carry = 0.0, (state, losses)

    place, count = _placement(mesh, len(seeds))
    examples = jax.device_put(loop.device_examples(dataset), NamedSharding(mesh, PartitionSpec()))
    fixed = place((weights, keys, schedules))

    def advance_to(carry, begin, end):
        return _advance_batched(spec, mesh, *carry, examples, *fixed, begin, end)

    for position, carry in loop.chunks(advance_to, place(carry), start, total):  # noqa: B020
        paused = time.perf_counter()
        elapsed = watch.seconds() - waiting
        members = jax.tree.map(lambda leaf: np.array(leaf)[:count], carry)
        _check_members(members, seeds, previous, position, total)
        trajectory.visit(position, *members, before + elapsed)
        if progress is not None:
            progress(position * count, total)
        previous = position
        waiting += time.perf_counter() - paused
    state, losses = jax.tree.map(lambda leaf: np.array(leaf)[:count], carry)
    return Ensemble(spec, tuple(seeds), state, losses, before + elapsed)


def _placement(mesh: Mesh, count: int):
    """How to lay stacked trees out over the mesh: padded to a multiple of its size."""
    padded = -(-count // mesh.size) * mesh.size
    sharding = NamedSharding(mesh, PartitionSpec(MODELS))
    index = np.minimum(np.arange(padded), count - 1)

    def place(stacked):
        return jax.device_put(jax.tree.map(lambda leaf: leaf[index], stacked), sharding)

    return place, count


def _check_members(members, seeds, start, stop, total) -> None:
    state, losses = members
    for index, seed in enumerate(seeds):
        loop.check_losses(losses[index], start, stop, f" (model with seed {seed})")
        member = jax.tree.map(lambda leaf, index=index: leaf[index], state)
        if stop == total and not tree.is_finite(member):
            raise DivergenceError(
                f"training diverged (model with seed {seed}): the final state is not finite; "
                "lower the learning rate or clip the gradients"
            )
