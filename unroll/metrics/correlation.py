"""Pearson and Spearman correlations with intervals, for proxies against what they stand for.

The intervals take the pairs as independent units: runs, seeds, forget sets. Points along one run
are not; there both quantities grow with the step count, a high correlation comes for free, and the
interval is too narrow. A proxy is to be printed beside its baselines (the step count alone, the
distance travelled alone), and a correlation across runs at a fixed step count beside one within.

Design: Fisher's z in closed form, with the variance of Bonett and Wright (Psychometrika 2000) for
ranks. Rejected: a bootstrap; with the ten or so runs that there are, resamples repeat a few of them
and ties decide the ends of the interval.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy.stats import norm, rankdata

from unroll.errors import InputError

# Differences below this share of the values are rounding; scipy warns below the same share.
_ROUNDING = 1e-13


@dataclasses.dataclass(frozen=True)
class Correlation:
    """A correlation coefficient with its interval.

    Attributes:
      value: in [-1, 1]; `None` where it is not defined, with the reason in `note`.
      low: lower end of the interval; `None` where there is none, with the reason in `note`.
      high: upper end.
      count: number of pairs.
      note: why something is missing.
    """

    value: float | None
    low: float | None
    high: float | None
    count: int
    note: str | None = None


def pearson(first: np.ndarray, second: np.ndarray, confidence: float = 0.95) -> Correlation:
    """Pearson's linear correlation of n pairs.

    The interval is that of Fisher's z, with the variance 1 / (n - 3).

    Args:
      first: `[n]` finite numbers.
      second: `[n]`, paired with them.
      confidence: coverage of the interval, between 0 and 1.

    Raises:
      InputError: if lengths differ, a value is not finite, or the confidence is out of range.
    """
    first, second = _checked(first, second, confidence)
    return _correlation(first, second, confidence, lambda r: 1.0)


def spearman(first: np.ndarray, second: np.ndarray, confidence: float = 0.95) -> Correlation:
    """Spearman's rank correlation of n pairs; ties share their mean rank.

    The interval is that of Fisher's z, with the variance (1 + r^2 / 2) / (n - 3) of Bonett and
    Wright, which holds up to |r| of about 0.95. Arguments and errors as in `pearson`.
    """
    first, second = _checked(first, second, confidence)
    if _constant(first) or _constant(second):  # rounding must not become ranks
        return _undefined(len(first))
    return _correlation(rankdata(first), rankdata(second), confidence, lambda r: 1.0 + r * r / 2)


def _checked(first, second, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise InputError(
            f"correlation: shapes {first.shape} and {second.shape}; give two vectors of one length"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InputError("correlation: a value is not finite; leave out runs that diverged")
    if not 0 < confidence < 1:
        raise InputError(f"correlation: confidence={confidence} must lie between 0 and 1")
    return first, second


def _constant(values: np.ndarray) -> bool:
    return len(values) == 0 or np.ptp(values) <= _ROUNDING * np.abs(values).max()


def _undefined(count: int) -> Correlation:
    reason = "fewer than 3 pairs" if count < 3 else "one of the two is constant"
    return Correlation(None, None, None, count, f"no correlation: {reason}")


def _correlation(first, second, confidence, variance) -> Correlation:
    count = len(first)
    if count < 3 or _constant(first) or _constant(second):
        return _undefined(count)
    # Scaled first: the squares of tiny or huge values would leave the range of float64.
    x, y = ((v - v.mean()) / np.abs(v - v.mean()).max() for v in (first, second))
    value = float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
    if 1.0 - abs(value) < _ROUNDING:
        value = math.copysign(1.0, value)
    if count == 3:
        return Correlation(value, None, None, count, "no interval: it needs 4 pairs")
    if abs(value) == 1.0:
        return Correlation(value, None, None, count, "no interval: the correlation is perfect")
    half = norm.ppf((1 + confidence) / 2) * math.sqrt(variance(value) / (count - 3))
    centre = math.atanh(value)
    return Correlation(value, math.tanh(centre - half), math.tanh(centre + half), count)
