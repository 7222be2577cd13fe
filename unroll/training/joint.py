"""Training on from a model on retained and forgotten examples at once.

    w <- w - eta grad [ sum_j c_j (1/B_j) sum_b omega[I_j[t,b]] loss(w; I_j[t,b])  +  penalty(w) ]

Each term j has batches of its own, I_j, and a factor c_j of any sign. One term is training on; two,
with c = alpha and alpha - 1, are NegGrad+. The steps may be kept to some of the parameters (a mask)
and out of protected subspaces (`projection`).

Design: terms are separate forward passes, so that batch normalisation takes its statistics within
one term, and the running averages follow the first. The examples keep the ids that they have in the
training set, and with them their noise. Rejected: one batch with weights of both signs, which is
one pass instead of two but divides a batch's mean by a difference of weights.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unroll import tree
from unroll.data.dataset import Dataset
from unroll.data.forget import retain_ids
from unroll.data.ids import IdsLike
from unroll.data.schedule import make_schedule, steps_per_epoch
from unroll.errors import DivergenceError
from unroll.objectives import is_stateful
from unroll.training import loop
from unroll.training.optimizer import optax_call
from unroll.training.projection import Bases, Basis, project_updates
from unroll.training.run import Progress
from unroll.training.spec import TrainSpec
from unroll.training.step import Batch, Examples, data_loss, gather, start_state
from unroll.types import Params, PyTree, TrainState


class Term(NamedTuple):
    """A part of the loss of every step.

    Attributes:
      factor: what the term is multiplied by; below 0 its loss is ascended.
      schedule: int32 `[T, B]` example ids, -1 for empty slots; the term is divided by B.
    """

    factor: float
    schedule: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """A training set in two parts, one of which may be out of reach.

    Attributes:
      forget: the forgotten examples, in the order of `forget_ids`.
      forget_ids: their ids in the training set.
      retain: the retained examples in the order of their ids, or `None`.
      weights: `[N]` example weights of the training set; those of the forgotten are not read.
    """

    forget: Dataset
    forget_ids: np.ndarray
    retain: Dataset | None
    weights: np.ndarray

    @property
    def count(self) -> int:
        """Number of examples in reach."""
        return len(self.forget) + (0 if self.retain is None else len(self.retain))

    @property
    def retain_ids(self) -> np.ndarray:
        """Ids of the retained examples, ascending."""
        return retain_ids(self.forget_ids, len(self.weights))

    def joined(self) -> tuple[Examples, np.ndarray, np.ndarray]:
        """What is in reach, on the device, in which a forgotten example counts once.

        Returns:
          the examples, their weights, and the rows of the forgotten ones. With the retained
          examples it is the training set and a row is an id, else it is the forget set.
        """
        forgotten = loop.device_examples(self.forget)
        if self.retain is None:
            count = len(self.forget)
            return forgotten, np.ones(count, np.float32), np.arange(count)
        place = np.argsort(np.concatenate([self.retain_ids, self.forget_ids]))
        pairs = zip(loop.device_examples(self.retain), forgotten, strict=True)
        examples = Examples(*(jnp.concatenate(pair)[place] for pair in pairs))
        weights = np.array(self.weights)
        weights[self.forget_ids] = 1.0
        return examples, weights, self.forget_ids


def cycled_schedule(seed: int, ids: IdsLike, batch_size: int, steps: int) -> np.ndarray:
    """The first `steps` batches of passes through the ids, int32 `[steps, batch_size]`."""
    epochs = -(-steps // steps_per_epoch(len(ids), batch_size))
    return make_schedule(seed, ids, batch_size, epochs)[:steps]


def joint_sgd(
    spec: TrainSpec,
    state: TrainState,
    examples: Examples,
    weights: np.ndarray,
    terms: tuple[Term, ...],
    key: jax.Array,
    *,
    learning_rate: float,
    bases: Bases | None = None,
    mask: PyTree | None = None,
    progress: Progress | None = None,
) -> TrainState:
    """Plain SGD from the parameters of `state` on a sum of terms, with a fresh optimiser.

    The running averages of batch normalisation follow the batches of the first term.

    Args:
      spec: model, objective and augmentation; its optimiser and denominator are not used.
      state: where to start.
      examples: what the schedules name, on the device.
      weights: `[N]` example weights.
      terms: one or more, with schedules of the same number of steps.
      key: typed key of the noise.
      learning_rate: step size.
      bases: what the steps must stay out of; leaves without a basis do not move then.
      mask: booleans like the parameters: False keeps an entry's bits. With `bases` too, the
        projection comes last and keeps its promise, so entries outside the mask may move.
      progress: called with (steps done, steps in all).

    Returns:
      The state after the last step, on the host.

    Raises:
      DivergenceError: if a loss or the final state is not finite.
    """
    if bases is not None:
        bases = {layer: Basis(*map(jnp.asarray, basis)) for layer, basis in bases.items()}
    optimizer = optax_call("sgd", learning_rate=learning_rate)
    spec = dataclasses.replace(spec, optimizer=optimizer, denominator="batch")
    state = tree.to_host(start_state(spec, key, state.params, state.model_state))
    dtype = jax.tree.leaves(state.params)[0].dtype
    arguments = (
        examples,
        jnp.asarray(weights, dtype),
        key,
        tuple(jnp.asarray(term.schedule) for term in terms),
        jnp.asarray([term.factor for term in terms], dtype),
        bases,
        jax.tree.map(jnp.asarray, mask),
    )

    def advance_to(carry, start, stop):
        return _advance(spec, *carry, *arguments, start, stop)

    total, previous = len(terms[0].schedule), 0
    first = (state, jnp.zeros(total, dtype))
    for position, (state, losses) in loop.chunks(advance_to, first, 0, total):  # noqa: B007
        loop.check_losses(losses, previous, position)
        previous = position
        if progress is not None:
            progress(position, total)
    if not tree.is_finite((state.params, state.model_state)):
        raise DivergenceError("the state after the last step is not finite; lower learning_rate")
    return tree.to_host(state)


@jax.jit(static_argnames=("spec",), donate_argnames=("state", "losses"))
def _advance(
    spec, state, losses, examples, weights, key, schedules, factors, bases, mask, start, stop
):
    optimizer = spec.optimizer.build()

    def body(step, carry):
        state, losses = carry
        batches = [gather(spec, examples, weights, key, step, rows[step]) for rows in schedules]
        loss, gradient, model_state, memory = _gradient(spec, state, batches, factors)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        if mask is not None:
            updates = masked(mask, updates)
        if bases is not None:
            updates = project_updates(bases, updates)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, model_state, memory), losses.at[step].set(loss)

    return jax.lax.fori_loop(start, stop, body, (state, losses))


def masked(mask: PyTree, updates: Params) -> Params:
    """The updates where the mask is True; elsewhere what is added to them changes no bit."""
    # Not 0.0: a weight of -0.0 would become 0.0.
    return jax.tree.map(lambda keep, update: jnp.where(keep, update, -0.0), mask, updates)


def _gradient(
    spec: TrainSpec, state: TrainState, batches: list[Batch], factors: jax.Array
) -> tuple[jax.Array, Params, PyTree, PyTree]:
    """Loss, its gradient, the model's state after the first term, the objective's memory."""

    def data_term(params):
        parts = [data_loss(spec, params, state.model_state, batch) for batch in batches]
        losses = jnp.stack([loss for loss, _ in parts])
        return jnp.vdot(factors, losses), parts[0][1]

    if is_stateful(spec.objective):
        value, gradient, model_state, memory = spec.objective.value_and_gradient(
            data_term, state.params, state.objective_state
        )
    else:
        differentiate = jax.value_and_grad(data_term, has_aux=True)
        (value, model_state), gradient = differentiate(state.params)
        memory = state.objective_state
    penalty, slope = jax.value_and_grad(spec.objective.penalty)(state.params)
    return value + penalty, jax.tree.map(jnp.add, gradient, slope), model_state, memory
