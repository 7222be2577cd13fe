"""One stage of a constituent: some epochs on the slices so far, from the state before.

Two ways to train stages, each exact within itself:

- `train_alone`: an ordinary run (`unroll.training.train`), on one device.
- `train_in_lanes`: constituents side by side in one program of W lanes per device. A constituent
  has its own lane, `shard % W`, of its own group, `shard // W`, in every training, and the program
  has the same shapes in every training; lanes without work stand idle. So the bits of a constituent
  depend on W and on its own stage, and on no other lane, group or device.

The two differ in rounding, so a system is trained and retrained in one of them.

Design: what a stage may read is copied into a data set of its own, with rows of zeros where an
example is deleted, is of a later slice, or never was. Its shape is that of the largest shard, so
all constituents share one program; its content, and with it the address in the store, is that of
the remaining examples of the slices so far and nothing else. Rejected: the whole training set and a
schedule that names some of it. The bits are the same, but the address would change with every row
of every other shard, and isolation would be a promise of the schedule's.
Rejected: lanes packed with whatever has to be trained. A retraining would take less work, but a
program of another width sums in another order.
"""

from __future__ import annotations

import dataclasses
import functools
import secrets
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from unroll import tree
from unroll.checkpoint import Store
from unroll.data.dataset import Dataset
from unroll.deletion.lineage_files import NOISE
from unroll.errors import DivergenceError, InputError
from unroll.training import devices, loop
from unroll.training.devices import MODELS
from unroll.training.record import Record
from unroll.training.run import Progress, check_inputs, fit, run_identity, train
from unroll.training.spec import TrainSpec, description_hash
from unroll.training.step import Examples, train_step
from unroll.training.timing import Stopwatch
from unroll.training.trajectory import Trajectory
from unroll.types import PyTree, TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """What a constituent learns in one stage.

    Attributes:
      shard: number of its shard.
      slice: number of the last slice that it reads.
      data: what it reads; row numbers are places in the shard.
      schedule: int32 `[T, B]` places.
      seed: seed of augmentation and dropout.
      initial: state before the stage, on the host.
      stored: whether the state after it goes to the store, where there is one.
    """

    shard: int
    slice: int
    data: Dataset
    schedule: np.ndarray
    seed: int
    initial: TrainState
    stored: bool = True

    def __str__(self) -> str:
        return f"shard {self.shard}, slice {self.slice}"


class StageResult(NamedTuple):
    """State after a stage on the host, its address in a store, and the seconds it took."""

    state: TrainState
    address: str
    seconds: float


