"""Certified removal for L2-regularised linear models (Guo et al. 2020, arXiv 1911.03030).

    L_b(w; D) = sum_{i in D} loss(y_i x_i.w)  +  (l2 n / 2) ||w||^2  +  b.w,     b ~ N(0, sigma^2 I)

with y in {-1, 1}, n = |D| and ||x_i|| <= 1. Removing a set S of m examples, D' = D - S, is one
Newton step, section 3.1 of the paper with its batch form:

    Delta = l2 m w + sum_{i in S} loss'(y_i x_i.w) y_i x_i,    H = Hessian of L(w; D')
    w <- w + v,    v = H^-1 Delta

It would be exact if the loss were quadratic. What is left is a gradient, grad L_b(w + v; D'), the
`residual`, whose norm grows by at most the bounds of `unroll.deletion.residual_bounds`. Those of a
sequence of removals add up (triangle inequality), per classifier; the classifiers of one-vs-rest
have independent b, so their residuals are one vector, whose norm is the root of the summed squares.

The certificate (Theorem 3): a residual of at most `budget` is (epsilon, delta)-hidden by b. With
`calibration="analytic"` the budget is the largest shift that N(0, sigma^2 I) hides; with `"paper"`
it is sigma epsilon / c, delta = 1.5 exp(-c^2 / 2), for epsilon <= 1. When the budget would be
exceeded nothing is changed, and the answer is `MustRetrain`; retraining draws a new b.

What it does not cover: features computed by something that was trained on S; requests that were
chosen after looking at the model; several models published one after the other, whose budgets
compose; anybody who knows b. Theorem 3 shifts b by the residual as if that did not depend on b,
which it does, through w; the theorem is used as published. `distance_bound` needs no such step:
strong convexity puts the retrained optimum within residual / (l2 n) of w, a proved sensitivity for
noise on the parameters (`unroll.deletion.pipeline`).

Design: float64 in numpy, whatever jax is set to. A residual of 1e-6 is a difference of sums of a
thousand terms, and in float32 mostly rounding. The errors of the training and of the linear solves
are measured and added to the bound. Removed rows are overwritten with zeros, which add nothing to
any sum. Rejected: restarting the sum by a Newton step on the whole gradient, whose residual would
be smaller, but which is not the mechanism that the theorem is about.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import numpy as np

from unroll.checks import positive_number
from unroll.data.ids import IdsLike, as_ids
from unroll.deletion.gaussian_mechanism import check_guarantee, gaussian_sigma
from unroll.deletion.residual_bounds import LOSSES, ROUNDING, Bound, newton_steps
from unroll.errors import DivergenceError, InputError

_ITERATIONS = 100


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenFeatures:
    """Features together with where they come from.

    Attributes:
      values: `[N, d]`, rows of norm at most 1, each computed from its own example alone.
      source: what computed them, for messages.
      trained_on: ids of those of the N examples that the extractor was trained on; empty for a
        random extractor or one trained on other data. Removing one of these is refused: the
        extractor would still carry it.
    """

    values: np.ndarray
    source: str
    trained_on: np.ndarray


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What a removal guarantees, and what is left of the budget.

    Attributes:
      epsilon: of the guarantee.
      delta: of the guarantee.
      residual_bound: bound on the norm of the gradient that all removals since training have left.
      step_bound: what the last removal added to it.
      budget: largest residual that the perturbation hides.
      removals: requests served since training.
      removed: examples removed since training.
    """

    epsilon: float
    delta: float
    residual_bound: float
    step_bound: float
    budget: float
    removals: int
    removed: int

    @property
    def remaining(self) -> float:
        """What the budget has left."""
        return self.budget - self.residual_bound


