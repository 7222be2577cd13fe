"""Eigenvalues of a symmetric operator that is known by its products with vectors.

The Lanczos process (Golub and Van Loan, *Matrix Computations*, section 10.1) from a unit vector q_1
gives orthonormal q_1 ... q_k and the tridiagonal `T = Q^T H Q`. Its eigenvalues approach the
outermost ones of H first, and the squared first entries of its eigenvectors are the weights of
Gauss quadrature for `f -> q_1^T f(H) q_1`, which stochastic Lanczos quadrature averages over random
q_1 (Ubaru, Chen and Saad 2017; for networks Ghorbani et al., arXiv 1901.10159).

Design: full reorthogonalisation, twice, against a basis kept on the device. The vectors then stay
orthogonal to rounding and no spurious copies of an eigenvalue appear. It takes up to `iterations`
vectors of memory, in blocks of 10, 20, 40 as they are needed: 30 of them are 1.3 GB for 11 million
float32 parameters. Rejected: the three-term recurrence alone, whose weights are wrong as soon as
the first eigenvalue has converged, and power iteration as the default, which does not converge
where two eigenvalues differ only in sign.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np

from unroll.checks import positive_number, seed_number, whole_number
from unroll.errors import DivergenceError, InputError

Criterion = Literal["residual", "value"]
_WARM_NOISE = 0.3
_LEAST_ITERATIONS = 6
_FIRST_ROWS = 10


class SymmetricOperator(Protocol):
    """A symmetric linear map of flat vectors."""

    dimension: int
    dtype: np.dtype

    def __call__(self, vector: jax.Array) -> jax.Array:
        """The product with a vector, `[dimension]` to `[dimension]`."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Eigenpair:
    """The eigenvalue of largest magnitude, and how well it is known.

    Attributes:
      value: the eigenvalue with its sign.
      vector: unit eigenvector, flat `[dimension]`, on the device; the next warm start.
      residual: `||H v - value v||`: an eigenvalue of H lies within it of `value`.
      products: products with H that it took.
      converged: whether the residual, or the error of the value, is within the tolerance.
    """

    value: float
    vector: jax.Array
    residual: float
    products: int
    converged: bool

    @property
    def sigma(self) -> float:
        """Largest singular value: the magnitude of the eigenvalue, without a square root."""
        return abs(self.value)


