"""What the work of a deletion tells somebody who watches it about what was deleted.

Somebody sees a quantity of each deletion (gradients, steps, bytes, seconds) and guesses a secret:
the slice of the example, whether two examples were of one shard, whether the example was there at
all, how many there were. What the quantity tells is measured in three ways:

- accuracy of the best guess, against that of guessing without looking (`chance`);
- AUC, for a secret that is true or false: the probability that the quantity is larger where it is
  true; 0.5 tells nothing;
- mutual information in bits, against the entropy of the secret, the most that can be told.

Quantities that are counted depend on the request alone. `exact_leak` takes every possible request,
all as likely; accuracy and bits are then those of a guesser who knows plan and assignment, and no
estimates. Seconds are measured, and `estimated_leak` works from a sample:

- accuracy: a decision tree on the held-out parts of a stratified cross-validation, with Wilson's
  interval as if the guesses were independent;
- AUC with the interval of Hanley and McNeil (1982), which has no width at 0 and 1;
- bits: the quantity in bins of equal counts, the plug-in estimate, whose bias from too few requests
  is upward, about (bins - 1) (secrets - 1) / (2 n ln 2), minus its jackknife estimate of that bias;
  the interval is from the jackknife's standard error. Binning loses information, so what is left of
  the bias is mostly downward. `bits_of_nothing` is the 95th percentile with shuffled secrets.

Constant work (`Sisa.delete(..., constant_work=True)`) leaves nothing in what is counted. It does
not hide: the number of requests and when they come; the size of a request above the bound; a
refusal, unless the server does the work of an empty request in its place; what is in the store,
whose addresses say which stages are new, and noise, which a description calls by its name; the
exact size of files, since noise and states compress differently (it is measured, too); the
memory and caches of the machine; in sequential mode the compilation for a stage of a new length,
which takes longer than the stage (in batched mode all lengths share one program); the work that is
left to do after a kill; and of course what the model answers.

Design: estimators with an error bar, and a null beside them. Rejected: mutual information by
nearest neighbours (Ross 2014, in scikit-learn), which needs no bins but has no error bar of its own
and ties in what is counted.
"""

from __future__ import annotations

import collections
import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from unroll.checks import seed_number, whole_number
from unroll.deletion.sharding import Assignment
from unroll.errors import InputError

CONFIDENCE = 0.95
_LEAF = 5
_SHUFFLES = 200


class Estimate(NamedTuple):
    """A number and the ends of its 95% interval; the same three where it is exact."""

    value: float
    low: float
    high: float


class Leak(NamedTuple):
    """What a quantity tells about a secret.

    Attributes:
      requests: number of requests; of kinds of requests where it is exact.
      chance: accuracy of the most frequent secret.
      accuracy: of the guess from the quantity.
      auc: of a secret with two values, that the quantity is larger for the greater one; else
        `None`.
      entropy: of the secret, in bits.
      bits: mutual information.
      bits_of_nothing: 95th percentile of that estimate with shuffled secrets; 0 where it is exact.
    """

    requests: int
    chance: float
    accuracy: Estimate
    auc: Estimate | None
    entropy: float
    bits: Estimate
    bits_of_nothing: float


def possible_requests(assignment: Assignment, size: int) -> tuple[list[np.ndarray], np.ndarray]:
    """All requests of a size, one for each way to spread them over shards and slices.

    What a request costs depends on the cells (shard, slice) of its examples and not on which of a
    cell they are.

    Args:
      assignment: where the examples are.
      size: number of examples of a request.

    Returns:
      Ids of each, and the number of requests that it stands for.
    """
    counts = assignment.counts()
    cells = [
        np.flatnonzero((assignment.shard == shard) & (assignment.slice == part))
        for shard, part in np.argwhere(counts)
    ]
    found, weights = [], []
    for choice in itertools.combinations_with_replacement(range(len(cells)), size):
        taken = collections.Counter(choice)
        weight = math.prod(math.comb(len(cells[cell]), count) for cell, count in taken.items())
        if weight:
            parts = [cells[cell][:count] for cell, count in taken.items()]
            found.append(np.concatenate(parts))
            weights.append(weight)
    return found, np.array(weights, np.float64)


def exact_leak(observed: np.ndarray, secret: np.ndarray, weights: np.ndarray | None = None) -> Leak:
    """The leak of a counted quantity, over all requests that are possible.

    Args:
      observed: `[n]` numbers.
      secret: `[n]` whole numbers or truth values.
      weights: `[n]`, how likely each request is, up to a factor; all equal by default.

    Raises:
      InputError: if the shapes differ or there is no request.
    """
    observed, secret = _checked(observed, secret)
    weights = np.ones(len(secret)) if weights is None else np.asarray(weights, np.float64)
    table = _table(observed, secret, weights)
    accuracy, bits = table.max(axis=1).sum() / table.sum(), _information(table)
    auc = None
    if table.shape[1] == 2:
        auc = _exactly(_auc(observed, secret, weights))
    counts = table.sum(axis=0)
    return Leak(
        len(secret),
        float(counts.max() / counts.sum()),
        _exactly(accuracy),
        auc,
        _entropy(counts),
        _exactly(bits),
        0.0,
    )