@dataclasses.dataclass(frozen=True)
class MustRetrain:
    """The answer to a removal that the budget does not cover; nothing was removed.

    Attributes:
      ids: what was asked for, to be passed on to `CertifiedModel.retrain`.
      residual_bound: what the bound would have become.
      budget: largest residual that the perturbation hides.
    """

    ids: tuple[int, ...]
    residual_bound: float
    budget: float


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a certified model was trained with; fields as in `train_certified`."""

    l2: float
    sigma: float
    epsilon: float
    delta: float
    loss: Literal["logistic", "squared"] = "logistic"
    bound: Bound = "integral"
    calibration: Literal["analytic", "paper"] = "analytic"

    def __post_init__(self):
        positive_number("l2", self.l2)
        positive_number("sigma", self.sigma)
        check_guarantee(self.epsilon, self.delta)
        choices = (
            ("loss", tuple(LOSSES)),
            ("bound", ("paper", "integral")),
            ("calibration", ("analytic", "paper")),
        )
        for name, known in choices:
            if getattr(self, name) not in known:
                raise InputError(f"unknown {name} {getattr(self, name)!r}; choose one of {known}")
        if self.calibration == "paper" and self.epsilon > 1:
            raise InputError("calibration='paper' is proved for epsilon up to 1; use 'analytic'")

    @property
    def budget(self) -> float:
        """Largest norm of a residual that the perturbation hides."""
        if self.calibration == "paper":
            return self.sigma * self.epsilon / math.sqrt(2 * math.log(1.5 / self.delta))
        return self.sigma / gaussian_sigma(self.epsilon, self.delta)


@dataclasses.dataclass(frozen=True, eq=False)
class CertifiedModel:
    """K linear classifiers (one for two classes) from which examples can be removed.

    Holds b, which must stay secret, and the data; only `weights` are for publication.

    Attributes:
      weights: float64 `[d, K]`.
      features: float64 `[N, d]`; zeros where an example was removed.
      signs: float64 `[N, K]`, 1 for examples of the class and -1 for others; 0 where removed.
      present: bool `[N]`.
      perturbation: b, float64 `[d, K]`.
      residuals: `[K]` bounds on the gradient of each classifier that training and removals left.
      settings: what it was trained with.
      key: typed key of b.
      trained_on: int64 ids of examples that the features carry.
      trainings: how many there were, retraining included.
      removals: requests served since the last training.
      removed: examples removed since the last training.
    """

    weights: np.ndarray
    features: np.ndarray
    signs: np.ndarray
    present: np.ndarray
    perturbation: np.ndarray
    residuals: np.ndarray
    settings: Settings
    key: jax.Array
    trained_on: np.ndarray
    trainings: int = 1
    removals: int = 0
    removed: int = 0

    @property
    def count(self) -> int:
        """Examples that the model is of."""
        return int(self.present.sum())

    @property
    def residual_bound(self) -> float:
        """Bound on the norm of the gradient of L_b at the weights."""
        return float(np.linalg.norm(self.residuals))

    @property
    def distance_bound(self) -> float:
        """Bound on the distance of the weights from the optimum on what is present.

        L_b is l2 n strongly convex, so ||w - w*|| <= ||grad L_b(w)|| / (l2 n).
        """
        return self.residual_bound / (self.settings.l2 * self.count)

    def true_residual(self) -> float:
        """Norm of the gradient of L_b at the weights, as it is; for who holds b and the data."""
        return float(np.linalg.norm(_gradient(self, self.weights)))

    def optimum(self) -> np.ndarray:
        """Weights `[d, K]` that retraining with the same b would give; to measure against."""
        return _optimum(self)[0]

    def decisions(self, features: np.ndarray) -> np.ndarray:
        """`[M, K]` values of the classifiers on features `[M, d]`."""
        return np.asarray(features, np.float64) @ self.weights

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Class of each row, int `[M]`: the largest classifier, or the sign of the only one."""
        found = self.decisions(features)
        return (found[:, 0] > 0).astype(np.int64) if found.shape[1] == 1 else found.argmax(axis=1)

    def remove(self, ids: IdsLike) -> tuple[CertifiedModel, Certificate | MustRetrain]:
        """Removes examples by one Newton step, if the budget covers it.

        Args:
          ids: rows of the training set, each present.

        Returns:
          The model without them and the certificate; or this model as it is and `MustRetrain`.

        Raises:
          InputError: if an id is unknown, repeated, already removed or in the features' extractor,
            or nothing would remain.
          DivergenceError: if the step is not finite.
        """
        ids = self._checked(ids)
        less = self._without(ids)
        delta = _example_gradients_sum(self, ids) + self.settings.l2 * len(ids) * self.weights
        steps, bounds = _newton_steps(less, self.weights, delta)
        total = self.residuals + bounds
        bound, budget = float(np.linalg.norm(total)), self.settings.budget
        if bound > budget:
            return self, MustRetrain(tuple(ids.tolist()), bound, budget)
        model = dataclasses.replace(
            less,
            weights=self.weights + steps,
            residuals=total,
            removals=self.removals + 1,
            removed=self.removed + len(ids),
        )
        return model, model.certificate(float(np.linalg.norm(bounds)))

    def retrain(self, ids: IdsLike = ()) -> tuple[CertifiedModel, Certificate]:
        """Trains anew without these examples, with a new perturbation and a full budget.

        Args:
          ids: rows to leave out from now on, each present; none by default.

        Raises:
          InputError: as `remove`.
          DivergenceError: if training does not converge.
        """
        less = self._without(self._checked(ids)) if len(ids) else self
        model = _trained(dataclasses.replace(less, trainings=self.trainings + 1))
        return model, model.certificate(0.0)

    def certificate(self, step_bound: float = 0.0) -> Certificate:
        """The certificate of the model as it is."""
        return Certificate(
            self.settings.epsilon,
            self.settings.delta,
            self.residual_bound,
            step_bound,
            self.settings.budget,
            self.removals,
            self.removed,
        )

    def _checked(self, ids: IdsLike) -> np.ndarray:
        ids = as_ids(ids, len(self.present), name="removal")
        if not len(ids) or len(np.unique(ids)) < len(ids):
            raise InputError("a removal needs at least one example, and each id once")
        if not self.present[ids].all():
            gone = ids[~self.present[ids]][0]
            raise InputError(f"example {gone} was removed before; leave it out of the request")
        if len(ids) == self.count:
            raise InputError("nothing would remain; keep at least one example")
        carried = np.intersect1d(ids, self.trained_on)
        if len(carried):
            raise InputError(
                f"the features were trained on example {carried[0]}: no certificate covers its "
                "removal; train an extractor without it, and a new model on its features"
            )
        return ids

    def _without(self, ids: np.ndarray) -> CertifiedModel:
        arrays = {name: getattr(self, name).copy() for name in ("features", "signs", "present")}
        for array in arrays.values():
            array[ids] = 0
        return dataclasses.replace(self, **arrays)


