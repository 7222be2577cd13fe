"""The membership attack with many models, over folds of the models.

Design: models are split into folds; the attack of a fold learns from all models outside it and is
asked about those inside. The folds are the repetitions. Rejected: one split, as in the reference
code, which gives one number and no interval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from unroll.checks import whole_number
from unroll.errors import InputError
from unroll.evaluation.records import ORIGINAL, RETRAIN
from unroll.metrics.model_attack import attack_scores, train_attack


@dataclasses.dataclass(frozen=True)
class AttackRow:
    """The attack of one fold on the models of one kind.

    Attributes:
      target: `original`, `retrain`, or a method.
      fold: number of the fold.
      models: models of that kind in it.
      roc_auc: area under the ROC curve against retrained models; 0.5 is indistinguishable.
      pr_auc: area under the precision-recall curve.
    """

    target: str
    fold: int
    models: int
    roc_auc: float
    pr_auc: float


def attack_rows(
    original: np.ndarray,
    retrained: np.ndarray,
    unlearned: Mapping[str, np.ndarray],
    labels: np.ndarray,
    folds: int,
) -> list[AttackRow]:
    """Attacks every kind of model in every fold.

    Args:
      original: `[K, n, C]` logits on the forget set of models trained with it.
      retrained: `[2 K, n, C]` of models trained without it, all of other seeds. The second half is
        attacked as if it had been unlearned: the row `retrain`, which says what 0.5 looks like.
      unlearned: by method, `[K, n, C]` of what it makes of each original.
      labels: int `[n]`.
      folds: at least 2, at most K.

    Raises:
      InputError: on other shapes or a number of folds that does not fit.
    """
    count = len(original)
    whole_number("folds", folds)
    if not 2 <= folds <= count:
        raise InputError(f"folds={folds}: choose between 2 and the number of models, {count}")
    if len(retrained) != 2 * count or any(len(each) != count for each in unlearned.values()):
        raise InputError(f"{count} originals need 2 * {count} retrained and {count} unlearned ones")
    targets = {ORIGINAL: original, RETRAIN: retrained[count:], **unlearned}
    rows = []
    for fold, inside in enumerate(np.array_split(np.arange(count), folds)):
        outside = np.setdiff1d(np.arange(count), inside)
        attack = train_attack(original[outside], retrained[outside], labels, seed=fold)
        for target, logits in targets.items():
            found = attack_scores(attack, logits[inside], retrained[inside], labels)
            rows.append(AttackRow(target, fold, len(inside), **found))
    return rows
