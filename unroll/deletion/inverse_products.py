"""Products with the inverse of a damped curvature, `(H + damping I)^-1 v`, in three ways.

- `conjugate_gradients`: `unroll.unrolling.conjugate_gradients`. For a positive definite matrix; the
  residual says how exact it is.
- `lissa`: the Neumann series as a recursion (Agarwal et al., arXiv 1602.03943; for influence Koh
  and Liang, arXiv 1703.04730), each term with the curvature of one batch,

      x <- x + step (v - (H_j + damping I) x)

  which for 0 < step (eigenvalue + damping) < 2 converges: on one batch to the solution, on several
  to a neighbourhood of it.
- `arnoldi`: the curvature replaced by its `rank` leading eigenpairs as the Lanczos process finds
  them in `iterations` products from a random start (Schioppa et al., arXiv 2112.03052):

      x = v / damping - sum_j [theta_j / (damping (theta_j + damping))] q_j (q_j . v)

  The basis depends on no v, so it serves every request at the same parameters.

Design: functions of an operator, with the operators of `unroll.unrolling`; vectors on the host are
float64. Each measures the residual of what it returns, by one product. Rejected: leaving v's part
outside the eigenvectors out, as the source does: that is the inverse of no damped curvature, and
full rank would then be the only case that can be checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from unroll.checks import positive_number, whole_number
from unroll.errors import DivergenceError, InputError
from unroll.unrolling.conjugate_gradients import Solution, relative_residual
from unroll.unrolling.conjugate_gradients import conjugate_gradients as solve
from unroll.unrolling.lanczos import SymmetricOperator, lanczos, random_vector


def conjugate_gradients(
    operator: SymmetricOperator,
    vector: np.ndarray,
    damping: float,
    *,
    iterations: int = 50,
    tolerance: float = 1e-3,
) -> Solution:
    """Solves by conjugate gradients.

    Args:
      operator: H.
      vector: v, `[P]`.
      damping: 0 or more.
      iterations: at most so many.
      tolerance: residual over the norm of v that ends it.

    Raises:
      InputError: if a number is out of range.
      DivergenceError: if the result is not finite.
    """
    multiply = _damped(operator, damping)
    return solve(multiply, vector, iterations=iterations, tolerance=tolerance)


def lissa(
    operators: Sequence[SymmetricOperator],
    vector: np.ndarray,
    damping: float,
    *,
    step: float,
    iterations: int = 100,
) -> Solution:
    """Solves by the recursion, iteration j with `operators[j % len(operators)]`.

    Args:
      operators: one or more, whose mean is H.
      vector: v, `[P]`.
      damping: 0 or more.
      step: below 2 over the largest eigenvalue with its damping.
      iterations: how many.

    Raises:
      InputError: if a number is out of range.
      DivergenceError: if the recursion ends further from the solution than it began.
    """
    positive_number("step", step)
    multiplies = [_damped(operator, damping) for operator in operators]
    found = np.zeros(len(vector))
    for index in range(whole_number("iterations", iterations)):
        with np.errstate(over="ignore", invalid="ignore"):
            found = found + step * (vector - multiplies[index % len(multiplies)](found))
        if not np.isfinite(found).all():
            raise DivergenceError(_TOO_LARGE.format(step=step, index=index))
    product = np.mean([multiply(found) for multiply in multiplies], axis=0)
    info = _info(found, product, vector, iterations)
    if info["relative_residual"] >= 1:  # that of x = 0
        raise DivergenceError(_TOO_LARGE.format(step=step, index=iterations))
    return Solution(found, iterations + len(multiplies), info)


_TOO_LARGE = (
    "LiSSA diverges with step={step} by iteration {index}: lower the step below 2 over the largest "
    "eigenvalue, or raise the damping above the most negative one"
)


def arnoldi(
    operator: SymmetricOperator,
    vector: np.ndarray,
    damping: float,
    *,
    rank: int,
    iterations: int | None = None,
    seed: int = 0,
) -> Solution:
    """Solves for the leading eigenpairs of H and treats the rest of it as 0.

    Args:
      operator: H.
      vector: v, `[P]`.
      damping: above 0.
      rank: eigenpairs of largest magnitude that are kept.
      iterations: products that they are found with; twice the rank by default.
      seed: of the start.

    Raises:
      InputError: if a number is out of range, or the damped curvature is not positive definite.
      DivergenceError: if a product is not finite.
    """
    positive_number("damping", damping)
    iterations = 2 * whole_number("rank", rank) if iterations is None else iterations
    if whole_number("iterations", iterations) < rank:
        raise InputError(f"{rank} eigenpairs need as many iterations or more; got {iterations}")
    process = lanczos(operator, random_vector(operator, seed), iterations)
    values, weights = process.eigen()
    kept = np.argsort(-np.abs(values))[:rank]
    values = values[kept]
    if values.min() + damping <= 0:
        raise InputError(
            f"the curvature has an eigenvalue of {values.min():.3g}; raise the damping above "
            "its magnitude, or choose gauss_newton"
        )
    basis = np.asarray(process.basis[: len(process.diagonal)], np.float64)
    directions = weights[:, kept].T @ basis
    shares = values / (damping * (values + damping))
    found = vector / damping - (shares * (directions @ vector)) @ directions
    info = _info(found, _damped(operator, damping)(found), vector, len(process.diagonal))
    return Solution(found, len(process.diagonal) + 1, {**info, "rank": len(kept)})


def _damped(operator: SymmetricOperator, damping: float):
    if not 0 <= damping < np.inf:
        raise InputError(f"damping must be finite and not negative; got {damping!r}")

    def multiply(direction: np.ndarray) -> np.ndarray:
        product = operator(jnp.asarray(direction, operator.dtype))
        return np.asarray(product, np.float64) + damping * direction

    return multiply


def _info(
    found: np.ndarray, product: np.ndarray, vector: np.ndarray, iterations: int
) -> dict[str, Any]:
    residual = relative_residual(found, product, vector)
    return {"iterations": iterations, "relative_residual": residual}
