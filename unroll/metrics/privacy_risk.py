"""Privacy risk score of an example (Song and Mittal, USENIX Security 2021).

How likely is an example a member of the training set, given how a model treats it? Shadow models,
whose members are known, give two histograms per class of the modified entropy

    Mentr(p, y) = -(1 - p_y) log p_y - sum_{i != y} p_i log(1 - p_i),

and the score of an example of class y whose value falls into bin v is, at even prior odds,

    r = P_member(v | y) / (P_member(v | y) + P_nonmember(v | y)).

Logits in, never probabilities: the entropy is taken of their softmax, in logarithms, so a model
that is sure of itself needs no clamp. Both histograms of a class share their edges; masses in bins
of different widths cannot be compared. A bin that no shadow example reached says nothing and scores
0.5. It is a population attack: it overstates privacy (arXiv 2403.01218).

Design: the histograms are fitted once and are a value, used for every model that is scored.
Rejected: a kernel density in place of the histogram; smoother, but no longer the published score.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from scipy.special import log_softmax, logsumexp

from unroll.checks import whole_number
from unroll.errors import InputError


def modified_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mentr of each example in nats, `[N]` float64, at least 0; 0 for certainty in the label.

    Args:
      logits: `[N, C]` in evaluation mode (`unroll.predict`).
      labels: `[N]` integers below C.

    Raises:
      InputError: if the shapes do not fit, a logit is not finite, or the rows are probabilities.
    """
    logits, labels = _checked(logits, labels)
    rows = np.arange(len(labels))
    log_p = log_softmax(logits, axis=1)
    # log(1 - p): for p <= 1/2 as it stands, for the largest entry from the sum of the others.
    largest = logits.argmax(axis=1)
    log_rest = np.log1p(-np.exp(np.minimum(log_p, np.log(0.5))))
    others = logits.copy()
    others[rows, largest] = -np.inf
    log_rest[rows, largest] = logsumexp(others, axis=1) - logsumexp(logits, axis=1)
    wrong = np.exp(log_p) * log_rest
    wrong[rows, labels] = 0.0
    return -np.exp(log_rest[rows, labels]) * log_p[rows, labels] - wrong.sum(axis=1)


def _checked(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if logits.ndim != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1]:
        raise InputError(
            f"privacy risk: logits {logits.shape} and labels {labels.shape} do not fit; "
            "give [N, C] with C > 1 and [N]"
        )
    if not np.isfinite(logits).all():
        raise InputError("privacy risk: a logit is not finite; the model diverged")
    if len(labels) and not (0 <= labels.min() and labels.max() < logits.shape[1]):
        raise InputError(f"privacy risk: labels must lie in [0, {logits.shape[1]})")
    # float32 sums of up to a thousand probabilities are good to 1e-4.
    if len(logits) and (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1.0, atol=1e-4):
        raise InputError("privacy risk: these rows are probabilities; give the logits")
    return logits, labels


