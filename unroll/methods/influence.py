"""Influence unlearning: one Newton step from the optimum on all examples to that on the retained.

    w <- w + scale (F + damping I)^-1 v,    v = grad L_D(w) - grad L_R(w)
                                              = g_S / n  -  g_R n_S / (n n_R)

with sums g over the examples, n = n_S + n_R, and mean losses L. At the optimum on D, grad L_D and
the penalties' slope add up to 0, so -v is the slope of the retained objective, and with F its
Hessian and damping 0 this is its Newton step: exact where it is quadratic. Source: Koh and Liang
(arXiv 1703.04730); as an unlearning method Izzo et al. (arXiv 2002.10077) and Jia et al. (arXiv
2304.04934), whose v and direction these are. Sums carry the example weights of the run; a forgotten
example counts once. Everything is measured in evaluation mode, on `examples` retained ones:

- `cg`: F the Gauss-Newton matrix or the Hessian, by conjugate gradients on products.
- `woodfisher_exact`: F = G^T G / N, the empirical Fisher matrix of N per-example gradients G, by
  one N x N solve: (F + d I)^-1 v = (v - G^T (N d I + G G^T)^-1 G v) / d.
- `woodfisher`: the recursion as published (there with d = 1, N = 1000), for comparison only:

        o <- g_1 / d,  k <- v / d,     for j = 2, ..., N:   s = o . g_j
        k <- k - (k . g_j) / (N + s) o,    o <- o - s / (N + s) o

  The recursion of Singh and Alistarh (WoodFisher, arXiv 2004.14340) has a new o = F_{j-1}^-1 g_j
  for each j; here o stays parallel to the first gradient, and so does k - v / d.

Design: one value of v for all solvers. Rejected: the operator of `unrolling.curvature`, which is in
training mode (batch normalisation by the chunk, dropout, augmentation).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.flatten_util import ravel_pytree

from unroll import tree
from unroll.checks import positive_number, whole_number
from unroll.data.dataset import Dataset
from unroll.errors import DivergenceError, InputError
from unroll.objectives import is_stateful, losses_at
from unroll.problem import Method, Unlearned
from unroll.training.memory import Bytes, memory_limits
from unroll.training.run import Progress
from unroll.training.spec import TrainSpec, apply_model
from unroll.types import Params, PyTree, TrainState
from unroll.unrolling.conjugate_gradients import conjugate_gradients

SOLVERS = ("cg", "woodfisher_exact", "woodfisher")
CURVATURES = ("gauss_newton", "hessian")


@dataclasses.dataclass(frozen=True)
class System:
    """How the linear system is set up and solved; fields as in `influence`."""

    solver: str
    damping: float
    examples: int
    curvature: str
    iterations: int
    tolerance: float
    batch_size: int

    def __post_init__(self):
        if self.solver not in SOLVERS:
            raise InputError(f"unknown solver {self.solver!r}; choose one of {SOLVERS}")
        if self.curvature not in CURVATURES:
            raise InputError(f"unknown curvature {self.curvature!r}; choose one of {CURVATURES}")
        if self.solver != "cg" or self.damping != 0:
            positive_number("damping", self.damping)
        positive_number("tolerance", self.tolerance)
        for name in ("examples", "iterations", "batch_size"):
            whole_number(name, getattr(self, name))


def influence(
    scale: float = 1.0,
    solver: str = "cg",
    damping: float = 0.01,
    examples: int = 200,
    curvature: str = "gauss_newton",
    iterations: int = 10,
    tolerance: float = 1e-3,
    batch_size: int = 64,
) -> Method:
    """One step of influence functions from the original model; no batch is trained on.

    The defaults are the best of 12 (scale and damping) by tug of war on a subset of CIFAR-10, where
    they reach 0.76 and doing nothing 0.503 (configs/memorization/tuning_cifar10.py); on digits the
    best scale was 0.3, at damping 0.001. RUM has `woodfisher` with a scale from 1 to 100 at
    damping 1.

    Args:
      scale: multiple of the step; 1 is Newton's.
      solver: `cg`, `woodfisher_exact`, or `woodfisher` as published.
      damping: added to the curvature's diagonal; above 0, but for `cg`, which takes 0.
      examples: retained examples that the curvature is of, drawn by the key; at most all.
      curvature: of `cg`: `gauss_newton`, or `hessian`, which may have no minimum to go to.
      iterations: of `cg`, at most.
      tolerance: of `cg`: residual over the norm of v that ends it.
      batch_size: examples evaluated at once; sets the memory, and not the result.

    Raises (when called):
      InputError: if the gradients of `woodfisher_exact` do not fit in memory, or the objective has
        a memory.
      DivergenceError: if a gradient or the result is not finite.
    """
    positive_number("scale", scale)
    system = System(solver, damping, examples, curvature, iterations, tolerance, batch_size)

    def unlearn(key, access):
        spec, original = access.spec, access.original
        if not len(access.forget_ids):
            return Unlearned(original.params, original.model_state, 0, seconds=0.0)
        parts = access.parts()
        if is_stateful(spec.objective):
            raise InputError("influence does not go with the singular-value penalty")
        weights = parts.weights[parts.retain_ids]
        vector = mean_gradient_change(
            spec, original, parts.forget, parts.retain, weights, batch_size
        )
        chosen = np.arange(len(parts.retain))
        if examples < len(chosen):
            chosen = np.sort(np.asarray(jax.random.permutation(key, len(chosen)))[:examples])
        sample = batches(parts.retain.take(chosen), weights[chosen], batch_size)
        point = Point(*jax.device_put((original.params, original.model_state)))
        solve = {"cg": _by_cg, "woodfisher_exact": _exactly, "woodfisher": _as_published}[solver]
        step, spent, info = solve(Task(spec, system, point, sample, vector, access.progress))
        flat, unravel = ravel_pytree(original.params)
        params = tree.to_host(unravel(flat + jnp.asarray(scale * step, flat.dtype)))
        if not tree.is_finite(params):
            raise DivergenceError("the influence step is not finite; raise the damping")
        facts = {"examples": len(chosen), "step": float(scale * np.linalg.norm(step)), **info}
        return Unlearned(params, original.model_state, parts.count + spent, facts)

    return Method(
        "influence",
        {"scale": scale, **dataclasses.asdict(system)},
        frozenset({"original", "forget", "retain"}),
        unlearn,
    )


class Point(NamedTuple):
    """Where the derivatives are taken."""

    params: Params
    model_state: PyTree


class Batches(NamedTuple):
    """Examples in batches: inputs `[K, B, ...]`, labels and weights `[K, B]`; weight 0 pads."""

    inputs: jax.Array
    labels: jax.Array
    weights: jax.Array

    @property
    def count(self) -> int:
        """Number of examples of a weight other than 0."""
        return int((self.weights != 0).sum())

    @property
    def total(self) -> float:
        """Sum of the weights: the number of examples where all weigh 1."""
        return float(np.asarray(self.weights, np.float64).sum())


class Task(NamedTuple):
    """What a solver is given; it returns the step `[P]`, its example-gradients, and facts.

    `vector` is v, float64 `[P]`, and `data` what the curvature is of.
    """

    spec: TrainSpec
    system: System
    point: Point
    data: Batches
    vector: np.ndarray
    progress: Progress | None

    @property
    def dtype(self) -> np.dtype:
        """That of the parameters."""
        return jnp.result_type(*jax.tree.leaves(self.point.params))

    def show(self, done: int, total: int) -> None:
        """Reports progress."""
        if self.progress is not None:
            self.progress(done, total)


def batches(data: Dataset, weights: np.ndarray, batch_size: int) -> Batches:
    """Arranges examples in batches of one size, the last one padded with weight 0."""
    size = min(batch_size, len(data))
    rows = np.arange(-(-len(data) // size) * size)
    padded = np.where(rows < len(data), weights[np.minimum(rows, len(data) - 1)], 0.0)
    rows = np.minimum(rows, len(data) - 1)
    arrays = (data.inputs[rows], data.labels[rows], padded)
    return Batches(*(jnp.asarray(a.reshape(-1, size, *a.shape[1:])) for a in arrays))


def mean_gradient_change(
    spec: TrainSpec,
    state: TrainState,
    forget: Dataset,
    retain: Dataset,
    weights: np.ndarray,
    batch_size: int,
) -> np.ndarray:
    """v: the gradient of the mean loss of all examples minus that of the retained ones.

    Args:
      spec: model, objective and preprocessing.
      state: the original model.
      forget: the forgotten examples, of weight 1.
      retain: the retained ones.
      weights: `[n_R]` their weights.
      batch_size: examples evaluated at once.

    Returns:
      float64 `[P]`, in the order of `ravel_pytree`.
    """
    point = Point(state.params, state.model_state)
    ones = np.ones(len(forget))
    of_forget, of_retain = (
        np.asarray(_gradient_sum(spec, point, batches(data, given, batch_size)), np.float64)
        for data, given in ((forget, ones), (retain, weights))
    )
    kept = float(np.sum(weights, dtype=np.float64))
    whole = kept + len(forget)
    change = of_forget / whole - of_retain * len(forget) / (whole * kept)
    if not np.isfinite(change).all():
        raise DivergenceError("the gradient of the original model is not finite")
    return change


def _logits(spec: TrainSpec, params: Params, point: Point, inputs: jax.Array) -> jax.Array:
    if spec.preprocess is not None:
        inputs = spec.preprocess(inputs)
    return apply_model(spec, params, point.model_state, inputs, train=False)[0]


def _loss(spec: TrainSpec, logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    losses = losses_at(spec.objective, logits, labels)
    return jnp.vdot(weights.astype(losses.dtype), losses)


@jax.jit(static_argnames=("spec",))
def _gradient_sum(spec: TrainSpec, point: Point, data: Batches) -> jax.Array:
    """Weighted sum of the examples' loss gradients, `[P]`."""

    def add(total, batch):
        inputs, labels, weights = batch
        gradient = jax.grad(
            lambda params: _loss(spec, _logits(spec, params, point, inputs), labels, weights)
        )(point.params)
        return total + ravel_pytree(gradient)[0], None

    zero = jnp.zeros_like(ravel_pytree(point.params)[0])
    return jax.lax.scan(add, zero, data)[0]


