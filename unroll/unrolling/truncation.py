"""What a truncated Taylor series says about its own error, and sums that go further than adding up.

The series of a run in the forget weights (`unrolling.taylor`) has vectors as coefficients,
`w(eps) = sum_k c_k eps^k`, and its sum at eps = 1 is wanted from `c_0, ..., c_K`.

A-posteriori estimate. If the terms fall like a geometric series of ratio rho, what is left out
after order k is about the next term, `||c_{k+1}|| / (1 - rho)`. Divided by the length of the whole
correction it estimates the relative verification error, with no retraining. Below lies a floor that
no order can pass: original and twin round every update to the spacing of float32, each in its way.

Resummation. Where the terms grow, adding them up gets worse with each order, though the function
behind them is finite. Reduced-rank extrapolation (Eddy 1979; Mesina 1977; a vector form of Pade's
approximants) takes the combination of the partial sums, with coefficients that sum to 1, whose
differences cancel best:

    sum_j gamma_j s_{j+1},  gamma = argmin || sum_j gamma_j (s_{j+1} - s_j) ||,  sum_j gamma_j = 1,

computed as a least-squares problem in the second differences of the partial sums. It is exact for
series whose coefficients obey a linear recursion of that many terms.

Rejected: Pade approximants of each coordinate. Their denominators vanish somewhere among thousands
of coordinates, and one pole spoils the norm.
"""

from __future__ import annotations

import jax
import numpy as np

from unroll import tree
from unroll.errors import InputError
from unroll.types import Params, TrainState


def term_norms(coefficients: list[TrainState]) -> list[float]:
    """Norms `[||c_1||, ..., ||c_K||]` of the parameters' coefficients."""
    return [tree.norm(coefficient.params) for coefficient in coefficients[1:]]


def rounding_floor(params: Params, steps: int) -> float:
    """Expected distance of two runs of `steps` updates that differ in their rounding alone.

    Each update rounds a parameter w to the spacing s(w) of its floating-point format, an error of
    standard deviation `s / sqrt(12)`; independent errors of two runs add up to
    `sqrt(2 steps sum s^2 / 12)`. Curvature acts on them as on any displacement and is left out.

    Args:
      params: parameters on the host, of the precision that they were trained in.
      steps: number of updates since the runs parted.
    """
    spacings = [np.spacing(np.abs(leaf)).astype(np.float64) for leaf in jax.tree.leaves(params)]
    return float(np.sqrt(2 * steps / 12 * sum(np.sum(s**2) for s in spacings)))


def estimated_relative_error(
    norms: list[float], correction: float, order: int, floor: float = 0.0
) -> float:
    """Estimate of the relative verification error of the sum up to `order`, without retraining.

    Uses the terms up to `order + 1`: the next term, enlarged by the geometric series that the last
    two terms suggest, over the length of the correction. Terms that do not fall have no geometric
    sum, and nothing is known of what is left out: then the estimate is at least 1, the error of
    doing nothing. Below the floor the terms are rounding, whose growth says nothing.

    Args:
      norms: `[||c_1||, ..., ||c_K||]`, see `term_norms`.
      correction: norm of the best sum of the terms at hand, an estimate of `||w'_T - w_T||`.
      order: order of the sum to judge, from 0 (doing nothing, whose error is 1 by definition) to
        K - 1.
      floor: see `rounding_floor`.

    Raises:
      InputError: if the next term is not among the norms, or the correction is 0.

    >>> round(estimated_relative_error([1.0, 0.1, 0.01], correction=1.0, order=0), 3)
    1.0
    >>> round(estimated_relative_error([1.0, 0.2], correction=1.2, order=1), 3)  # 0.2 / 0.8 / 1.2
    0.208
    >>> estimated_relative_error([1.0, 0.01, 0.02], correction=1.0, order=2)  # grows
    1.0
    """
    if not 0 <= order < len(norms):
        raise InputError(
            f"the error of order {order} is judged by term {order + 1}, but there are "
            f"{len(norms)} terms; compute one order more"
        )
    if not correction > 0:
        raise InputError("the correction is 0: nothing was forgotten, there is no error to judge")
    if order == 0:
        return 1.0
    last, following = norms[order - 1], norms[order]
    if following < last:
        remainder = following / (1 - following / last)
    elif following > floor:
        remainder = max(following, correction)
    else:
        remainder = following
    return float(np.hypot(remainder, floor)) / correction


def correction_norm(coefficients: list[TrainState]) -> float:
    """Norm of `sum_{k>=1} c_k` over the parameters, an estimate of the no-unlearning distance."""
    total = sum(tree.flatten(coefficient.params) for coefficient in coefficients[1:])
    return float(np.linalg.norm(total))


def resummation_weights(coefficients: list[TrainState]) -> np.ndarray:
    """Weights `[K]` of the terms `c_1, ..., c_K` in reduced-rank extrapolation; plain sums have 1.

    Raises:
      InputError: with fewer than two terms, from which no recursion can be read.
    """
    if len(coefficients) < 3:
        raise InputError("resummation needs order 2 or more")
    terms = np.stack([tree.flatten(c.params) for c in coefficients[1:]], axis=1)
    second = np.diff(terms, axis=1)
    lengths = np.linalg.norm(second, axis=0)
    lengths[lengths == 0] = 1.0
    # Columns of length 1: terms of a divergent series span many magnitudes.
    solution = -np.linalg.lstsq(second / lengths, terms[:, 0], rcond=1e-10)[0] / lengths
    # The combination of s_1, ..., s_K, one term further than s_0, ..., s_{K-1}.
    return np.concatenate([[1.0], solution])


def resum(coefficients: list[TrainState]) -> TrainState:
    """The series at eps = 1 by reduced-rank extrapolation; integer leaves from c_0.

    Args:
      coefficients: `[c_0, ..., c_K]` with K at least 2.

    Raises:
      InputError: with fewer than two terms.
    """
    weights = [1.0, *resummation_weights(coefficients)]

    def total(*leaves: np.ndarray) -> np.ndarray:
        if not tree.is_floating(leaves[0]):
            return leaves[0]
        terms = zip(weights, leaves, strict=True)
        return sum(w * np.asarray(leaf, np.float64) for w, leaf in terms).astype(leaves[0].dtype)

    return jax.tree.map(total, *coefficients)