def estimated_leak(
    observed: np.ndarray, secret: np.ndarray, *, bins: int = 6, folds: int = 5, seed: int = 0
) -> Leak:
    """The leak of a measured quantity, from a sample of requests.

    Args:
      observed: `[n]` numbers.
      secret: `[n]` whole numbers or truth values, each value `folds` times or more.
      bins: of the quantity, for the bits.
      folds: of the cross-validation.
      seed: of folds and shuffles.

    Raises:
      InputError: if the shapes differ, a number is not finite, or there are too few requests.
    """
    observed, secret = _checked(observed, secret)
    whole_number("bins", bins, least=2)
    whole_number("folds", folds, least=2)
    values, counts = np.unique(secret, return_counts=True)
    if len(values) < 2 or counts.min() < folds:
        raise InputError(
            f"{folds} folds need two secrets or more, each {folds} times; there are "
            f"{dict(zip(values.tolist(), counts.tolist(), strict=True))}"
        )
    random = np.random.default_rng(seed_number(seed))
    binned = _bins(observed, bins)
    nothing = [_jackknife(_table(binned, random.permutation(secret)))[0] for _ in range(_SHUFFLES)]
    bits, error = _jackknife(_table(binned, secret))
    half = stats.norm.ppf((1 + CONFIDENCE) / 2) * error
    right = _guesses(observed, secret, folds, seed) == secret
    return Leak(
        len(secret),
        float(counts.max() / len(secret)),
        wilson(int(right.sum()), len(right)),
        _hanley_mcneil(observed, secret) if len(values) == 2 else None,
        _entropy(counts),
        Estimate(bits, bits - half, bits + half),
        float(np.quantile(nothing, CONFIDENCE)),
    )


def wilson(successes: int, trials: int) -> Estimate:
    """A share with Wilson's score interval."""
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, "wilson")
    return Estimate(successes / trials, float(interval.low), float(interval.high))


def _checked(observed: np.ndarray, secret: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    observed, secret = np.asarray(observed, np.float64), np.asarray(secret)
    if observed.ndim != 1 or observed.shape != secret.shape or not len(secret):
        raise InputError(
            f"a quantity {observed.shape} and a secret {secret.shape}: give both for each request"
        )
    if not np.isfinite(observed).all():
        raise InputError("an observed quantity is not finite; leave such requests out")
    return observed, secret


def _exactly(value: float) -> Estimate:
    return Estimate(float(value), float(value), float(value))


def _table(observed: np.ndarray, secret: np.ndarray, weights: np.ndarray | int = 1) -> np.ndarray:
    """Weights `[values of the quantity, values of the secret]`."""
    rows, columns = (np.unique(each, return_inverse=True)[1] for each in (observed, secret))
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), weights)
    return table


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def _information(table: np.ndarray) -> float:
    """Plug-in mutual information in bits: H(rows) + H(columns) - H(both)."""
    both = _entropy(table.ravel())
    # Rounding may leave less than nothing.
    return max(_entropy(table.sum(axis=1)) + _entropy(table.sum(axis=0)) - both, 0.0)


def _jackknife(table: np.ndarray) -> tuple[float, float]:
    """Bias-corrected information and its standard error, by leaving out each request in turn.

        n I - (n - 1) mean_i I_-i,      sqrt((n - 1) / n sum_i (I_-i - mean)^2)

    Requests of one cell leave the same table, so there is one table for each cell.
    """
    total, left, weights = round(table.sum()), [], []
    for place in np.argwhere(table):
        table[tuple(place)] -= 1
        left.append(_information(table))
        table[tuple(place)] += 1
        weights.append(table[tuple(place)])
    mean = np.average(left, weights=weights)
    variance = (total - 1) * np.average((np.array(left) - mean) ** 2, weights=weights)
    return float(total * _information(table) - (total - 1) * mean), float(np.sqrt(variance))


def _bins(observed: np.ndarray, bins: int) -> np.ndarray:
    """Bins of about equal counts; equal numbers share one."""
    edges = np.unique(np.quantile(observed, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, observed, side="left")


def _guesses(observed: np.ndarray, secret: np.ndarray, folds: int, seed: int) -> np.ndarray:
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.tree import DecisionTreeClassifier

    tree = DecisionTreeClassifier(min_samples_leaf=_LEAF, random_state=seed)
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return cross_val_predict(tree, observed[:, None], secret, cv=parts)


def _auc(observed: np.ndarray, secret: np.ndarray, weights: np.ndarray | None = None) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(secret == secret.max(), observed, sample_weight=weights))


def _hanley_mcneil(observed: np.ndarray, secret: np.ndarray) -> Estimate:
    area = _auc(observed, secret)
    positives = int((secret == secret.max()).sum())
    negatives = len(secret) - positives
    of_positives = area / (2 - area) - area**2
    of_negatives = 2 * area**2 / (1 + area) - area**2
    variance = area * (1 - area) + (positives - 1) * of_positives + (negatives - 1) * of_negatives
    error = math.sqrt(max(variance, 0.0) / (positives * negatives))
    half = stats.norm.ppf((1 + CONFIDENCE) / 2) * error
    return Estimate(area, max(area - half, 0.0), min(area + half, 1.0))