def _by_cg(task: Task) -> tuple[np.ndarray, float, dict[str, Any]]:
    """Conjugate gradients; a Gauss-Newton product is 4/3 of a gradient, one of the Hessian two."""
    system = task.system

    def multiply(direction):
        given = jnp.asarray(direction, task.dtype)
        found = _product(task.spec, system.curvature, task.point, task.data, given)
        return np.asarray(found, np.float64) + system.damping * direction

    limits = dict(iterations=system.iterations, tolerance=system.tolerance)
    found = conjugate_gradients(multiply, task.vector, progress=task.progress, **limits)
    each = 4 / 3 if system.curvature == "gauss_newton" else 2
    return found.vector, found.products * each * task.data.count, found.info


@jax.jit(static_argnames=("spec", "curvature"))
def _product(
    spec: TrainSpec, curvature: str, point: Point, data: Batches, vector: jax.Array
) -> jax.Array:
    """Curvature of the mean loss of the examples and of the penalty, times a vector, `[P]`."""
    unravel = ravel_pytree(point.params)[1]
    tangent = unravel(vector)

    def add(total, batch):
        inputs, labels, weights = batch

        def logits(params):
            return _logits(spec, params, point, inputs)

        def loss(values):
            return _loss(spec, values, labels, weights)

        if curvature == "hessian":
            slope = jax.grad(lambda params: loss(logits(params)))
            product = jax.jvp(slope, (point.params,), (tangent,))[1]
        else:
            values, moved = jax.jvp(logits, (point.params,), (tangent,))
            bent = jax.jvp(jax.grad(loss), (values,), (moved,))[1]
            product = jax.vjp(logits, point.params)[1](bent)[0]
        return total + ravel_pytree(product)[0], None

    total = jax.lax.scan(add, jnp.zeros_like(vector), data)[0]
    penalty = jax.jvp(jax.grad(spec.objective.penalty), (point.params,), (tangent,))[1]
    return total / data.weights.sum().astype(total.dtype) + ravel_pytree(penalty)[0]


