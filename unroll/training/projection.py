"""Steps kept out of the subspaces that a layer's inputs span.

    dW <- dW - M diag(s) M^T dW        W: [inputs, outputs], M: [inputs, k] with M^T M = 1

With s = 1 every input x in the span of M is mapped as before: `x^T (W + dW) = x^T W`. Source: Hoang
et al., *Learn to Unlearn for Deep Neural Networks* (arXiv 2312.04095), after gradient projection
memory. The inputs of a convolution are its patches, in the order of its kernel `[h, w, C, O]`,
flattened to `[h w C, O]`.

Design: an optax transformation that comes last, so that it projects what is really added to the
weights, whatever the optimiser made of the gradient. It stores M, not the d x d projector.
Rejected: projecting the gradient, as the reference does; weight decay and Adam's scaling by
coordinates would leave the subspace again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from unroll import tree
from unroll.data.dataset import Dataset
from unroll.errors import DivergenceError, InputError
from unroll.objectives import is_stateful, losses_at
from unroll.training import loop
from unroll.training.spec import TrainSpec, apply_model
from unroll.training.step import Batch, Examples, batch_loss, gather
from unroll.types import Params, PyTree, TrainState


class Basis(NamedTuple):
    """What a layer's updates must stay out of.

    Attributes:
      directions: `[d, k]` with orthonormal columns. With one row more than the kernel has inputs,
        the last row belongs to the layer's bias, which then moves too.
      scales: `[k]` in [0, 1]: the share of each direction that is taken out.
    """

    directions: np.ndarray | jax.Array
    scales: np.ndarray | jax.Array


Bases = Mapping[str, Basis]
"""By path of the layer in the parameters, for example `head/dense`."""


def project(bases: Bases) -> optax.GradientTransformation:
    """An optax transformation that takes the protected directions out of the updates.

    Leaves without a basis do not move: their updates are zero. Chain it last:
    `optax.chain(optax.adam(1e-3), project(bases))`.

    Raises:
      InputError: (on use) if a path names no kernel, or a basis does not fit its kernel.
    """
    return optax.stateless(lambda updates, params: project_updates(bases, updates))


def project_updates(bases: Bases, updates: Params) -> Params:
    """The updates without the protected directions; zero for leaves without a basis."""
    leaves = flatten_dict(updates, sep="/")
    moved = {path: jnp.zeros_like(leaf) for path, leaf in leaves.items()}
    for layer, basis in bases.items():
        kernel, bias = parameter_paths(layer)
        if kernel not in leaves:
            raise InputError(
                f"the parameters have no {kernel!r}; give a basis for one of {layers_of(leaves)}"
            )
        update = leaves[kernel]
        matrix = update.reshape(-1, update.shape[-1])
        rows = basis.directions.shape[0]
        if rows == len(matrix) + 1 and bias in leaves:
            matrix = jnp.concatenate([matrix, leaves[bias][None]])
        if rows != len(matrix):
            raise InputError(
                f"the basis of {layer!r} has {rows} rows, its kernel {len(matrix)} inputs; "
                "compute the bases from this model"
            )
        matrix = complement(basis, matrix)
        if rows > update.size // update.shape[-1]:
            moved[bias] = matrix[-1]
            matrix = matrix[:-1]
        moved[kernel] = matrix.reshape(update.shape)
    return unflatten_dict(moved, sep="/")


def complement(basis: Basis, matrix: jax.Array) -> jax.Array:
    """`A - M diag(s) M^T A` for A `[d, outputs]`."""
    directions = jnp.asarray(basis.directions, matrix.dtype)
    scales = jnp.asarray(basis.scales, matrix.dtype)[:, None]
    # Full precision: what TF32 leaves of a protected direction is added up over all steps.
    inside = jnp.matmul(directions.T, matrix, precision="highest")
    return matrix - jnp.matmul(directions, scales * inside, precision="highest")


def parameter_paths(layer: str) -> tuple[str, str]:
    """Paths of the kernel and of the bias of a layer; the model itself may be the layer, ''."""
    prefix = f"{layer}/" if layer else ""
    return f"{prefix}kernel", f"{prefix}bias"


def layers_of(leaves: Mapping[str, object]) -> list[str]:
    """Paths of the layers that have a kernel."""
    names = (path.rpartition("/") for path in leaves)
    return sorted(layer for layer, _, name in names if name == "kernel")


def frozen_leaves(bases: Bases, params: Params) -> list[str]:
    """Paths of the parameters that do not move under the projection, in ascending order."""
    leaves = flatten_dict(params, sep="/")
    moving = set()
    for layer, basis in bases.items():
        kernel, bias = parameter_paths(layer)
        moving.add(kernel)
        if len(basis.directions) > leaves[kernel].size // leaves[kernel].shape[-1]:
            moving.add(bias)
    return sorted(set(leaves) - moving)


def removed_shares(bases: Bases, gradient: Params) -> dict[str, float]:
    """Per layer, the share of the gradient's squared norm that the projection takes out."""
    before = flatten_dict(gradient, sep="/")
    after = flatten_dict(project_updates(bases, gradient), sep="/")
    shares = {}
    for layer in bases:
        kernel, _ = parameter_paths(layer)
        whole = float(jnp.vdot(before[kernel], before[kernel]))
        left = float(jnp.vdot(after[kernel], after[kernel]))
        shares[layer] = 1 - left / whole if whole else 0.0
    return shares


