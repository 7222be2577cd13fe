"""Solving `A x = v` by conjugate gradients, for a symmetric positive definite A.

What is known of A is its product with a vector on the host. The loop is scipy's, in float64, which
counts its products and says whether it converged.

Design: a function of the product alone, so that each caller brings its own curvature, damping and
device dtype. Rejected: jax's solver, one compiled loop that says none of this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from unroll.checks import positive_number, whole_number
from unroll.errors import DivergenceError

Multiply = Callable[[np.ndarray], np.ndarray]


class Solution(NamedTuple):
    """An approximate `A^-1 v`.

    Attributes:
      vector: float64 `[P]`.
      products: products with A that it took, the one for the residual included.
      info: iterations, `relative_residual` (`||A x - v|| / ||v||`), and a `warning` where there is
        something to say.
    """

    vector: np.ndarray
    products: int
    info: dict[str, Any]


def conjugate_gradients(
    multiply: Multiply,
    vector: np.ndarray,
    *,
    iterations: int = 50,
    tolerance: float = 1e-3,
    progress: Callable[[int, int], None] | None = None,
) -> Solution:
    """Solves from x = 0.

    Args:
      multiply: product of A with a float64 vector `[P]`.
      vector: v, float64 `[P]`.
      iterations: at most so many.
      tolerance: residual over the norm of v that ends it.
      progress: called with (iterations done, iterations in all).

    Raises:
      InputError: if a number is out of range.
      DivergenceError: if the result is not finite.
    """
    # Here, so that `import unroll` does not wait for it.
    from scipy.sparse.linalg import LinearOperator, cg

    whole_number("iterations", iterations)
    positive_number("tolerance", tolerance)
    products = done = 0

    def counted(direction):
        nonlocal products
        products += 1
        return multiply(direction)

    def count(_):
        nonlocal done
        done += 1
        if progress is not None:  # the end is told below, after the residual
            progress(min(done, iterations - 1), iterations)

    matrix = LinearOperator((len(vector),) * 2, counted, dtype=np.float64)
    found, _ = cg(matrix, vector, rtol=tolerance, maxiter=iterations, callback=count)
    product = counted(found)
    residual = relative_residual(found, product, vector)
    if progress is not None:
        progress(iterations, iterations)
    info: dict[str, Any] = {"iterations": done, "relative_residual": residual}
    if float(found @ product) < 0:
        info["warning"] = "the curvature is negative along the step; raise the damping"
    elif residual > 2 * tolerance:
        info["warning"] = f"conjugate gradients stopped at a residual of {residual:.2g}"
    return Solution(found, products, info)


def relative_residual(found: np.ndarray, product: np.ndarray, vector: np.ndarray) -> float:
    """`||A x - v|| / ||v||`, infinite where it is beyond float64.

    Args:
      found: x, `[P]`.
      product: A x, `[P]`.
      vector: v, `[P]`.

    Raises:
      DivergenceError: if x or A x is not finite.
    """
    if not np.isfinite(found).all() or not np.isfinite(product).all():
        raise DivergenceError("the inverse product is not finite; raise the damping")
    scale = max(float(np.linalg.norm(vector)), np.finfo(np.float64).tiny)
    with np.errstate(over="ignore"):
        return float(np.linalg.norm(product - vector)) / scale