def train_alone(
    spec: TrainSpec,
    stages: Sequence[Stage],
    *,
    steps: int | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> list[StageResult]:
    """Trains stages one after the other, each as a run of its own; see `unroll.training.train`.

    Args:
      spec: how to train.
      stages: what to train.
      steps: every stage takes so many, at least its own; those beyond are its first ones again,
        whose outcome is thrown away.
      store: finished stages are read back from here, and killed ones go on.
      progress: called with (steps done, steps in all), all stages together.

    Raises:
      DivergenceError: if one diverges; the message names shard, slice and step.
    """
    lengths = [len(stage.schedule) if steps is None else steps for stage in stages]
    results, total, before = [], sum(lengths), 0
    for stage, length in zip(stages, lengths, strict=True):
        kept = store if stage.stored else None
        settings = dict(seed=stage.seed, initial=stage.initial, store=kept)
        report = _begun(progress, before, total)
        try:
            run = train(spec, stage.data, stage.schedule, progress=report, **settings)
        except DivergenceError as error:
            raise DivergenceError(f"{stage}: {error}") from None
        spent = _train_in_vain(spec, stage, length) if length > len(stage.schedule) else 0.0
        results.append(StageResult(run.state, run.address, run.seconds + spent))
        before += length
        if progress is not None:
            progress(before, total)
    return results


def _train_in_vain(spec: TrainSpec, stage: Stage, steps: int) -> float:
    """Takes the steps that a stage lacks, by the program of one that has them all; the seconds.

    The first steps once more, since those are known not to diverge; steps without examples might
    divide by nothing.
    """
    schedule = np.resize(stage.schedule, (steps, stage.schedule.shape[1]))
    weights, key = np.ones(len(stage.data), np.float32), jax.random.key(stage.seed)
    watch = Stopwatch()
    fit(spec, stage.data, stage.initial, schedule, weights, key, start=len(stage.schedule))
    return watch.seconds()


def store_noise(store: Store, like: TrainState, steps: int, description: str) -> None:
    """Stores an entry that looks like the state after a stage and says nothing.

    Its address follows from nothing, so a purge takes it for what nothing is known of, and removes
    it.

    Args:
      store: where.
      like: a state, for shapes and dtypes.
      steps: of the stage.
      description: what is written beside it; its length is seen.
    """

    def noise(leaf):
        leaf = np.asarray(jax.random.key_data(leaf) if tree.is_key(leaf) else leaf)
        drawn = generator.standard_normal(leaf.shape)
        return drawn.astype(leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf * 0

    generator, address = np.random.default_rng(), secrets.token_hex(32)
    value = {"state": jax.tree.map(noise, like), "losses": noise(np.zeros(steps, np.float32))}
    store.describe(address, {NOISE: description})
    store.write(address, steps, value, {"kind": "snapshot", "seconds": float(generator.random())})


def _begun(progress: Progress | None, before: int, total: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)


def train_in_lanes(
    spec: TrainSpec,
    stages: Sequence[Stage],
    *,
    width: int,
    steps: int,
    groups: int = 0,
    mesh: Mesh | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> list[StageResult]:
    """Trains stages of different shards side by side; see the module docstring.

    Args:
      spec: how to train.
      stages: what to train, one stage of each shard at most.
      width: lanes on a device.
      steps: length of the program's schedule, at least that of every stage. The bits belong to it,
        so it must not depend on what has been deleted.
      groups: so many groups of lanes take all steps of the program, whatever of them is needed;
        with 0 no lane goes further than the stages do.
      mesh: devices, by default all of this process; a group of lanes at a time on each.
      store: finished stages are read back from here, and killed ones go on.
      progress: called with (steps done, steps in all), all stages together.

    Raises:
      InputError: if the optimiser keeps a random key, or the mesh is of several processes.
      DivergenceError: if one diverges; the message names shard, slice and step.
    """
    if not stages:
        return []
    mesh = devices.model_mesh(jax.local_devices()) if mesh is None else mesh
    _check_lanes(stages, width, steps, mesh)
    members: dict[int, list[Stage]] = {}
    for stage in stages:
        members.setdefault(stage.shard // width, []).append(stage)
    chosen, results = [members[group] for group in sorted(members)], {}
    chosen += [[]] * (groups - len(chosen))
    total, before = sum(len(stage.schedule) for stage in stages), 0
    for begin in range(0, len(chosen), mesh.size):
        together = chosen[begin : begin + mesh.size]
        lanes = [
            _Lane(spec, stages[0], None, width, steps, store) for _ in range(mesh.size * width)
        ]
        for device, group in enumerate(together):
            for stage in group:
                place, kept = device * width + stage.shard % width, store if stage.stored else None
                lanes[place] = _Lane(spec, stage, stage, width, steps, kept)
        end = steps if groups else max(lane.end for lane in lanes)
        _train_lanes(spec, lanes, mesh, end, _begun(progress, before, total))
        for lane in lanes:
            if lane.stage is not None:
                results[lane.stage.shard] = lane.result()
                before += lane.end
    return [results[stage.shard] for stage in stages]


def _check_lanes(stages: Sequence[Stage], width: int, steps: int, mesh: Mesh) -> None:
    if mesh.is_multi_process:
        raise InputError("a SISA system is trained by one process; give a mesh of its devices")
    if any(tree.is_key(leaf) for leaf in jax.tree.leaves(stages[0].initial)):
        raise InputError(
            "the optimiser keeps a random key, which is trained one constituent after the other; "
            "choose mode='sequential'"
        )
    if len({stage.shard for stage in stages}) < len(stages):
        raise InputError("two stages of one shard; give one of each shard")
    longest = max(len(stage.schedule) for stage in stages)
    if longest > steps or width < 1:
        raise InputError(
            f"lanes of {steps} steps, {width} on a device, but a stage takes {longest}; give more"
        )


class _Lane:
    """A stage in its lane, or an idle lane, which has the arrays of some stage and takes no step.

    Attributes:
      stage: what is trained, `None` in an idle lane.
      start: step that it begins with.
      end: step that it ends before.
    """

    def __init__(
        self, spec: TrainSpec, like: Stage, stage: Stage | None, width: int, steps: int, store
    ):
        self.stage = stage
        weights = np.ones(len(like.data), np.float32)
        schedule, weights = check_inputs(spec, like.data, like.schedule, weights)
        self.data, self.seed = Examples(like.data.inputs, like.data.labels), np.uint32(like.seed)
        self.schedule = np.full((steps, schedule.shape[1]), -1, np.int32)
        self.schedule[: len(schedule)] = schedule
        self.state, self.losses = like.initial, np.zeros(steps, np.float32)
        self.start = self.end = 0
        self._before = 0.0
        if stage is None:
            return
        self.end = len(schedule)
        initial = tree.content_hash(like.initial)
        identity = {
            **run_identity(spec, like.data, like.seed, schedule, weights, initial),
            "program": f"lane {stage.shard % width} of {width}, {steps} steps",
        }
        self.address = description_hash(identity)
        self._trajectory = Trajectory(store, self.address, identity, Record(), self.end)
        begun = self._trajectory.begin((like.initial, self.losses[: self.end]))
        self.start, self.state, losses, self._before = begun
        self.losses = np.concatenate([losses, self.losses[self.end :]])
        self._visited = self.start
        self.seconds = self._before

    def visit(self, position: int, state: PyTree, losses: np.ndarray, elapsed: float) -> None:
        """Takes note of how far the lane has come, and keeps its state if it is time to."""
        position = min(position, self.end)
        if self.stage is None or position <= self._visited:
            return
        loop.check_losses(losses, self._visited, position, f" ({self.stage})")
        self._visited, self.seconds = position, self._before + elapsed
        if position == self.end:
            self.state = state = tree.to_host(state)
            if not tree.is_finite(state):
                raise DivergenceError(
                    f"training diverged ({self.stage}): the state after step {position - 1} is "
                    "not finite; lower the learning rate or clip the gradients"
                )
        self._trajectory.visit(position, state, losses[: self.end], self.seconds)

    def result(self) -> StageResult:
        """The state after the stage."""
        return StageResult(self.state, self.address, self.seconds)


def _train_lanes(
    spec: TrainSpec, lanes: Sequence[_Lane], mesh: Mesh, end: int, progress: Progress | None
) -> None:
    """Trains the lanes of one group on each device to their ends, and goes on to step `end`."""
    working = [lane for lane in lanes if lane.start < lane.end]
    total = sum(lane.end for lane in lanes)
    first = min((lane.start for lane in working), default=0)
    if not working and end == max(lane.end for lane in lanes):
        if progress is not None:
            progress(total, total)
        return
    width = len(lanes) // mesh.size

    def laid_out(*names: str):
        parts = []
        for device in range(mesh.size):
            own = lanes[device * width : (device + 1) * width]
            rows = [tuple(getattr(lane, name) for name in names) for lane in own]
            parts.append(jax.tree.map(lambda *leaves: np.stack(leaves), *rows))
        return devices.lay_out(mesh, parts)

    carry = laid_out("state", "losses")
    fixed = laid_out("data", "seed", "schedule", "start", "end")

    def advance_to(carry, begin, stop):
        return _advance_lanes(spec, mesh, *carry, *fixed, begin, stop)

    watch, waiting = Stopwatch(), 0.0
    for position, (states, losses) in loop.chunks(advance_to, carry, first, end):
        elapsed = (watch.seconds() - waiting) / max(len(working), 1)  # shared out among the lanes
        losses = np.asarray(losses)
        for number, lane in enumerate(lanes):
            if lane.stage is not None:
                state = jax.tree.map(lambda leaf, number=number: leaf[number], states)
                lane.visit(position, state, losses[number], elapsed)
        waiting = watch.seconds() - elapsed * len(working)
        if progress is not None:
            done = sum(max(min(position, lane.end), lane.start) for lane in lanes)
            progress(done, total)


@functools.partial(jax.jit, static_argnames=("spec", "mesh"), donate_argnames=("state", "losses"))
def _advance_lanes(
    spec: TrainSpec,
    mesh: Mesh,
    state: TrainState,
    losses: jax.Array,
    examples: Examples,
    seeds: jax.Array,
    schedules: jax.Array,
    starts: jax.Array,
    ends: jax.Array,
    begin: jax.Array,
    stop: jax.Array,
) -> tuple[TrainState, jax.Array]:
    """`loop.advance` for lanes `[L, ...]` with data of their own; steps outside of one's are idle.

    The arguments after `losses` are Examples `[L, n, ...]`, seeds `[L]`, schedules `[L, T, B]`, and
    the first step and the end of each lane, `[L]`.
    """

    def lane_step(state, loss_before, examples, key, slots, active, step):
        weights = jnp.ones(len(examples.labels), jnp.float32)
        new, loss = train_step(spec, state, examples, weights, key, step, slots)
        new = jax.tree.map(lambda one, other: jnp.where(active, one, other), new, state)
        return new, jnp.where(active, loss, loss_before)

    all_lanes = jax.vmap(lane_step, in_axes=(0, 0, 0, 0, 0, 0, None))

    def local(state, losses, examples, seeds, schedules, starts, ends, begin, stop):
        keys = jax.vmap(jax.random.key)(seeds)

        def body(step, carry):
            state, losses = carry
            active = (starts <= step) & (step < ends)
            slots = jax.lax.dynamic_index_in_dim(schedules, step, 1, keepdims=False)
            before = jax.lax.dynamic_index_in_dim(losses, step, 1, keepdims=False)
            state, loss = all_lanes(state, before, examples, keys, slots, active, step)
            return state, losses.at[:, step].set(loss)

        return jax.lax.fori_loop(begin, stop, body, (state, losses))

    each, shared = PartitionSpec(MODELS), PartitionSpec()
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(*[each] * 7, shared, shared),
        out_specs=(each, each),
        check_vma=False,
    )(state, losses, examples, seeds, schedules, starts, ends, begin, stop)
