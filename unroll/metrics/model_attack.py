"""A membership attack with many models: was this answer given by a model that was retrained?

A classifier sees the softmax of one example together with its label, for examples of the forget set
only, and learns to tell models trained with the forget set (1) from models trained without it (0).
Models that it has not seen are then scored: those that were unlearned as 1, retrained ones as 0. At
0.5 nothing tells an unlearned model from a retrained one.

Source: the attack of Hoang et al. (arXiv 2312.04095) in their reference code; gradient-boosted
trees by scikit-learn in place of XGBoost. Rejected: a loss threshold between forget and test set of
one model (`membership.py`), which also sees the difference between the two sets.
"""

from __future__ import annotations

import numpy as np
from scipy.special import softmax
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import average_precision_score, roc_auc_score

from unroll.errors import InputError


def attack_features(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Softmax and one-hot label, `[models, n, C]` logits and int `[n]` to `[models * n, 2 C]`."""
    models, _, classes = logits.shape
    own = np.broadcast_to(np.eye(classes)[labels], logits.shape)
    return np.concatenate([softmax(logits, axis=-1), own], axis=-1).reshape(
        models * len(labels), -1
    )


def train_attack(
    with_logits: np.ndarray, without_logits: np.ndarray, labels: np.ndarray, seed: int = 0
) -> HistGradientBoostingClassifier:
    """Learns to tell the two kinds of models apart.

    Args:
      with_logits: `[models, n, C]` logits on the forget set of models trained with it.
      without_logits: `[models, n, C]` those of models trained without it, as many of them.
      labels: int `[n]` labels of the forget set.
      seed: of the classifier.

    Raises:
      InputError: if the shapes differ.
    """
    if with_logits.shape != without_logits.shape or with_logits.shape[1] != len(labels):
        raise InputError(
            f"logits of shapes {with_logits.shape} and {without_logits.shape} for {len(labels)} "
            "labels: give as many models of either kind, on the same examples"
        )
    members = np.repeat([1, 0], with_logits.shape[0] * len(labels))
    features = [attack_features(each, labels) for each in (with_logits, without_logits)]
    # Learning rate, depth and penalty of the reference.
    attack = HistGradientBoostingClassifier(
        learning_rate=0.2, max_depth=10, l2_regularization=10.0, random_state=seed
    )
    return attack.fit(np.concatenate(features), members)


def attack_scores(
    attack: HistGradientBoostingClassifier,
    logits: np.ndarray,
    without_logits: np.ndarray,
    labels: np.ndarray,
) -> dict[str, float]:
    """Areas under the ROC and the precision-recall curve, over examples of models not seen before.

    Args:
      attack: of `train_attack`.
      logits: `[models, n, C]` of the models in question.
      without_logits: `[models, n, C]` of retrained models, as many of them.
      labels: int `[n]`.

    Returns:
      `roc_auc` and `pr_auc`; both 0.5 where the two kinds answer alike.
    """
    given = [attack_features(each, labels) for each in (logits, without_logits)]
    members = np.repeat([1, 0], [len(each) for each in given])
    scores = attack.predict_proba(np.concatenate(given))[:, 1]
    return {
        "roc_auc": float(roc_auc_score(members, scores)),
        "pr_auc": float(average_precision_score(members, scores)),
    }