@dataclasses.dataclass(frozen=True, eq=False)
class RiskHistograms:
    """What shadow models say about members and non-members.

    Attributes:
      edges: `[C, bins + 1]` edges of the bins of each class, common to both histograms.
      member: `[C, bins]` shares of the shadow members of a class in each bin; zeros without any.
      nonmember: the same of the shadow non-members.
    """

    edges: np.ndarray
    member: np.ndarray
    nonmember: np.ndarray

    def scores(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Privacy risk score of each example, `[N]` in [0, 1]; 0.5 is no information.

        A value outside the range of the shadow values counts in the nearest bin.

        Args:
          logits: `[N, C]` of the model to be judged, in evaluation mode.
          labels: `[N]`.

        Raises:
          InputError: as `modified_entropy`, or if an example's class has no shadow members or no
            shadow non-members.
        """
        if np.ndim(logits) == 2 and np.shape(logits)[1] != len(self.edges):
            raise InputError(
                f"privacy risk: {np.shape(logits)[1]} logits, but the shadow models have "
                f"{len(self.edges)} classes"
            )
        values, labels = modified_entropy(logits, labels), np.asarray(labels)
        for name, shares in (("members", self.member), ("non-members", self.nonmember)):
            missing = np.setdiff1d(labels, np.flatnonzero(shares.any(axis=1)))
            if len(missing):
                raise InputError(
                    f"privacy risk: class {missing[0]} has no shadow {name}; give shadow "
                    "statistics for every class that is scored"
                )
        bins = _bins(values, self.edges[labels])
        member, nonmember = self.member[labels, bins], self.nonmember[labels, bins]
        total = member + nonmember
        return np.divide(member, total, out=np.full_like(total, 0.5), where=total > 0)


def _bins(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bin of each value `[n]` among its own edges `[n, bins + 1]`; the last one is closed."""
    return (values[:, None] >= edges[:, 1:-1]).sum(axis=1)


def risk_histograms(
    member_logits: np.ndarray,
    member_labels: np.ndarray,
    nonmember_logits: np.ndarray,
    nonmember_labels: np.ndarray,
    *,
    bins: int = 10,
    spacing: Literal["linear", "log"] = "linear",
) -> RiskHistograms:
    """Histograms per class of the modified entropy on shadow members and non-members.

    Args:
      member_logits: `[M, C]` of shadow models on examples that they were trained on.
      member_labels: `[M]`.
      nonmember_logits: `[K, C]` of shadow models on examples that they never saw.
      nonmember_labels: `[K]`.
      bins: bins per class, of equal width over the range of all values of the class.
      spacing: equal widths in the value, as in *Unrolling SGD* (arXiv 2109.13398), or in its
        logarithm, which resolves values that spread over orders of magnitude.

    Raises:
      InputError: as `modified_entropy`, or on another number of classes, fewer than one bin, or an
        unknown spacing.
    """
    whole_number("bins", bins)
    if spacing not in ("linear", "log"):
        raise InputError(f"privacy risk: spacing={spacing!r} is unknown; choose linear or log")
    if np.shape(member_logits)[1:] != np.shape(nonmember_logits)[1:]:
        raise InputError("privacy risk: members and non-members have other numbers of classes")
    sides = [
        (modified_entropy(logits, labels), np.asarray(labels))
        for logits, labels in (
            (member_logits, member_labels),
            (nonmember_logits, nonmember_labels),
        )
    ]
    values, labels = (np.concatenate(parts) for parts in zip(*sides, strict=True))
    classes = np.shape(member_logits)[1]
    edges = np.stack([_edges(values[labels == c], bins, spacing) for c in range(classes)])
    shares = []
    for values, labels in sides:
        counts = np.zeros((classes, bins))
        np.add.at(counts, (labels, _bins(values, edges[labels])), 1.0)
        shares.append(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0))
    return RiskHistograms(edges, *shares)


def _edges(values: np.ndarray, bins: int, spacing: str) -> np.ndarray:
    if not len(values):
        return np.linspace(0.0, 1.0, bins + 1)
    low, high = float(values.min()), float(values.max())
    if spacing == "linear":
        return np.linspace(low, high, bins + 1)
    # Values of 0 (certainty beyond float64) fall into the first bin.
    low = float(values[values > 0].min(initial=high))
    return np.geomspace(low, high, bins + 1) if low > 0 else np.linspace(0.0, 1.0, bins + 1)


def mean_privacy_risk(
    histograms: RiskHistograms, forget_logits: np.ndarray, forget_labels: np.ndarray
) -> float:
    """Mean privacy risk score over the forget set. Target: the retrained model's.

    Raises:
      InputError: as `RiskHistograms.scores`, or if the forget set is empty.
    """
    if not len(forget_labels):
        raise InputError("privacy risk: the forget set is empty; there is nothing to score")
    return float(np.mean(histograms.scores(forget_logits, forget_labels)))


def risk_distribution(scores: np.ndarray, bins: int = 10) -> np.ndarray:
    """Shares of the examples by score, `[bins]` of equal width over [0, 1], 1 in the last one.

    Raises:
      InputError: if there is no score, or one outside [0, 1].
    """
    whole_number("bins", bins)
    scores = np.asarray(scores, np.float64)
    if not len(scores) or not ((scores >= 0) & (scores <= 1)).all():
        raise InputError("privacy risk: give at least one score, all of them in [0, 1]")
    return np.histogram(scores, bins=bins, range=(0.0, 1.0))[0] / len(scores)
