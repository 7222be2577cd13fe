"""From a second moment of inputs to the directions that must be protected.

    G = U diag(lambda) U^T,  protected: the first k columns of U,  k = min{j: share_j >= threshold}
    energy:      share_j = sum_{i<=j} lambda_i / sum_i lambda_i
    l1_singular: share_j = sum_{i<=j} sqrt(lambda_i) / sum_i sqrt(lambda_i)

`l1_singular` is what the reference code of arXiv 2312.04095 does, `energy` what gradient projection
memory does; at the same threshold the first protects many more directions.

Design: `eigh`, negative eigenvalues clipped to 0 and their mass reported. A difference of two
second moments has negative ones as soon as the features differ. Rejected: the SVD of the reference,
which turns an eigenvalue of -3 into a singular value of 3, to be protected before one of 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

from unroll.checks import positive_number
from unroll.errors import InputError
from unroll.training.projection import Bases, Basis

RANK_RULES = ("l1_singular", "energy")
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues and eigenvectors of a second moment, clipped.

    Attributes:
      values: `[m]` float64, descending, not negative.
      vectors: `[d, m]` float64, orthonormal columns.
      clipped: share of the negative eigenvalues in the sum of the absolute ones, 0 to 1.
      total: trace of the second moment; more than the sum of the values where m < d.
    """

    values: np.ndarray
    vectors: np.ndarray
    clipped: float
    total: float


@dataclasses.dataclass(frozen=True)
class RankRule:
    """How many directions of a layer are protected, and how strongly.

    Attributes:
      rule: `l1_singular` or `energy`.
      threshold: share that the protected directions must reach. At 1 the layer is frozen, at 0
        nothing is protected; between, at least one direction is.
      thresholds: thresholds of single layers by path, as pairs, instead of `threshold`.
      importance: `None` takes protected directions out wholly. A number alpha takes out the share
        `(alpha + 1) lambda / (alpha lambda + lambda_max)` of each, over the *square roots* of the
        eigenvalues (scaled gradient projection, arXiv 2302.01386); `alpha -> inf` is the hard form.

    Raises:
      InputError: on an unknown rule or a threshold outside [0, 1].
    """

    rule: Literal["l1_singular", "energy"] = "l1_singular"
    threshold: float = 0.95
    thresholds: tuple[tuple[str, float], ...] = ()
    importance: float | None = None

    def __post_init__(self):
        if self.rule not in RANK_RULES:
            raise InputError(f"unknown rank rule {self.rule!r}; choose one of {list(RANK_RULES)}")
        for name, value in (("threshold", self.threshold), *self.thresholds):
            real = isinstance(value, int | float) and not isinstance(value, bool)
            if not real or not 0 <= value <= 1:
                raise InputError(f"threshold of {name} must lie between 0 and 1; got {value!r}")
        if self.importance is not None:
            positive_number("importance", self.importance)

    def of(self, layer: str) -> float:
        """Threshold of a layer."""
        return dict(self.thresholds).get(layer, self.threshold)


def spectrum(gram: np.ndarray) -> Spectrum:
    """Spectrum of a symmetric `[d, d]` matrix.

    Raises:
      InputError: if it has entries that are not finite.
    """
    if not np.isfinite(gram).all():
        raise InputError("the second moment of the inputs is not finite; the model has diverged")
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    return _clipped(values[::-1], vectors[:, ::-1], float(np.trace(gram)))


def sketched_spectrum(products: np.ndarray, test: np.ndarray, trace: float) -> Spectrum:
    """Spectrum of a `[d, d]` matrix G of which `G Omega` `[d, r]` and the trace are known.

    Nystrom's approximation `G Omega (Omega^T G Omega)^+ (G Omega)^T`, exact where the rank of G is
    at most r (Tropp et al. 2017, arXiv 1706.05736). Linear in G, so a difference of two products
    is the product of the difference.
    """
    if not np.isfinite(products).all():
        raise InputError("the second moment of the inputs is not finite; the model has diverged")
    core = test.T @ products
    values, vectors = np.linalg.eigh((core + core.T) / 2)
    # Below this the inverse would blow up rounding, float32 in the products. 1e-6 of the largest.
    kept = values > 1e-6 * max(values[-1], 0.0)
    factor = products @ (vectors[:, kept] / np.sqrt(values[kept]))
    directions, singular, _ = np.linalg.svd(factor, full_matrices=False)
    return Spectrum(singular**2, directions, negative_share(values), trace)