def evaluation_loss(
    spec: TrainSpec, params: Params, model_state: PyTree, batch: Batch
) -> tuple[jax.Array, PyTree]:
    """`batch_loss` of the model in evaluation mode: no dropout, running averages as they are."""
    logits, _ = apply_model(spec, params, model_state, batch.inputs, train=False)
    losses = losses_at(spec.objective, logits, batch.labels, batch.step)
    loss = jnp.vdot(batch.weights, losses) / batch.denominator
    return loss + spec.objective.penalty(params), model_state


@jax.jit(static_argnames=("spec",))
def batch_gradient(
    spec: TrainSpec, state: TrainState, examples: Examples, key: jax.Array, slots: jax.Array
) -> Params:
    """Gradient of `evaluation_loss` on one schedule row, for `removed_shares`."""
    weights = jnp.ones(len(examples.labels), jnp.float32)
    batch = gather(spec, examples, weights, key, 0, slots)
    return jax.grad(lambda at: evaluation_loss(spec, at, state.model_state, batch)[0])(state.params)


@jax.jit(static_argnames=("spec", "train"))
def _advance(spec, state, losses, examples, weights, key, schedule, bases, start, stop, train):
    optimizer = optax.chain(spec.optimizer.build(), project(bases))
    loss_of = batch_loss if train else evaluation_loss

    def body(step, carry):
        (params, opt_state, model_state, memory), losses = carry
        batch = gather(spec, examples, weights, key, step, schedule[step])
        (loss, model_state), gradient = jax.value_and_grad(
            lambda at: loss_of(spec, at, model_state, batch), has_aux=True
        )(params)
        updates, (opt_state, _) = optimizer.update(
            gradient, (opt_state, optax.EmptyState()), params
        )
        params = optax.apply_updates(params, updates)
        return TrainState(params, opt_state, model_state, memory), losses.at[step].set(loss)

    return jax.lax.fori_loop(start, stop, body, (state, losses))


def iterate_projected(
    spec: TrainSpec,
    state: TrainState,
    data: Dataset | Examples,
    weight: float,
    key: jax.Array,
    schedule: np.ndarray,
    bases: Bases,
    *,
    boundaries: Sequence[int] = (),
    train: bool = False,
) -> Iterator[tuple[int, TrainState]]:
    """Training steps whose updates are projected; yields `(steps done, state)`.

    Args:
      spec: model, objective, optimiser, augmentation.
      state: where to start, with a fresh state of the optimiser.
      data: what to train on.
      weight: weight of every example.
      key: typed key of the noise.
      schedule: int32 `[T, B]` ids of the data.
      bases: what the updates must stay out of; leaves without a basis keep their bits.
      boundaries: steps to stop at for certain.
      train: whether dropout is on and batch normalisation uses its batch. What a projection
        promises holds in evaluation mode, the default.

    Raises:
      InputError: if the objective has a memory (the singular-value penalty).
      DivergenceError: if a loss, or the state at a boundary or the end, is not finite.
    """
    if is_stateful(spec.objective):
        raise InputError("projected steps need an objective without a memory; set singular_gamma=0")
    examples = data if isinstance(data, Examples) else loop.device_examples(data)
    dtype = jax.tree.leaves(state.params)[0].dtype
    weights = jnp.full(len(examples.labels), weight, dtype)
    schedule = jnp.asarray(schedule)
    bases = {layer: Basis(*map(jnp.asarray, basis)) for layer, basis in bases.items()}

    def advance_to(carry, start, stop):
        return _advance(
            spec, *carry, examples, weights, key, schedule, bases, start, stop, train=train
        )

    first = (state, jnp.zeros(len(schedule), dtype))
    total, previous = len(schedule), 0
    for position, (state, losses) in loop.chunks(advance_to, first, 0, total, tuple(boundaries)):
        loop.check_losses(losses, previous, position, " under projection")
        if position in (*boundaries, total) and not tree.is_finite(state.params):
            raise DivergenceError("the projected steps diverged; lower the learning rate")
        previous = position
        yield position, state