def _exactly(task: Task) -> tuple[np.ndarray, float, dict[str, Any]]:
    """The empirical Fisher matrix by the matrix of its gradients, [N, P] in memory.

    The Gram matrix takes N P products for each example, for few parameters shared by many positions
    less than a gradient, else more; it is in the seconds and not in the example-gradients.
    """
    data, vector, damping = task.data, task.vector, task.system.damping
    rows, size = data.labels.size, data.labels.shape[1]
    memory_limits().check(
        Bytes(device=(rows + 2 * size) * len(vector) * task.dtype.itemsize),
        f"{rows} gradients of {len(vector)} parameters",
        "lower examples=, or choose solver='cg'",
    )
    task.show(0, 2)
    gradients = jax.block_until_ready(_example_gradients(task.spec, task.point, data))
    task.show(1, 2)
    gram = np.array(gradients @ gradients.T, np.float64)
    projected = np.asarray(gradients @ jnp.asarray(vector, gradients.dtype), np.float64)
    if not np.isfinite(gram).all():
        raise DivergenceError("a gradient of a retained example is not finite")
    gram[np.diag_indices_from(gram)] += data.total * damping
    weights = jnp.asarray(scipy.linalg.solve(gram, projected, assume_a="pos"), gradients.dtype)
    step = (vector - np.asarray(weights @ gradients, np.float64)) / damping
    task.show(2, 2)
    return step, float(data.count), {}


