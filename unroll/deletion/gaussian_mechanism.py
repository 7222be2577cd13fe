"""Gaussian noise that hides a shift of bounded length: the one calculation that guarantees share.

Two normal laws `N(0, sigma^2 I)` whose means lie `shift` apart are (epsilon, delta)-close exactly
if, with r = shift / sigma,

    Phi(r/2 - epsilon/r) - exp(epsilon) Phi(-r/2 - epsilon/r) <= delta

(Balle and Wang, arXiv 1805.06530, Theorem 8). The classic rule sigma = shift sqrt(2 ln(1.25/delta))
/ epsilon is proved for epsilon < 1 only and asks for more.

Design: solved by `dp_accounting`, imported where it is used since it is slow to import. Rejected:
the classic rule as the default, which is not valid at the epsilon of 1 to 8 that is usual here.
"""

from __future__ import annotations

import math
import numbers

from scipy.special import log_ndtr

from unroll.errors import InputError


def check_guarantee(epsilon: float, delta: float) -> None:
    """Raises `InputError` unless epsilon is a finite number above 0 and delta lies in (0, 1)."""
    for name, value in (("epsilon", epsilon), ("delta", delta)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not value > 0:
            raise InputError(f"{name} must be a number above 0; got {value!r}")
    if not math.isfinite(epsilon) or delta >= 1:
        raise InputError(f"epsilon must be finite and delta below 1; got {epsilon!r}, {delta!r}")


def gaussian_sigma(epsilon: float, delta: float, shift: float = 1.0) -> float:
    """The least standard deviation that makes a shift (epsilon, delta)-close.

    Args:
      epsilon: above 0.
      delta: in (0, 1).
      shift: Euclidean length, in the units of the result.

    Raises:
      InputError: if one of them is out of range.

    >>> round(gaussian_sigma(1.0, 1e-5), 3)
    3.731
    """
    from dp_accounting.gaussian_mechanism import get_sigma_gaussian

    check_guarantee(epsilon, delta)
    if not 0 <= shift < math.inf:
        raise InputError(f"the shift to hide must be finite and not negative; got {shift!r}")
    return shift * float(get_sigma_gaussian(epsilon, delta))


def gaussian_delta(epsilon: float, shift: float, sigma: float) -> float:
    """The delta at which a shift under noise of standard deviation sigma is epsilon-close.

    It is also the largest share of any difference between two inputs that survives a kernel which
    adds this noise to means at most `shift` apart, see `unroll.deletion.noisy`.
    """
    ratio = shift / sigma
    if ratio == 0:
        return 0.0
    first = log_ndtr(ratio / 2 - epsilon / ratio)
    second = epsilon + log_ndtr(-ratio / 2 - epsilon / ratio)
    return float(-math.exp(first) * math.expm1(second - first))
