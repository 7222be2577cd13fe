"""Curvature of the training loss on a stated batch.

    L(w) = (1/divisor) sum_n weights[n] loss(w; example n)  +  penalty(w)
    H v  = d/dh grad L(w + h v)  at h = 0

sigma, of which arXiv 2109.13398 makes its unlearning error, is the largest singular value of H: the
largest |eigenvalue|, without a square root, of either sign. It depends on the examples that it is
measured on, so these are a value of their own, `CurvatureBatch`, which is said in results and kept
the same along a run.

Design: one compiled program adds up the products of chunks of the batch, so that memory is that of
one chunk whatever the batch; parameters, data and vector are its arguments, so that a walk along
the snapshots of a run compiles it once. A batch of one chunk is linearised once for all its
products, which then cost two gradients and not three. Rejected: measuring in evaluation mode, as
the reference code does: that is the curvature of another function than the one that was trained.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from unroll import tree
from unroll.checks import whole_number
from unroll.data.dataset import Dataset
from unroll.data.ids import as_ids
from unroll.errors import DivergenceError, InputError
from unroll.objectives import losses_at
from unroll.training.loop import device_examples
from unroll.training.spec import TrainSpec, apply_model
from unroll.training.step import Batch, Examples, data_loss, gather
from unroll.types import Params, PyTree
from unroll.unrolling import lanczos
from unroll.unrolling.lanczos import Eigenpair, SpectralDensity

Kind = Literal["hessian", "gauss_newton"]
_FIXED_NOISE_SEED = 0


@dataclasses.dataclass(frozen=True, eq=False)
class CurvatureBatch:
    """The examples on which curvature is measured, and how they are weighed.

    Attributes:
      dataset: where they are from.
      ids: int64 `[n]` example ids, each once.
      weights: `[n]` example weights, all 1 by default.
      divisor: what the weighted sum of losses is divided by; the sum of the weights by default.
      chunk_size: examples evaluated at once; sets the memory. The result does not depend on it,
        except with batch normalisation, where a chunk is normalised by itself, as a training batch
        is: choose the batch size of the run there.

    Raises:
      InputError: on an id out of range or repeated, weights that are not one finite number per id,
        or a divisor that is 0 or not finite.
    """

    dataset: Dataset
    ids: np.ndarray
    weights: np.ndarray | None = None
    divisor: float | None = None
    chunk_size: int = 64

    def __post_init__(self):
        whole_number("chunk_size", self.chunk_size)
        ids = as_ids(self.ids, len(self.dataset), name="curvature batch")
        if not len(ids) or len(np.unique(ids)) < len(ids):
            raise InputError("a curvature batch needs at least one example, and each id once")
        weights = np.ones(len(ids)) if self.weights is None else np.asarray(self.weights)
        if weights.shape != ids.shape or not np.isfinite(weights).all():
            raise InputError(
                f"the weights of the curvature batch have shape {weights.shape}; "
                f"give one finite number for each of {len(ids)} ids"
            )
        divisor = float(weights.sum() if self.divisor is None else self.divisor)
        if not np.isfinite(divisor) or divisor == 0:
            raise InputError(f"the curvature batch is divided by {divisor}; set divisor=")
        for name, value in (("ids", ids), ("weights", weights), ("divisor", divisor)):
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        """For results: how many examples, of what, and the divisor."""
        ids = self.ids
        consecutive = (np.diff(ids) == 1).all()
        which = f"ids {ids[0]} to {ids[-1]}" if consecutive else f"{len(ids)} chosen ids"
        return f"{which} of {self.dataset.name}, divided by {self.divisor:g}"

    @functools.cached_property
    def slots(self) -> np.ndarray:
        """int32 `[chunks, chunk_size]` ids, -1 for empty slots."""
        size = min(self.chunk_size, len(self.ids))
        slots = np.full((-(-len(self.ids) // size), size), -1, np.int32)
        slots.reshape(-1)[: len(self.ids)] = self.ids
        return slots

    @functools.cached_property
    def example_weights(self) -> np.ndarray:
        """`[N]` weights of all examples of the data set, 0 outside the batch."""
        weights = np.zeros(len(self.dataset))
        weights[self.ids] = self.weights
        return weights


def first_examples(dataset: Dataset, size: int, chunk_size: int = 64) -> CurvatureBatch:
    """The first `size` training examples, or all there are: the batch of the reference code."""
    size = min(whole_number("size", size), len(dataset))
    return CurvatureBatch(dataset, np.arange(size), chunk_size=chunk_size)


def _total_product(
    spec: TrainSpec,
    kind: Kind,
    params: Params,
    model_state: PyTree,
    step: jax.Array,
    examples: Examples,
    weights: jax.Array,
    slots: jax.Array,
    divisor: jax.Array,
    vector: jax.Array,
) -> jax.Array:
    tangent = ravel_pytree(params)[1](vector)
    key = jax.random.key(_FIXED_NOISE_SEED)
    of_chunk = _hessian_product if kind == "hessian" else _gauss_newton_product

    def add(total, row):
        # The noise of step 0 whatever the step, so that snapshots of a run can be compared.
        batch = gather(spec, examples, weights, key, jnp.zeros((), jnp.int32), row)
        batch = batch._replace(denominator=divisor, step=step)
        product = of_chunk(spec, params, model_state, batch, tangent)
        return jax.tree.map(jnp.add, total, product), None

    total = jax.jvp(jax.grad(spec.objective.penalty), (params,), (tangent,))[1]
    if len(slots) == 1:
        total, _ = add(total, slots[0])
    else:
        total, _ = jax.lax.scan(add, total, slots)
    return ravel_pytree(total)[0]


_product = jax.jit(_total_product, static_argnames=("spec", "kind"))


@jax.jit(static_argnames=("spec", "kind"))
def _prepared(spec: TrainSpec, kind: Kind, *point_and_batch):
    """The product as a linear map that holds what depends on parameters and batch alone."""
    dtype = jnp.result_type(*jax.tree.leaves(point_and_batch[0]))
    size = sum(leaf.size for leaf in jax.tree.leaves(point_and_batch[0]))
    product = functools.partial(_total_product, spec, kind, *point_and_batch)
    return jax.linearize(product, jnp.zeros(size, dtype))[1]


@jax.jit
def _apply(linear: Callable[[jax.Array], jax.Array], vector: jax.Array) -> jax.Array:
    return linear(vector)


def _hessian_product(spec, params, model_state, batch: Batch, tangent: Params) -> Params:
    gradient = jax.grad(lambda params: data_loss(spec, params, model_state, batch)[0])
    return jax.jvp(gradient, (params,), (tangent,))[1]


def _gauss_newton_product(spec, params, model_state, batch: Batch, tangent: Params) -> Params:
    """`J^T (d^2 loss / d logits^2) J tangent`, J the Jacobian of the logits."""

    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(batch.keys, 1)  # as in `data_loss`

    def logits(params):
        given = {"example_keys": keys, "example_weights": batch.weights}
        return apply_model(spec, params, model_state, batch.inputs, train=True, **given)[0]

    def loss(values):
        losses = losses_at(spec.objective, values, batch.labels, batch.step)
        return jnp.vdot(batch.weights, losses) / batch.denominator

    values, moved = jax.jvp(logits, (params,), (tangent,))
    bent = jax.jvp(jax.grad(loss), (values,), (moved,))[1]
    return jax.vjp(logits, params)[1](bent)[0]


class Curvature:
    """The curvature of the training loss on a stated batch, as a map of flat vectors.

    Deterministic: dropout and augmentation are one fixed draw for each example, the same at all
    parameters. The singular-value penalty is left out: sigma is what it acts on. Vectors are the
    parameters' entries in the order of `jax.flatten_util.ravel_pytree`.

    Args:
      spec: what was trained; its penalties are included.
      params: where to measure.
      batch: on which examples.
      model_state: other variables of the model, for example running averages; read, never written.
      kind: `hessian`, or `gauss_newton`: the Hessian without the curvature of the logits, which is
        positive semi-definite for a convex loss of the logits.
      step: step of the run, for an objective that changes along it.

    Raises:
      InputError: if the parameters are not finite, or the kind is unknown.

    Attributes:
      dimension: number of parameters.
      dtype: of vectors, that of the parameters.
    """

    def __init__(
        self,
        spec: TrainSpec,
        params: Params,
        batch: CurvatureBatch,
        *,
        model_state: PyTree | None = None,
        kind: Kind = "hessian",
        step: int = 0,
    ):
        if kind not in ("hessian", "gauss_newton"):
            raise InputError(f"unknown curvature {kind!r}; choose hessian or gauss_newton")
        if not tree.is_finite(params):
            raise InputError("curvature: the parameters are not finite; the run has diverged")
        self._spec, self._kind, self._batch = spec, kind, batch
        self._params, self._model_state = jax.device_put((params, model_state or {}))
        self._step = jnp.asarray(step, jnp.int32)
        flat, self._unravel = ravel_pytree(self._params)
        self.dimension, self.dtype = flat.size, flat.dtype
        self._operands = (
            device_examples(batch.dataset),
            jnp.asarray(batch.example_weights, self.dtype),
            jnp.asarray(batch.slots),
            jnp.asarray(batch.divisor, self.dtype),
        )

    @functools.cached_property
    def _multiply(self) -> Callable[[jax.Array], jax.Array]:
        point = self._params, self._model_state, self._step, *self._operands
        if len(self._batch.slots) == 1:
            return functools.partial(_apply, _prepared(self._spec, self._kind, *point))
        return functools.partial(_product, self._spec, self._kind, *point)

    def __call__(self, vector: jax.Array) -> jax.Array:
        """Product with a flat vector `[dimension]`.

        Raises:
          DivergenceError: if it is not finite.
        """
        product = self._multiply(vector)
        if not jnp.isfinite(product).all():
            raise DivergenceError(
                f"the curvature on {self._batch} is not finite at these parameters; "
                "measure where the loss is finite"
            )
        return product

    def on_tree(self, vector: Params) -> Params:
        """Product with a tree like the parameters.

        Raises:
          InputError: if the tree has another structure or other shapes.
          DivergenceError: if the product is not finite.
        """
        same = jax.tree.structure(vector) == jax.tree.structure(self._params)
        if not same or any(
            np.shape(one) != np.shape(other)
            for one, other in zip(
                jax.tree.leaves(vector), jax.tree.leaves(self._params), strict=True
            )
        ):
            raise InputError("the vector must be a tree with the shapes of the parameters")
        return self._unravel(self(ravel_pytree(vector)[0].astype(self.dtype)))


def hessian_vector_product(
    spec: TrainSpec,
    params: Params,
    batch: CurvatureBatch,
    vector: Params,
    *,
    model_state: PyTree | None = None,
    step: int = 0,
) -> Params:
    """`H(params) vector` for a tree like the parameters; compiled once for each specification.

    Raises:
      InputError: if the parameters are not finite, or the vector does not have their shapes.
      DivergenceError: if the product is not finite.
    """
    return Curvature(spec, params, batch, model_state=model_state, step=step).on_tree(vector)


def gauss_newton_product(
    spec: TrainSpec,
    params: Params,
    batch: CurvatureBatch,
    vector: Params,
    *,
    model_state: PyTree | None = None,
    step: int = 0,
) -> Params:
    """`(J^T (d^2 loss / d logits^2) J + penalty'') vector`; as `hessian_vector_product`."""
    options = {"model_state": model_state, "kind": "gauss_newton", "step": step}
    return Curvature(spec, params, batch, **options).on_tree(vector)


def largest_eigenvalue(
    spec: TrainSpec,
    params: Params,
    batch: CurvatureBatch,
    *,
    model_state: PyTree | None = None,
    kind: Kind = "hessian",
    step: int = 0,
    algorithm: Literal["lanczos", "power"] = "lanczos",
    iterations: int | None = None,
    tolerance: float = 1e-3,
    criterion: lanczos.Criterion = "residual",
    start: jax.Array | None = None,
    seed: int = 0,
) -> Eigenpair:
    """The eigenvalue of largest magnitude; `.sigma` is its magnitude, `.value` has its sign.

    Args:
      spec: what was trained; its penalties are included.
      params: where to measure.
      batch: on which examples.
      model_state: other variables of the model.
      kind: `hessian` or `gauss_newton`.
      step: step of the run, for an objective that changes along it.
      algorithm: `lanczos`, or `power`, which needs less memory and more products.
      iterations: at most so many products (one more for lanczos): by default 40 or 100.
      tolerance: residual over magnitude that counts as converged.
      criterion: `value` lets the estimated error of the eigenvalue decide, and not the residual,
        which takes fewer products; for lanczos. See `lanczos.largest_eigenpair`.
      start: warm start, for example `.vector` of an earlier snapshot.
      seed: of the random part of the start.

    Raises:
      InputError: on parameters or a start that are not finite, or an unknown algorithm.
      DivergenceError: if the curvature is not finite.
    """
    algorithms = {"lanczos": lanczos.largest_eigenpair, "power": lanczos.power_iteration}
    if algorithm not in algorithms:
        raise InputError(f"unknown algorithm {algorithm!r}; choose one of {sorted(algorithms)}")
    options = {} if iterations is None else {"iterations": iterations}
    if algorithm == "lanczos":
        options["criterion"] = criterion
    elif criterion != "residual":
        raise InputError("power iteration stops by its residual; leave criterion= out")
    return algorithms[algorithm](
        Curvature(spec, params, batch, model_state=model_state, kind=kind, step=step),
        tolerance=tolerance,
        start=start,
        seed=seed,
        **options,
    )


def spectral_density(
    spec: TrainSpec,
    params: Params,
    batch: CurvatureBatch,
    *,
    model_state: PyTree | None = None,
    kind: Kind = "hessian",
    step: int = 0,
    probes: int = 8,
    iterations: int = 60,
    bandwidth: float | None = None,
    grid: np.ndarray | None = None,
    seed: int = 0,
) -> SpectralDensity:
    """Density of the curvature's eigenvalues; see `lanczos.spectral_density`.

    Raises:
      InputError: on parameters that are not finite, or a bad count, bandwidth or grid.
      DivergenceError: if the curvature is not finite.
    """
    return lanczos.spectral_density(
        Curvature(spec, params, batch, model_state=model_state, kind=kind, step=step),
        probes=probes,
        iterations=iterations,
        bandwidth=bandwidth,
        grid=grid,
        seed=seed,
    )
