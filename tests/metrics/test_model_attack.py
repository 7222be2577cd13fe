"""The attack with many models, on answers whose distribution is known."""

import numpy as np
import pytest

import unroll
from unroll.metrics.model_attack import attack_features, attack_scores, train_attack

LABELS = np.arange(200) % 4


def answers(confidence, models, seed):
    """Logits with this much more on the label, and noise of standard deviation 1."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(models, len(LABELS), 4)) + confidence * np.eye(4)[LABELS]


def test_features_are_softmax_and_label():
    logits = np.log([[[0.1, 0.2, 0.3, 0.4]], [[0.7, 0.1, 0.1, 0.1]]])
    found = attack_features(logits, np.array([2]))
    np.testing.assert_allclose(found[0], [0.1, 0.2, 0.3, 0.4, 0, 0, 1, 0])
    np.testing.assert_allclose(found[1], [0.7, 0.1, 0.1, 0.1, 0, 0, 1, 0])


def test_what_answers_as_a_retrained_model_cannot_be_told_from_one():
    attack = train_attack(answers(3, 8, 0), answers(1, 8, 1), LABELS)
    retrained = answers(1, 4, 2)
    known = attack_scores(attack, answers(3, 4, 3), retrained, LABELS)
    forgotten = attack_scores(attack, answers(1, 4, 4), retrained, LABELS)
    overdone = attack_scores(attack, answers(-1, 4, 5), retrained, LABELS)
    # The log-odds of Gaussians 2 apart: AUC near 0.9; 800 against 800 answers know it to 0.02.
    assert known["roc_auc"] > 0.8 and known["pr_auc"] > 0.8
    assert forgotten["roc_auc"] == pytest.approx(0.5, abs=0.06)
    assert forgotten["pr_auc"] == pytest.approx(0.5, abs=0.06)
    assert overdone["roc_auc"] < 0.4


def test_other_numbers_of_models_are_refused():
    with pytest.raises(unroll.InputError, match="as many models of either kind"):
        train_attack(answers(3, 2, 0), answers(1, 3, 1), LABELS)