@dataclasses.dataclass(frozen=True, eq=False)
class Tridiagonal:
    """What the Lanczos process found in k iterations.

    Attributes:
      diagonal: `[k]` float64.
      off_diagonal: `[k]` float64; the last couples to a vector outside the basis, and 0 there means
        that the basis is closed under H.
      basis: `[at least k, dimension]` orthonormal rows, on the device; rows beyond k are unused.
    """

    diagonal: np.ndarray
    off_diagonal: np.ndarray
    basis: jax.Array

    def eigen(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues `[k]`, ascending, and eigenvectors `[k, k]` as columns."""
        inner = self.off_diagonal[:-1]
        return np.linalg.eigh(np.diag(self.diagonal) + np.diag(inner, 1) + np.diag(inner, -1))


@dataclasses.dataclass(frozen=True, eq=False)
class SpectralDensity:
    """Density of the eigenvalues of an operator, by stochastic Lanczos quadrature.

    Attributes:
      nodes: `[probes, iterations]` quadrature nodes, one row for each random probe.
      weights: their weights; each row sums to 1. A row that ended early is filled with weight 0.
      grid: `[points]` eigenvalues, ascending.
      density: `[points]` the nodes smoothed by a Gaussian; integrates to 1.
      bandwidth: standard deviation of that Gaussian, in units of an eigenvalue.
      dimension: number of eigenvalues.
      products: products with the operator that it took.
    """

    nodes: np.ndarray
    weights: np.ndarray
    grid: np.ndarray
    density: np.ndarray
    bandwidth: float
    dimension: int
    products: int

    def moment(self, power: int) -> tuple[float, float | None]:
        """Estimate of `trace(H^power)` and its standard error over the probes; `None` for one.

        Each probe is unbiased as long as `power` is at most twice the iterations less one.
        """
        values = self.dimension * (self.weights * self.nodes**power).sum(axis=1)
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
        return float(values.mean()), None if error is None else float(error)

    @property
    def trace(self) -> float:
        """Estimate of the trace: the dimension times the mean of the nodes."""
        return self.moment(1)[0]


@functools.partial(jax.jit, donate_argnames=("basis",))
def _extend(basis: jax.Array, row: jax.Array, product: jax.Array):
    """Diagonal and off-diagonal entry of a row, the next unit vector, and the basis with it."""
    dot = functools.partial(jnp.matmul, precision="highest")
    diagonal = dot(basis[row], product)
    # Once is not enough: what is left of a vector that nearly lies in the basis is mostly rounding.
    for _ in range(2):
        product = product - dot(dot(basis, product), basis)
    off_diagonal = jnp.sqrt(dot(product, product))
    following = product / jnp.where(off_diagonal > 0, off_diagonal, 1)
    return diagonal, off_diagonal, following, basis.at[row + 1].set(following, mode="drop")


def lanczos(
    operator: SymmetricOperator,
    start: jax.Array,
    iterations: int,
    tolerance: float = 0.0,
    criterion: Criterion = "residual",
) -> Tridiagonal:
    """The Lanczos process with full reorthogonalisation.

    Args:
      operator: the symmetric map H.
      start: `[dimension]` first vector, of any length but 0.
      iterations: at most so many products; no more than the dimension are taken.
      tolerance: stop when the residual of the eigenvalue of largest magnitude is below this
        fraction of it; 0 takes all iterations. The process also ends where the basis is closed.
      criterion: `value` compares the estimated error of the eigenvalue, and not the residual.

    Raises:
      InputError: on a start that is zero, not finite, or of another length.
      DivergenceError: if a product is not finite.
    """
    whole_number("iterations", iterations)
    vector = _unit(operator, start)
    iterations = min(iterations, operator.dimension)
    rows = min(iterations, _FIRST_ROWS)
    basis = jnp.zeros((rows, operator.dimension), operator.dtype).at[0].set(vector)
    diagonal, off_diagonal = [], []
    rounding = float(jnp.finfo(operator.dtype).eps)
    for row in range(iterations):
        if row + 1 == len(basis) < iterations:
            # Empty rows cost as much as full ones, and most searches end early.
            more = min(len(basis), iterations - len(basis))
            basis = jnp.concatenate([basis, jnp.zeros((more, operator.dimension), basis.dtype)])
        alpha, beta, vector, basis = _extend(basis, jnp.asarray(row), operator(vector))
        diagonal.append(_finite(alpha))
        off_diagonal.append(_finite(beta))
        scale = max(map(abs, diagonal + off_diagonal[:-1]))
        if off_diagonal[-1] <= 10 * rounding * scale or row + 1 == operator.dimension:
            off_diagonal[-1] = 0.0
        found = Tridiagonal(np.array(diagonal), np.array(off_diagonal), basis)
        if off_diagonal[-1] == 0:
            break
        if tolerance and row + 1 >= _LEAST_ITERATIONS:
            if _largest(found).within(tolerance, criterion):
                break
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Ritz:
    """The Ritz value of largest magnitude, its vector in the basis, the distance to the next."""

    value: float
    weights: np.ndarray
    residual: float
    gap: float

    def within(self, tolerance: float, criterion: Criterion) -> bool:
        error = self.residual
        if criterion == "value" and self.gap > 0:
            # Parlett, *The Symmetric Eigenvalue Problem*, section 11.7: r^2 over the gap.
            error = min(error, error**2 / self.gap)
        return error <= tolerance * abs(self.value)


def _largest(found: Tridiagonal) -> _Ritz:
    values, vectors = found.eigen()
    largest = int(np.argmax(np.abs(values)))
    weights = vectors[:, largest]
    gaps = np.abs(np.delete(values, largest) - values[largest])
    return _Ritz(
        float(values[largest]),
        weights,
        float(found.off_diagonal[-1] * abs(weights[-1])),
        float(gaps.min()) if len(gaps) else 0.0,
    )


def _finite(value: jax.Array) -> float:
    if not np.isfinite(value):
        raise DivergenceError(
            "the curvature is not finite at these parameters; measure where the loss is finite"
        )
    return float(value)


def _unit(operator: SymmetricOperator, vector: jax.Array) -> jax.Array:
    vector = jnp.asarray(vector, operator.dtype)
    if vector.shape != (operator.dimension,):
        raise InputError(
            f"the start vector has shape {vector.shape}, the parameters {operator.dimension} "
            "entries; give a flat vector of that length"
        )
    length = float(jnp.linalg.norm(vector))
    if not 0 < length < np.inf:
        raise InputError("the start vector is zero or not finite; leave it out for a random one")
    return vector / length


def random_vector(operator: SymmetricOperator, seed: int, index: int = 0) -> jax.Array:
    """A Gaussian vector `[dimension]`; vectors of different index are independent."""
    key = jax.random.fold_in(jax.random.key(seed_number(seed)), index)
    return jax.random.normal(key, (operator.dimension,), operator.dtype)


def start_vector(operator: SymmetricOperator, warm: jax.Array | None, seed: int) -> jax.Array:
    """A random start, or a given one with some randomness in it.

    An eigenvector alone would never see the others, among which there may be a larger one by now.
    """
    noise = _unit(operator, random_vector(operator, seed))
    return noise if warm is None else _unit(operator, warm) + _WARM_NOISE * noise


def power_iteration(
    operator: SymmetricOperator,
    *,
    iterations: int = 100,
    tolerance: float = 1e-3,
    start: jax.Array | None = None,
    seed: int = 0,
) -> Eigenpair:
    """The eigenvalue of largest magnitude by repeated products: `v <- H v / ||H v||`.

    Needs two vectors of memory. It converges as the ratio of the two largest magnitudes, and not at
    all where these are equal; `converged` then says so.

    Args:
      operator: the symmetric map H.
      iterations: at most so many products.
      tolerance: residual over magnitude at which to stop.
      start: a flat vector to start near, for example an earlier result's.
      seed: of the random start.

    Raises:
      InputError: on a start that is zero, not finite, or of another length.
      DivergenceError: if a product is not finite.
    """
    whole_number("iterations", iterations)
    positive_number("tolerance", tolerance)
    vector = _unit(operator, start_vector(operator, start, seed))
    for used in range(1, iterations + 1):
        product = operator(vector)
        found = _judge(vector, product, used, tolerance)
        if found.converged:
            return found
        vector = _unit(operator, product)
    return found


def largest_eigenpair(
    operator: SymmetricOperator,
    *,
    iterations: int = 40,
    tolerance: float = 1e-3,
    start: jax.Array | None = None,
    seed: int = 0,
    criterion: Criterion = "residual",
) -> Eigenpair:
    """The eigenvalue of largest magnitude by the Lanczos process; arguments as `power_iteration`.

    Where the residual decides it is measured by one product more. `criterion="value"` is for when
    only sigma is wanted: the error of an eigenvalue is of second order in the residual r, about
    `r^2 / gap`, the gap to the next eigenvalue estimated by the next Ritz value. That takes fewer
    products and is an estimate: two eigenvalues that are nearly equal can pass for one between
    them. The residual is then read off the recurrence.

    Raises:
      InputError: on a start that is zero, not finite, or of another length, or a criterion that is
        unknown.
      DivergenceError: if a product is not finite.
    """
    positive_number("tolerance", tolerance)
    if criterion not in get_args(Criterion):
        raise InputError(f"unknown criterion {criterion!r}; choose one of {get_args(Criterion)}")
    first = start_vector(operator, start, seed)
    if criterion == "value":
        found = lanczos(operator, first, iterations, tolerance, criterion)
        best, used = _largest(found), len(found.diagonal)
        vector = _combined(operator, found, best.weights)
        converged = best.within(tolerance, criterion)
        return Eigenpair(best.value, vector, best.residual, used, converged)
    # Half the tolerance in the recurrence, since rounding adds to the residual measured after it.
    found = lanczos(operator, first, iterations, tolerance / 2)
    vector = _combined(operator, found, _largest(found).weights)
    return _judge(vector, operator(vector), len(found.diagonal) + 1, tolerance)


def _combined(operator: SymmetricOperator, found: Tridiagonal, weights: np.ndarray) -> jax.Array:
    """The unit vector with these weights in the basis."""
    padded = np.zeros(len(found.basis))
    padded[: len(weights)] = weights
    coefficients = jnp.asarray(padded, operator.dtype)
    return _unit(operator, jnp.matmul(coefficients, found.basis, precision="highest"))


def _judge(vector: jax.Array, product: jax.Array, used: int, tolerance: float) -> Eigenpair:
    value = jnp.matmul(vector, product, precision="highest")
    residual = _finite(jnp.linalg.norm(product - value * vector))
    value = _finite(value)
    return Eigenpair(value, vector, residual, used, residual <= tolerance * abs(value))


def spectral_density(
    operator: SymmetricOperator,
    *,
    probes: int = 8,
    iterations: int = 60,
    bandwidth: float | None = None,
    grid: np.ndarray | None = None,
    seed: int = 0,
) -> SpectralDensity:
    """Density of the eigenvalues by stochastic Lanczos quadrature.

    Args:
      operator: the symmetric map H.
      probes: random unit vectors to average over.
      iterations: Lanczos iterations of each, and so many vectors of memory.
      bandwidth: standard deviation of the smoothing; by default a hundredth of the nodes' range.
      grid: eigenvalues at which to give the density; by default five bandwidths beyond the nodes on
        either side, four points to a bandwidth.
      seed: of the probes.

    Raises:
      InputError: on a count below 1, a bandwidth not above 0, or a grid that does not ascend.
      DivergenceError: if a product is not finite.
    """
    whole_number("probes", probes)
    if bandwidth is not None:
        positive_number("bandwidth", bandwidth)
    nodes = np.zeros((probes, min(whole_number("iterations", iterations), operator.dimension)))
    weights = np.zeros_like(nodes)
    products = 0
    for probe in range(probes):
        found = lanczos(operator, random_vector(operator, seed, probe), iterations)
        values, vectors = found.eigen()
        products += len(values)
        nodes[probe, : len(values)] = values
        nodes[probe, len(values) :] = values[-1]
        weights[probe, : len(values)] = vectors[0] ** 2
    spread = float(nodes.max() - nodes.min()) or float(np.abs(nodes).max()) or 1.0
    bandwidth = spread / 100 if bandwidth is None else float(bandwidth)
    grid = _grid(nodes, bandwidth) if grid is None else np.asarray(grid, np.float64)
    if grid.ndim != 1 or len(grid) < 2 or not (np.diff(grid) > 0).all():
        raise InputError("the grid must be a vector of at least two ascending eigenvalues")
    density = smooth(nodes, weights, grid, bandwidth)
    return SpectralDensity(
        nodes, weights, grid, density, bandwidth, int(operator.dimension), products
    )


def _grid(nodes: np.ndarray, bandwidth: float) -> np.ndarray:
    low, high = nodes.min() - 5 * bandwidth, nodes.max() + 5 * bandwidth
    return np.linspace(low, high, int(np.ceil(4 * (high - low) / bandwidth)) + 1)


def smooth(
    nodes: np.ndarray, weights: np.ndarray, grid: np.ndarray, bandwidth: float
) -> np.ndarray:
    """`(1/probes) sum_i weights[i] Gaussian(grid - nodes[i]; bandwidth)`, `[points]`."""
    density = np.zeros(len(grid))
    for node, weight in zip(nodes.ravel(), weights.ravel(), strict=True):
        density += weight * np.exp(-0.5 * ((grid - node) / bandwidth) ** 2)
    return density / (len(nodes) * bandwidth * np.sqrt(2 * np.pi))
