"""A run with its weights at every step, for methods that follow the difference to the twin.

    d_t = w'_t - w_t        d_{t+1} = d_t - eta_t [G'_t(w_t + d_t) - G'_t(w_t)] + eta_t g_t

with G'_t the mean gradient of the retained examples of batch t and g_t that of the forgotten ones,
both over B. With the weights on record, the original's own steps cost nothing, and what is left to
save on is the bracket: a Hessian-vector product in all but name. `methods/sampled.py`,
`methods/deltagrad.py` and `methods/segments.py` replace it in three ways.

Design: one array `[T + 1, P]`, made by one replay, the same for every deletion: a preparation, not
a part of a deletion's cost, and reported beside it. Rejected: reading each state from the store
(thousands of small reads), and replaying while unlearning (which already costs a training).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from unroll import tree
from unroll.errors import InputError
from unroll.objectives import is_stateful
from unroll.training import loop
from unroll.training.run import Run
from unroll.training.spec import TrainSpec
from unroll.training.step import Examples, data_loss, gather, train_step
from unroll.training.timing import Stopwatch
from unroll.types import Params
from unroll.unrolling.differentiability import refuse_half_precision_of
from unroll.unrolling.forget_gradient import sgd_of_run

MEMORY_LIMIT = 8 * 2**30
"""Bytes that a record of the weights may take."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How parameters lie in a flat vector; equal for equal layouts, so that programs are shared.

    The inverse that `ravel_pytree` returns is a new closure in every call, and a static argument
    that is new in every call compiles anew.
    """

    structure: jax.tree_util.PyTreeDef
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, params: Params) -> Layout:
        leaves, structure = jax.tree.flatten(params)
        return cls(structure, tuple(np.shape(leaf) for leaf in leaves))

    def __call__(self, flat: jax.Array) -> Params:
        """Parameters from a flat vector."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])[:-1]
        parts = jnp.split(flat, ends)
        return self.structure.unflatten(
            [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        )


@dataclasses.dataclass(frozen=True, eq=False)
class RecordedWeights:
    """The weights of a run at every step.

    Attributes:
      weights: float `[T + 1, P]`, flattened parameters before each step and after the last.
      learning_rates: float32 `[T]`.
      unflatten: `[P]` to parameters.
      example_gradients: example-gradient evaluations of the replay that made them.
      seconds: its time, without compilation.
    """

    weights: jax.Array
    learning_rates: jax.Array
    unflatten: Layout
    example_gradients: float
    seconds: float


def check_followable(run: Run, name: str) -> None:
    """Refuses a run unless it is plain SGD in float32 whose steps are sums over examples.

    Args:
      run: the recorded run.
      name: what needs this, for the message.

    Raises:
      InputError: if it is not.
    """
    if sgd_of_run(run).momentum:
        raise InputError(f"{name} needs plain sgd; train with momentum=0.0 or use taylor")
    if run.state.model_state:
        raise InputError(f"{name} needs a model without batch normalisation; use group")
    if run.spec.denominator != "batch":
        raise InputError(f"{name} needs TrainSpec(denominator='batch')")
    if is_stateful(run.spec.objective):
        raise InputError(f"{name} needs an objective without a memory; set singular_gamma=0.0")
    refuse_half_precision_of(run, name)


def record_weights(run: Run, name: str) -> RecordedWeights:
    """Replays a run and keeps its weights at every step.

    Args:
      run: a plain-SGD run.
      name: what needs them, for the messages.

    Raises:
      InputError: if the run is of another kind, or the record would not fit `MEMORY_LIMIT`.
    """
    check_followable(run, name)
    params = run.snapshots[0].params
    flat = tree.flatten(params).astype(jax.tree.leaves(params)[0].dtype)
    needed = (run.steps + 1) * flat.size * flat.dtype.itemsize
    if needed > MEMORY_LIMIT:
        raise InputError(
            f"{name} keeps the weights of {run.steps} steps of {flat.size} parameters, "
            f"{needed / 2**30:.0f} GiB of at most {MEMORY_LIMIT / 2**30:.0f}; use replay or taylor"
        )
    watch = Stopwatch()
    weights = jax.block_until_ready(
        _replay(
            run.spec,
            run.snapshots[0],
            loop.device_examples(run.dataset),
            jnp.asarray(run.weights),
            run.key,
            jnp.asarray(run.schedule),
        )
    )
    rates = jnp.asarray(sgd_of_run(run).learning_rates, flat.dtype)
    return RecordedWeights(
        weights, rates, Layout.of(params), run.example_gradients, watch.seconds()
    )


@jax.jit(static_argnames=("spec",))
def _replay(spec, state, examples, weights, key, schedule):
    def flatten(state):
        return jax.flatten_util.ravel_pytree(state.params)[0]

    def body(step, carry):
        state, kept = carry
        state, _ = train_step(spec, state, examples, weights, key, step, schedule[step])
        return state, kept.at[step + 1].set(flatten(state))

    first = flatten(state)
    kept = jnp.zeros((len(schedule) + 1, first.size), first.dtype).at[0].set(first)
    return jax.lax.fori_loop(0, len(schedule), body, (state, kept))[1]


def slot_gradient(
    spec: TrainSpec,
    unflatten: Layout,
    examples: Examples,
    key: jax.Array,
    batch_size: int,
) -> Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]:
    """Gradient of some slots of a batch as a function of the flattened weights.

    Returns:
      `(w [P], step, slots [b], weights [b]) -> (1/B) sum_b weights[b] grad loss(w; slot b)`, `[P]`,
      without the penalties of the objective. Noise is that of the run.
    """
    ones = jnp.ones(len(examples.labels), jnp.float32)

    def gradient(w, step, slots, weights):
        batch = gather(spec, examples, ones, key, step, slots)
        batch = batch._replace(
            weights=batch.weights * weights, denominator=jnp.asarray(batch_size, w.dtype)
        )
        return jax.grad(lambda v: data_loss(spec, unflatten(v), {}, batch)[0])(w)

    return gradient


def penalty_gradient(spec: TrainSpec, unflatten: Layout) -> Callable[[jax.Array], jax.Array]:
    """Gradient of the penalties that no example owns, `[P]` to `[P]`."""
    return jax.grad(lambda w: spec.objective.penalty(unflatten(w)))


def forgotten_slots(schedule: np.ndarray, forget: np.ndarray) -> np.ndarray:
    """The forgotten ids of each batch, packed to the left: int32 `[T, F]`, -1 where there are none.

    F is the largest number of them in one batch, at least 1.
    """
    forgotten = np.isin(schedule, forget)
    width = max(1, int(forgotten.sum(axis=1).max(initial=0)))
    order = np.argsort(~forgotten, axis=1, kind="stable")[:, :width]
    slots = np.take_along_axis(schedule, order, axis=1)
    kept = np.take_along_axis(forgotten, order, axis=1)
    return np.where(kept, slots, -1).astype(np.int32)


def preparation_note(seconds: float, example_gradients: float, run: Run, megabytes: float) -> dict:
    """What the info of a method says about work done once for all deletions."""
    share = example_gradients / run.example_gradients
    return {
        "preparation_seconds": seconds,
        "preparation_example_gradients": example_gradients,
        "warning": f"after a preparation that is not counted, once for all deletions: {share:.1f} "
        f"trainings of gradients, {megabytes:.0f} MB",
    }
