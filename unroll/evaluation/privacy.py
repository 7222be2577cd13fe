"""Privacy risk score against verification error (arXiv 2109.13398, section 6; Song and Mittal).

A shadow model, trained like the original on other examples, says how members and non-members look
(`metrics.privacy_risk`). The forget set is then scored under the original, the unlearned and the
retrained model. What unlearning should close is the *gap*: the mean score under a model less that
under the retrained one, which scores above 1/2 by itself where examples are easy.

Design: one shadow model for each recipe and seed, trained for the first horizon only. Rejected:
scoring against 1/2 in place of the retrained model, which would call every easy example a leak.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from unroll import tree
from unroll.data.dataset import Dataset
from unroll.evaluation.penalties import Stage, accuracy_on, unlearn
from unroll.metrics.correlation import Correlation, pearson, spearman
from unroll.metrics.privacy_risk import RiskHistograms, mean_privacy_risk, risk_histograms
from unroll.training.predict import predict
from unroll.training.run import train
from unroll.training.spec import TrainSpec

ORIGINAL, RETRAINED = "original", "retrained"


@dataclasses.dataclass(frozen=True)
class RiskRow:
    """The forget set as one model treats it. Measured fields are `None` if the run diverged.

    Attributes:
      dataset: name of the training set.
      model: call of the model.
      forget: call of the forget set.
      penalty: name of the penalty.
      strength: its weight.
      seed: training seed.
      horizon: `training` or `fine-tuning`.
      method: `original`, `retrained`, or the call of a method.
      forget_size: number of forgotten examples.
      accuracy: test accuracy of the original.
      displacement: `||w_t - w_0||` of the original.
      no_unlearning: `||w_t - w'_t||`.
      verification_error: distance of this model from the retrained one; 0 for itself.
      risk: mean privacy risk score of the forget set under this model, in [0, 1].
      gap: the same less that under the retrained model.
      note: why a number is missing.
    """

    dataset: str
    model: str
    forget: str
    penalty: str
    strength: float
    seed: int
    horizon: str
    method: str
    forget_size: int = 0
    accuracy: float | None = None
    displacement: float | None = None
    no_unlearning: float | None = None
    verification_error: float | None = None
    risk: float | None = None
    gap: float | None = None
    note: str | None = None

    @property
    def cell(self) -> tuple:
        """What its rows of all horizons and methods share."""
        return self.dataset, self.model, self.forget, self.penalty, self.strength, self.seed


def shadow_histograms(
    spec: TrainSpec,
    members: Dataset,
    nonmembers: Dataset,
    schedule: np.ndarray,
    seed: int,
    bins: int = 10,
) -> RiskHistograms:
    """Trains a shadow model on `members` and histograms both sides in evaluation mode.

    Args:
      spec: how the original is trained.
      members: examples that no other model sees.
      nonmembers: examples that neither the shadow nor the original is trained on.
      schedule: int32 `[T, B]` over the members.
      seed: of the shadow's key.
      bins: bins per class.

    Raises:
      DivergenceError: if the shadow model diverges.
    """
    state = train(spec, members, schedule, seed=seed).state
    sides = []
    for data in (members, nonmembers):
        sides += [predict(spec, state.params, state.model_state, data), data.labels]
    return risk_histograms(*sides, bins=bins)


def score(
    stage: Stage, test: Dataset, histograms: RiskHistograms, texts: Sequence[str]
) -> list[dict]:
    """The measured fields of the rows of one stage: original, retrained, then the methods."""
    run, twin = stage.run, stage.twin
    data = run.dataset.take(stage.forget)

    def risk(params, model_state) -> float:
        logits = predict(run.spec, params, model_state, data)
        return mean_privacy_risk(histograms, logits, data.labels)

    unlearned, note = unlearn(stage, texts)
    models = {ORIGINAL: run.state, RETRAINED: twin.state, **unlearned}
    target = risk(twin.state.params, twin.state.model_state)
    shared = dict(
        forget_size=len(stage.forget),
        accuracy=accuracy_on(run, test),
        displacement=tree.distance(run.state.params, run.snapshots[0].params),
        no_unlearning=tree.distance(run.state.params, twin.state.params),
    )
    rows = []
    for name, model in models.items():
        measured = {}
        if model is not None:
            own = risk(model.params, model.model_state)
            measured = dict(
                verification_error=tree.distance(model.params, twin.state.params),
                risk=own,
                gap=own - target,
            )
        rows.append(
            dict(method=name, note=note if name in unlearned else None, **shared, **measured)
        )
    return rows


BASELINES = ("verification_error", "no_unlearning", "displacement")
"""What the size of the gap is correlated with; the last two know nothing of the method."""


def gap_correlations(rows: Iterable[RiskRow]) -> dict[str, tuple[Correlation, Correlation]]:
    """Pearson and Spearman of `|gap|` with each of `BASELINES`, over penalties and seeds."""
    known = [row for row in rows if row.gap is not None]
    gaps = np.abs([row.gap for row in known])
    return {
        name: tuple(
            correlate(gaps, np.array([getattr(row, name) for row in known], np.float64))
            for correlate in (pearson, spearman)
        )
        for name in BASELINES
    }