def train_certified(
    features: np.ndarray | FrozenFeatures,
    labels: np.ndarray,
    *,
    l2: float,
    sigma: float,
    epsilon: float,
    delta: float,
    key: jax.Array,
    loss: Literal["logistic", "squared"] = "logistic",
    bound: Bound = "integral",
    calibration: Literal["analytic", "paper"] = "analytic",
) -> CertifiedModel:
    """Trains linear classifiers whose examples can be removed with a certificate.

    Args:
      features: `[N, d]` with rows of norm at most 1, see `unit_rows`. A plain array says that each
        row is a function of its own example (pixels, random features); features of a trained
        extractor say what it was trained on.
      labels: int `[N]`, classes from 0 on; two classes make one classifier, more one-vs-rest.
      l2: of the penalty `l2/2 ||w||^2` per example.
      sigma: standard deviation of b. The budget is proportional to it; so is what it costs.
      epsilon: of the certificate.
      delta: of the certificate.
      key: typed key, a secret like b.
      loss: `logistic`; or `squared`, for which the Newton step is exact.
      bound: on the residual, `integral` or the larger one of the `paper`.
      calibration: of the budget, `analytic` or as in the `paper`.

    Raises:
      InputError: on features that are not finite or longer than 1, labels that do not fit, or
        settings out of range.
      DivergenceError: if training does not converge.
    """
    settings = Settings(l2, sigma, epsilon, delta, loss, bound, calibration)
    trained_on = np.zeros(0, np.int64)
    if isinstance(features, FrozenFeatures):
        trained_on = as_ids(features.trained_on, len(features.values), name=features.source)
        features = features.values
    values = np.array(features, np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise InputError(f"features must be finite numbers [N, d]; their shape is {values.shape}")
    longest = float(np.linalg.norm(values, axis=1).max())
    if longest > 1 + 1e-9:
        raise InputError(
            f"a row of the features has norm {longest:.4g}; the bounds need at most 1: "
            "scale each row by itself with unit_rows(...)"
        )
    signs = _signs(np.asarray(labels), len(values))
    size = values.shape[1], signs.shape[1]
    blank = CertifiedModel(
        np.zeros(size),
        values,
        signs,
        np.ones(len(values), bool),
        np.zeros(size),
        np.zeros(size[1]),
        settings,
        key,
        trained_on,
    )
    return _trained(blank)


def unit_rows(inputs: np.ndarray, constant: bool = True) -> np.ndarray:
    """Rows scaled to norm 1, each by itself, float64 `[N, d]`.

    A common scale, such as the longest row's norm, would be a statistic of the training set.

    Args:
      inputs: `[N, ...]`, flattened.
      constant: append a 1 first, which stands for a bias; otherwise a row of zeros stays zero.
    """
    rows = np.asarray(inputs, np.float64).reshape(len(inputs), -1)
    if constant:
        rows = np.hstack([rows, np.ones((len(rows), 1))])
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)


