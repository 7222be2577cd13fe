"""Folds of the membership attack."""

import numpy as np
import pytest

import unroll
from unroll.evaluation.attacks import attack_rows

LABELS = np.arange(120) % 3


def answers(confidence, models, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(models, len(LABELS), 3)) + confidence * np.eye(3)[LABELS]


def test_every_kind_of_model_in_every_fold():
    rows = attack_rows(
        answers(3, 5, 0), answers(0, 10, 1), {"finetune": answers(2, 5, 2)}, LABELS, folds=2
    )
    assert [(row.target, row.fold, row.models) for row in rows] == [
        (target, fold, models)
        for fold, models in ((0, 3), (1, 2))
        for target in ("original", "retrain", "finetune")
    ]
    values = {(row.target, row.fold): row.roc_auc for row in rows}
    for fold in (0, 1):
        # Other retrained models are at chance; 240 answers of either kind know it to 0.03.
        assert values["retrain", fold] == pytest.approx(0.5, abs=0.1)
        assert values["original", fold] > values["finetune", fold] > 0.6


@pytest.mark.parametrize(
    ("retrained", "folds", "message"),
    [(10, 1, "folds=1: choose"), (10, 6, "folds=6: choose"), (5, 2, "need 2 \\* 5 retrained")],
)
def test_what_does_not_fit_is_refused(retrained, folds, message):
    with pytest.raises(unroll.InputError, match=message):
        attack_rows(answers(3, 5, 0), answers(0, retrained, 1), {}, LABELS, folds)