def _clipped(values: np.ndarray, vectors: np.ndarray, trace: float) -> Spectrum:
    positive = np.maximum(values, 0.0)
    return Spectrum(positive, vectors, negative_share(values), max(trace, float(positive.sum())))


def negative_share(values: np.ndarray) -> float:
    """Share of the negative values in the sum of the absolute ones; 0 where all are 0.

    >>> negative_share(np.array([6.0, -2.0]))
    0.25
    """
    total = float(np.abs(values).sum())
    return float(np.abs(np.minimum(values, 0.0)).sum()) / total if total else 0.0


def rank(values: np.ndarray, threshold: float, rule: str, total: float | None = None) -> int:
    """Smallest number of leading eigenvalues whose share reaches the threshold, at least 1.

    Args:
      values: descending, not negative.
      threshold: above 0 and below 1.
      rule: `l1_singular` or `energy`.
      total: what the shares refer to, with `energy`; by default the sum of the values.

    Returns:
      At most `len(values)`, also where their share stays below the threshold.

    >>> values = np.array([4.0, 1.0, 1.0])
    >>> rank(values, 0.6, "energy"), rank(values, 0.6, "l1_singular")
    (1, 2)
    """
    terms = np.sqrt(values) if rule == "l1_singular" else values
    total = float(terms.sum()) if total is None or rule == "l1_singular" else total
    if total <= 0:
        return 1
    share = np.cumsum(terms) / total
    return min(int(np.searchsorted(share, threshold - _ROUNDING)) + 1, len(values))


def protected(layer: str, found: Spectrum, rule: RankRule) -> tuple[Basis, dict[str, float]]:
    """The basis of a layer, and what to report of it: inputs, rank, kept energy, clipped mass.

    Raises:
      InputError: if `l1_singular` is asked of a sketch: the singular values not seen would count.
    """
    threshold, inputs = rule.of(layer), len(found.vectors)
    sketch = len(found.values) < inputs
    if sketch and rule.rule == "l1_singular" and 0 < threshold < 1:
        raise InputError(
            f"layer {layer!r} has {inputs} inputs and was sketched; l1_singular needs all singular "
            "values: choose rank_rule='energy' or raise max_inputs"
        )
    if threshold == 0:
        count = 0
    else:
        count = rank(found.values, threshold, rule.rule, found.total)
    values = found.values[:count]
    scales = np.ones(count)
    if rule.importance is not None and count and values[0] > 0:
        roots = np.sqrt(values / values[0])
        scales = (rule.importance + 1) * roots / (rule.importance * roots + 1)
    basis = Basis(found.vectors[:, :count], scales)
    kept = float(values.sum() / found.total) if found.total > 0 else 1.0
    report = {"inputs": inputs, "rank": count, "energy": kept, "clipped": found.clipped}
    return basis, report


def all_bases(
    spectra: Mapping[str, Spectrum], rule: RankRule
) -> tuple[Bases, dict[str, dict[str, float]]]:
    """Bases of all layers that may move, and the report of each.

    Raises:
      InputError: if a threshold names a layer that there is not.
    """
    unknown = sorted({path for path, _ in rule.thresholds} - set(spectra))
    if unknown:
        raise InputError(f"no layer {unknown[0]!r} for a threshold; there are {sorted(spectra)}")
    bases, reports = {}, {}
    for layer, found in spectra.items():
        if rule.of(layer) == 1:
            inputs = len(found.vectors)
            reports[layer] = dict(inputs=inputs, rank=inputs, energy=1.0, clipped=found.clipped)
        else:
            bases[layer], reports[layer] = protected(layer, found, rule)
    return bases, reports