@jax.jit(static_argnames=("spec",))
def _example_gradients(spec: TrainSpec, point: Point, data: Batches) -> jax.Array:
    """Gradient of each example's loss times the root of its weight, `[K B, P]`; padding is 0."""

    def of_batch(batch):
        return jax.vmap(lambda *example: _gradient(spec, point, *example))(*batch)

    gradients = jax.lax.map(of_batch, data)
    return gradients.reshape(-1, gradients.shape[-1])


def _gradient(
    spec: TrainSpec, point: Point, inputs: jax.Array, label: jax.Array, weight: jax.Array
) -> jax.Array:
    def loss(params):
        logits = _logits(spec, params, point, inputs[None])
        return _loss(spec, logits, label[None], jnp.sqrt(weight)[None])

    return ravel_pytree(jax.grad(loss)(point.params))[0]


def _as_published(task: Task) -> tuple[np.ndarray, float, dict[str, Any]]:
    """The recursion of the module docstring; O(P) memory."""
    data, start = task.data, jnp.asarray(task.vector, task.dtype)
    task.show(0, 1)
    flat = Batches(*(array.reshape(-1, *array.shape[2:]) for array in data))
    step = _recursion(task.spec, task.point, flat, start, data.total, task.system.damping)
    step = np.asarray(step, np.float64)
    task.show(1, 1)
    return step, float(data.count), {}


@jax.jit(static_argnames=("spec",))
def _recursion(
    spec: TrainSpec,
    point: Point,
    data: Batches,
    vector: jax.Array,
    total: float | jax.Array,
    damping: float | jax.Array,
) -> jax.Array:
    def body(index, carry):
        moved, direction = carry
        gradient = _gradient(spec, point, *(array[index] for array in data))
        overlap = direction @ gradient
        moved = moved - (moved @ gradient) / (total + overlap) * direction
        return moved, direction - overlap / (total + overlap) * direction

    first = _gradient(spec, point, *(array[0] for array in data)) / damping
    return jax.lax.fori_loop(1, data.labels.size, body, (vector / damping, first))[0]
