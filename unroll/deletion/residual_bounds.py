"""Newton steps of linear models in float64, and bounds on the gradients that they leave.

With X the features of the remaining examples, t their margins, v the step and eta = y X v,

    grad L(w + v) - grad L(w) - H v = sum_i integral_0^1 [loss''(t_i + s eta_i) - loss''(t_i)] ds
                                            (x_i.v) x_i

and gamma a Lipschitz constant of loss'', the norm of the right-hand side is at most

    paper       gamma ||X|| ||v|| ||X v||           with ||x_i|| <= 1 (arXiv 1911.03030, Cor. 1, 2)
    integral    (gamma / 2) ||X|| ||(X v)^2||       the square entry by entry

The second is the same argument with the integral carried out (the factor 1/2) and each |eta_i| kept
instead of ||v||; it is never larger. For the logistic loss, s the sigmoid, loss'' = s (1 - s) and
|loss'''| = s (1 - s) |1 - 2 s| <= 1 / (6 sqrt 3) = 0.0962; the paper takes gamma = 1/4, which is
larger and so valid too. Each form comes with its own gamma.

Design: numpy, so that nothing depends on jax's precision. Rejected: one bound with the better
constant; the paper's numbers could then not be compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import scipy.linalg
from scipy.special import expit

from unroll.errors import DivergenceError

Bound = Literal["paper", "integral"]
# Of norms and sums in float64, a thousand times what they can lose.
ROUNDING = 1 + 1e-10


class Loss(NamedTuple):
    """A convex loss of the margin t: derivatives, and the constants gamma of the two bounds."""

    slope: Callable[[np.ndarray], np.ndarray]
    curvature: Callable[[np.ndarray], np.ndarray]
    lipschitz: dict[str, float]


LOSSES = {
    "logistic": Loss(
        lambda t: -expit(-t),
        lambda t: expit(t) * expit(-t),
        {"paper": 1 / 4, "integral": 1 / (6 * math.sqrt(3))},
    ),
    "squared": Loss(lambda t: t - 1.0, np.ones_like, {"paper": 0.0, "integral": 0.0}),
}


def newton_steps(
    loss: Loss,
    bound: Bound,
    features: np.ndarray,
    margins: np.ndarray,
    ridge: float,
    gradients: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """`H^-1 gradients` for K classifiers, and bounds on the gradients that these steps leave.

    Args:
      loss: of `LOSSES`.
      bound: which form.
      features: float64 `[N, d]` of the remaining examples; rows of zeros add nothing.
      margins: `[N, K]` where the steps begin.
      ridge: l2 n, added to the diagonal of each Hessian.
      gradients: `[d, K]`.

    Returns:
      steps `[d, K]` and bounds `[K]`, in which the errors of the linear solves are counted.

    Raises:
      DivergenceError: if one of them is not finite.
    """
    curvatures = loss.curvature(margins)
    longest = math.sqrt(np.linalg.eigvalsh(features.T @ features)[-1])
    steps, bounds = np.zeros_like(gradients), np.zeros(gradients.shape[1])
    for k in range(gradients.shape[1]):
        hessian = features.T @ (curvatures[:, k, None] * features)
        hessian[np.diag_indices_from(hessian)] += ridge
        step = scipy.linalg.cho_solve(scipy.linalg.cho_factor(hessian), gradients[:, k])
        unsolved = np.linalg.norm(hessian @ step - gradients[:, k])
        moved = features @ step
        if bound == "paper":
            nonlinear = longest * np.linalg.norm(step) * np.linalg.norm(moved)
        else:
            nonlinear = longest * np.linalg.norm(moved**2) / 2
        steps[:, k] = step
        bounds[k] = (loss.lipschitz[bound] * nonlinear + unsolved) * ROUNDING
    if not np.isfinite(steps).all() or not np.isfinite(bounds).all():
        raise DivergenceError("the Newton step of the removal is not finite; raise l2")
    return steps, bounds


def worst_case_bound(
    l2: float, count: int, removed: int = 1, *, gamma: float = 0.25, perturbation: float = 0.0
) -> float:
    """Bound on the residual of one removal that looks at no data; for comparison.

    The optimum has ||l2 n w|| <= n + ||b||, so ||Delta|| <= m (2 + ||b|| / n), ||v|| is at most
    that over l2 (n - m), and n - m terms of gamma ||v||^2 make
    `gamma m^2 (2 + ||b|| / n)^2 / (l2^2 (n - m))`: without b and for m = 1 Theorem 1 of the paper,
    4 gamma / (l2^2 (n - 1)), with gradients of norm at most 1.

    Args:
      l2: as in `train_certified`.
      count: n, examples before the removal.
      removed: m.
      gamma: Lipschitz constant of the loss's second derivative.
      perturbation: ||b|| of one classifier.
    """
    length = removed * (2 + perturbation / count)
    return gamma * length**2 / (l2**2 * (count - removed))