def _signs(labels: np.ndarray, count: int) -> np.ndarray:
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels must be one integer for each of {count} rows of features")
    classes = int(labels.max()) + 1
    if labels.min() < 0 or len(np.unique(labels)) < 2:
        raise InputError("labels must count from 0, and be of two classes or more")
    if classes == 2:
        return np.where(labels == 1, 1.0, -1.0)[:, None]
    return np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)


def _margins(model: CertifiedModel, weights: np.ndarray) -> np.ndarray:
    return model.signs * (model.features @ weights)


def _gradient(model: CertifiedModel, weights: np.ndarray) -> np.ndarray:
    """Gradient of L_b, `[d, K]`; a removed row has sign 0 and drops out."""
    slopes = LOSSES[model.settings.loss].slope(_margins(model, weights)) * model.signs
    penalty = model.settings.l2 * model.count * weights
    return model.features.T @ slopes + penalty + model.perturbation


def _example_gradients_sum(model: CertifiedModel, ids: np.ndarray) -> np.ndarray:
    signs, features = model.signs[ids], model.features[ids]
    slope = LOSSES[model.settings.loss].slope
    return features.T @ (slope(signs * (features @ model.weights)) * signs)


def _newton_steps(
    model: CertifiedModel, weights: np.ndarray, gradients: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    settings, margins = model.settings, _margins(model, weights)
    ridge = settings.l2 * model.count
    loss = LOSSES[settings.loss]
    return newton_steps(loss, settings.bound, model.features, margins, ridge, gradients)


def _trained(model: CertifiedModel) -> CertifiedModel:
    """Draws b and minimises L_b."""
    with jax.enable_x64(True):
        key = jax.random.fold_in(model.key, model.trainings)
        drawn = jax.random.normal(key, model.weights.shape, np.float64)
    perturbation = model.settings.sigma * np.asarray(drawn)
    model = dataclasses.replace(model, perturbation=perturbation, removals=0, removed=0)
    weights, left = _optimum(model)
    if not np.linalg.norm(left) < 1e-3 * model.settings.budget:
        raise DivergenceError(
            f"training left a gradient of {np.linalg.norm(left):.3g}, more than a thousandth of "
            "the budget; raise l2 or sigma"
        )
    return dataclasses.replace(model, weights=weights, residuals=left)


def _optimum(model: CertifiedModel) -> tuple[np.ndarray, np.ndarray]:
    """Minimiser of L_b, and the norms `[K]` of the gradient there.

    Newton's method, damped so that the norm of the gradient falls: the Newton direction of a
    strictly convex function lowers it. It ends where rounding allows no smaller one.
    """
    weights = np.zeros_like(model.weights)
    gradient = _gradient(model, weights)
    for _ in range(_ITERATIONS):
        step = -_newton_steps(model, weights, gradient)[0]
        length, norm = 1.0, np.linalg.norm(gradient)
        while length > 1e-8:
            trial = _gradient(model, weights + length * step)
            if np.linalg.norm(trial) < (1 - length / 4) * norm:
                break
            length /= 2
        else:
            break
        weights, gradient = weights + length * step, trial
    return weights, np.linalg.norm(gradient, axis=0) * ROUNDING
