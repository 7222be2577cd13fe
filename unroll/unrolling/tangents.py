"""Online tangents: what a run owes to each of its cohorts, carried along while it trains.

A cohort is a set of training examples that will be deleted together or not at all: a user, a
source, a shard. Give cohort a the weight c_a, 1 in training and 0 after its deletion, so that

    omega(c)[n] = omega[n] c_a  for n in cohort a,      w(c) = F(omega(c)).

The expansion of the run around c = 1, at the weights that delete the union U, is

    w(U) = w - sum_{a in U} t_a + 1/2 sum_{a,b in U} s_ab,
    t_a = d w / d c_a,    s_ab = d^2 w / d c_a d c_b.

With S_t the whole state and Phi_t one step, the tangents of the state obey

    t_a  <-  D Phi [t_a, e_a],
    s_ab <-  D^2 Phi [(t_a, e_a), (t_b, e_b)] + D Phi [s_ab, 0],

e_a being the change of the example weights per unit of c_a. For one cohort this is the series of
`unroll.unrolling.taylor` (c_1 = -t_a, c_2 = s_aa / 2); for plain SGD t_a is minus the sum of the
per-sample recursions of arXiv 2404.01712. A deletion after training, of any union, adds vectors.

Design: the step is linearised once, and the linear map is applied to all tangents, `group_size` of
them in one vmap, the groups one after the other. The model itself is trained by `train`, whose
stretches the tangents follow; they carry a copy of the state through their own program. So the run
has the bits of plain training by construction, at the price of one more gradient per step.
Rejected: reading the model off the tangents' program. Its matrix products may be fused differently,
and a twin from another program differs from the run by rounding before anything is deleted.
Rejected: the pairs a <= b as one vmapped list. Each pair then linearises along both of its cohorts;
here a row of pairs shares the linearisation along the first (93 and 53 ms a step for 20 cohorts and
the MLP of digits, 2 cores).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unroll import checkpoint, tree
from unroll.checks import seed_number, whole_number
from unroll.data.cohorts import cohort_numbers, register_cohorts
from unroll.data.dataset import Dataset
from unroll.data.ids import IdsLike
from unroll.errors import DivergenceError, InputError
from unroll.training import loop
from unroll.training.record import Record
from unroll.training.run import Progress, Run, check_initial, check_inputs, run_identity, train
from unroll.training.spec import TrainSpec, description_hash
from unroll.training.step import Examples, initial_state, train_step
from unroll.training.timing import Stopwatch
from unroll.training.trajectory import Trajectory
from unroll.types import TrainState
from unroll.unrolling.differentiability import kink_warning, refuse_half_precision

Leaves = list[jax.Array] | list[np.ndarray]
"""The floating-point leaves of a state, in the order of its tree."""

_NO_SNAPSHOTS = Record()
# Beyond this many tangents at once an accelerator gains little, and activations fill its memory.
_VMAPPED = 16


class Bundle(NamedTuple):
    """A state and its tangents, as the loop carries them.

    Attributes:
      state: the tangents' own copy of the state.
      first: `[K, ...]` per floating-point leaf: t_a.
      second: `[K, K // 2 + 1, ...]` per leaf: s_ab with b = a + offset modulo K, which meets each
        pair of cohorts (once; twice at the offset K / 2 of an even K); empty at order 1.
    """

    state: TrainState
    first: Leaves
    second: Leaves


def _floating(state: TrainState) -> list:
    return [leaf for leaf in jax.tree.leaves(state) if tree.is_floating(leaf)]


def _replaced(state: TrainState, floating: Iterable) -> TrainState:
    """The state with other floating-point leaves; step counters and keys stay."""
    floating = iter(floating)
    return jax.tree.map(lambda leaf: next(floating) if tree.is_floating(leaf) else leaf, state)


def tangent_step(
    spec: TrainSpec,
    bundle: Bundle,
    examples: Examples,
    weights: jax.Array,
    members: jax.Array,
    key: jax.Array,
    step: jax.Array,
    slots: jax.Array,
    group_size: int,
) -> Bundle:
    """Maps a state and its tangents before a step to those after it.

    Args:
      spec: what to train.
      bundle: before the step.
      examples: the training set.
      weights: `[N]` example weights omega.
      members: int32 `[N]`, the number of each example's cohort, -1 for none.
      key: typed key of the run.
      step: index of the step.
      slots: int32 `[B]` example ids, -1 for empty slots.
      group_size: tangents that go through the linearised step together.
    """

    def step_of(leaves, weights):
        state = _replaced(bundle.state, leaves)
        after, _ = train_step(spec, state, examples, weights, key, step, slots)
        return _floating(after), after

    def direction(cohort):
        return jnp.where(members == cohort, weights, 0)

    leaves = _floating(bundle.state)
    _, along, after = jax.linearize(step_of, leaves, weights, has_aux=True)
    count = len(bundle.first[0])
    first = _grouped(
        lambda pair: along(pair[0], direction(pair[1])),
        (bundle.first, jnp.arange(count)),
        group_size,
    )
    if not bundle.second:
        return Bundle(after, first, [])

    def row(entry):
        cohort, second = entry
        tangent = [leaf[cohort] for leaf in bundle.first]

        def derivative(leaves, weights, tangent):
            change = (tangent, direction(cohort))
            return jax.jvp(lambda *at: step_of(*at)[0], (leaves, weights), change)[1]

        _, along = jax.linearize(derivative, leaves, weights, tangent)
        others = (cohort + jnp.arange(len(second[0]))) % count
        return _grouped(
            lambda pair: along([x[pair[0]] for x in bundle.first], direction(pair[0]), pair[1]),
            (others, second),
            group_size,
        )

    return Bundle(after, first, jax.lax.map(row, (jnp.arange(count), bundle.second)))


def _grouped(function, arguments, group_size: int):
    # A batch of one would still carry an axis through every operation.
    return jax.lax.map(function, arguments, batch_size=None if group_size == 1 else group_size)


@jax.jit(static_argnames=("spec", "group_size"), donate_argnames=("bundle",))
def advance_tangents(
    spec: TrainSpec,
    bundle: Bundle,
    examples: Examples,
    weights: jax.Array,
    members: jax.Array,
    key: jax.Array,
    schedule: jax.Array,
    start: int | jax.Array,
    stop: int | jax.Array,
    group_size: int,
) -> Bundle:
    """The steps `start <= t < stop` of a bundle; arguments as in `tangent_step`, one program."""

    def body(step, bundle):
        return tangent_step(
            spec, bundle, examples, weights, members, key, step, schedule[step], group_size
        )

    return jax.lax.fori_loop(start, stop, body, bundle)


@dataclasses.dataclass(frozen=True, eq=False)
class CohortTangents:
    """A trained model from which registered cohorts can be deleted by adding vectors.

    Attributes:
      run: the run, with the bits of plain training.
      cohorts: ids by name, in the order of registration.
      order: 1, or 2 with second-order tangents and all cross terms.
      bundle: final state and tangents, on the host.
      seconds: time spent on the tangents besides the run, compilation not counted.
      info: `copy_distance`, how far the tangents' copy of the parameters went from the run's by
        rounding; `warning`, where the tangents are not to be trusted.
    """

    run: Run
    cohorts: dict[str, np.ndarray]
    order: int
    bundle: Bundle
    seconds: float
    info: dict[str, Any]

    def delete(self, names: str | Iterable[str], *, order: int | None = None) -> TrainState:
        """The run's final state without a union of cohorts.

        The state depends on the set of names only: on no order, and on no earlier deletion. After
        a deletion of `a`, a request to delete `b` as well is `delete(["a", "b"])`.

        Args:
          names: registered cohorts; none gives the run's own state, bit for bit.
          order: 1 or 2, at most that of the tangents, which is the default.

        Returns:
          The state on the host: integer leaves are the run's own, the sums are taken in float64.

        Raises:
          InputError: if a cohort was not registered, nothing would be retained, or there are no
            tangents of that order.
        """
        chosen = self._numbers([names] if isinstance(names, str) else names)
        order = self.order if order is None else whole_number("order", order)
        if order > self.order:
            raise InputError(
                f"order {order} of tangents of order {self.order}: train with order={order}"
            )
        if not chosen:
            return self.run.state
        change = self._change(chosen, order)
        return _replaced(
            self.run.state,
            (
                (np.asarray(leaf, np.float64) + difference).astype(leaf.dtype)
                for leaf, difference in zip(_floating(self.run.state), change, strict=True)
            ),
        )

    def tangent(self, name: str) -> TrainState:
        """t_a, the derivative of the final state in the weight of a cohort; integers unchanged."""
        (cohort,) = self._numbers([name])
        return _replaced(self.run.state, (leaf[cohort] for leaf in self.bundle.first))

    def cross(self, name: str, other: str) -> TrainState:
        """s_ab, the second derivative in the weights of two cohorts or, with one name twice, one.

        Raises:
          InputError: if a cohort was not registered, or the tangents are of order 1.
        """
        if self.order < 2:
            raise InputError("tangents of order 1 have no second derivatives: train with order=2")
        (first,), (second,) = self._numbers([name]), self._numbers([other])
        index = self._place(first, second)
        return _replaced(self.run.state, (leaf[index] for leaf in self.bundle.second))

    @property
    def bytes_per_cohort(self) -> float:
        """Bytes of the tangents, cross terms included, divided by the number of cohorts."""
        leaves = [*self.bundle.first, *self.bundle.second]
        return sum(leaf.nbytes for leaf in leaves) / len(self.cohorts)

    @property
    def example_gradients(self) -> float:
        """Example-gradient evaluations spent on the tangents, besides those of the run.

        Per step one gradient for the copy of the state, and for each linearised pass the products
        of two series that it consists of: 2 for a tangent (a Hessian-vector product); at order 2
        1 + 2 for the linearisation along each cohort and 2 + 4 for each of its pairs.
        """
        count = len(self.cohorts)
        passes = 1 + 2 * count
        if self.order == 2:
            passes += count * (3 + 6 * (count // 2 + 1))
        return self.run.example_gradients * passes

    def _numbers(self, names: Iterable[str]) -> list[int]:
        known = {name: number for number, name in enumerate(self.cohorts)}
        wanted = set(names)
        if unknown := sorted(map(str, wanted - set(known))):
            raise InputError(
                f"cohort {unknown[0]!r} was not registered before training; "
                f"registered: {_listed(known)}"
            )
        if sum(len(self.cohorts[name]) for name in wanted) == len(self.run.dataset):
            raise InputError("the cohorts are the whole training set: retain at least one example")
        return sorted(known[name] for name in wanted)

    def _place(self, first: int, second: int) -> tuple[int, int]:
        """Where s_ab lies in `Bundle.second`."""
        count = len(self.cohorts)
        offset = (second - first) % count
        return (first, offset) if offset <= count // 2 else (second, count - offset)

    def _change(self, chosen: list[int], order: int) -> Iterable[np.ndarray]:
        pairs = [(a, b) for i, a in enumerate(chosen) for b in chosen[i:]] if order == 2 else []
        places = [(*self._place(a, b), 0.5 if a == b else 1.0) for a, b in pairs]
        for index, first in enumerate(self.bundle.first):
            change = -sum(np.asarray(first[a], np.float64) for a in chosen)
            for a, offset, factor in places:
                change += factor * np.asarray(self.bundle.second[index][a, offset], np.float64)
            yield change


def _listed(names: Iterable[str], most: int = 20) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")


def train_with_tangents(
    spec: TrainSpec,
    dataset: Dataset,
    schedule: np.ndarray,
    cohorts: Mapping[str, IdsLike],
    *,
    seed: int = 0,
    weights: np.ndarray | None = None,
    initial: TrainState | None = None,
    order: int = 1,
    group_size: int | None = None,
    record: Record = _NO_SNAPSHOTS,
    store: checkpoint.Store | None = None,
    progress: Progress | None = None,
) -> CohortTangents:
    """Trains a model and carries the tangents of registered cohorts through the training.

    With a store, run and tangents are read back if they are finished, and go on from their latest
    stored states if they were killed, to the same bits: a later process that calls this with the
    same arguments deletes without training.

    Args:
      spec: how to train.
      dataset: the training set.
      schedule: int32 `[T, B]`, see `unroll.data.make_schedule`.
      cohorts: disjoint sets of example ids by name.
      seed: seed of initialisation, augmentation and dropout.
      weights: `[N]` example weights, all 1 by default.
      initial: state to start from; by default the seed makes one.
      order: 1, or 2 for second-order tangents too: K (K // 2 + 1) more states for K cohorts.
      group_size: tangents in one vmap. Memory for activations grows with it; by default 1 on the
        CPU, where more is not faster (digits and CIFAR-10, 2 cores), else 16.
      record: which states of the run to keep.
      store: where finished and partial work lives.
      progress: called with (steps done, steps in all), steps of which the tangents are done too.

    Raises:
      InputError: if the arguments do not fit together, or the run would compute in less than
        float32; see also `register_cohorts` and `train`.
      DivergenceError: if the run or a tangent is not finite.
      StoreError: if the store cannot be written.
    """
    if order not in (1, 2):
        raise InputError(f"order of the tangents must be 1 or 2; got {order!r}")
    if group_size is None:
        group_size = 1 if jax.default_backend() == "cpu" else _VMAPPED
    whole_number("group_size", group_size)
    seed = seed_number(seed)
    schedule, weights = check_inputs(spec, dataset, schedule, weights)
    registered = register_cohorts(cohorts, len(dataset))
    group_size = min(group_size, len(registered))
    settings = (spec, dataset, schedule, weights, seed, initial)
    trajectory, advance, blank = _computation(settings, registered, order, group_size, store)
    carrier = _Carrier(trajectory, advance, blank, tuple(registered), progress)
    run = train(
        spec,
        dataset,
        schedule,
        seed=seed,
        weights=weights,
        initial=initial,
        record=record,
        store=store,
        progress=carrier.follow,
    )
    copy = carrier.bundle.state.params
    info = {"copy_distance": tree.distance(copy, run.state.params)}
    if warning := kink_warning(spec, "check deletions against retraining"):
        info["warning"] = warning
    bundle = tree.to_host(carrier.bundle)
    return CohortTangents(run, registered, order, bundle, carrier.seconds, info)


def _computation(settings, cohorts, order, group_size, store):
    """Where the tangents are kept, how they are advanced, and what they are before the run."""
    spec, dataset, schedule, weights, seed, initial = settings
    key, members = jax.random.key(seed), cohort_numbers(cohorts, len(dataset))
    made = tree.to_host(initial_state(spec, key, dataset.inputs))
    first = made if initial is None else check_initial(initial, made)
    start = None if initial is None else tree.content_hash(first)
    refuse_half_precision(spec, first, dataset, schedule.shape[1], "tangents")
    identity = {
        "program": "cohort tangents",
        "run": run_identity(spec, dataset, seed, schedule, weights, start),
        "cohorts": tree.content_hash(members),
        "order": order,
        "group_size": group_size,
    }
    trajectory = Trajectory(
        store, description_hash(identity), identity, _NO_SNAPSHOTS, len(schedule)
    )
    fixed = (loop.device_examples(dataset), jnp.asarray(weights), jnp.asarray(members), key)
    rows = jnp.asarray(schedule)

    def advance(bundle, start, stop):
        return advance_tangents(spec, bundle, *fixed, rows, start, stop, group_size)

    return trajectory, advance, _blank(first, len(cohorts), order)


class _Carrier:
    """Takes the tangents wherever the run has got to; `train` calls `follow` as its progress."""

    def __init__(self, trajectory, advance, blank, names, progress):
        self._trajectory, self._names, self._progress = trajectory, names, progress
        self._advance = advance
        # The run keeps the losses; a trajectory has a place for them all the same.
        losses = np.zeros(1, np.float32)
        self.position, bundle, self._losses, self.seconds = trajectory.begin((blank, losses))
        state, first, second = bundle
        # A copy, since the loop is donated the typed keys of the state.
        self.bundle = Bundle(tree.to_host(state), first, second)
        if self.position < trajectory.total:
            # Compiled before the run starts its clock, which takes pauses and compilations off and
            # would take a compilation in a pause off twice.
            self.bundle = jax.block_until_ready(advance(self.bundle, 0, 0))

    def follow(self, stop: int, total: int) -> None:
        """Advances the tangents to a step that the run has reached."""
        if self.position == total and self._progress is not None:
            self._progress(total, total)  # all of it was stored
        stretches = loop.chunks(self._timed, self.bundle, self.position, stop)
        for self.position, self.bundle in stretches:
            self._check_finite()
            self._trajectory.visit(self.position, self.bundle, self._losses, self.seconds)
            if self._progress is not None:
                self._progress(self.position, total)

    def _timed(self, bundle: Bundle, start: int, stop: int) -> Bundle:
        watch = Stopwatch()
        bundle = jax.block_until_ready(self._advance(bundle, start, stop))
        self.seconds += watch.seconds()
        return bundle

    def _check_finite(self) -> None:
        for leaves in (self.bundle.first, self.bundle.second):
            for leaf in leaves:
                bad = ~np.isfinite(np.asarray(leaf)).reshape(len(leaf), -1).all(axis=1)
                if bad.any():
                    raise DivergenceError(
                        f"the tangent of cohort {self._names[int(np.argmax(bad))]!r} is not finite "
                        f"before step {self.position}; lower "
                        "the learning rate, or give adam eps_root=1e-8: its square root has no "
                        "derivative where a gradient is exactly 0"
                    )


def _blank(state: TrainState, count: int, order: int) -> Bundle:
    """Tangents before the first step, where the state does not depend on any example."""
    leaves = [np.asarray(leaf) for leaf in _floating(state)]
    shape = (count, count // 2 + 1)
    return Bundle(
        state,
        [np.zeros((count, *leaf.shape), leaf.dtype) for leaf in leaves],
        [np.zeros((*shape, *leaf.shape), leaf.dtype) for leaf in leaves] if order == 2 else [],
    )
