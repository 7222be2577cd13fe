"""Membership attacks on the forget set that look at one model.

*A loss threshold* (Yeom et al. 2018). Score: minus the cross-entropy, which is the log-confidence
in the label. Members: the forget set; non-members: the test set. It is one fixed attack on one
model, a smoke test: population attacks overestimate protection (arXiv 2403.01218). Where forget and
test set differ in distribution the retrained model's value is not 0.5, so the target is the
retrained model's value.

*A classifier of the confidence* (RUM, arXiv 2406.01257): told retained from test examples apart by
the probability of their label, it is asked about the forgotten ones. Chosen: random members, one
half of them to learn from and the other to say how well it works. Rejected, as in the reference
code: the first members in the order of the data set, all of them to learn from.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from unroll.errors import InputError
from unroll.metrics.outputs import example_losses, true_class_probability


def loss_attack_auc(
    forget_logits: np.ndarray,
    forget_labels: np.ndarray,
    test_logits: np.ndarray,
    test_labels: np.ndarray,
) -> float:
    """AUC of telling forgotten from test examples by their loss. Target: the retrained model's."""
    from sklearn.metrics import roc_auc_score  # takes as long to import as all the rest of unroll

    scores = -np.concatenate(
        [example_losses(forget_logits, forget_labels), example_losses(test_logits, test_labels)]
    )
    members = np.concatenate([np.ones(len(forget_labels)), np.zeros(len(test_labels))])
    return float(roc_auc_score(members, scores))


class ConfidenceAttack(NamedTuple):
    """What the attack found.

    Attributes:
      efficacy: share of the forget set that it takes for non-members; the target is the retrained
        model's value, not 1.
      accuracy: its balanced accuracy on members and non-members that it has not learned from; 0.5
        is an attack that knows nothing, whose efficacy says nothing either.
    """

    efficacy: float
    accuracy: float


def confidence_attack(
    members: tuple[np.ndarray, np.ndarray],
    outsiders: tuple[np.ndarray, np.ndarray],
    forgotten: tuple[np.ndarray, np.ndarray],
) -> ConfidenceAttack:
    """A support-vector classifier on the probability of the label, as in RUM.

    Args:
      members: `[n, C]` logits and int `[n]` labels of examples that were trained on, in random
        order.
      outsiders: those of as many examples that were not, in random order.
      forgotten: those of the forget set.

    Raises:
      InputError: if there are fewer than 2 members, or not as many outsiders.
    """
    from sklearn.svm import SVC  # takes as long to import as all the rest of unroll

    count = len(members[1])
    if count < 2 or count != len(outsiders[1]):
        raise InputError(
            f"the confidence attack got {count} members and {len(outsiders[1])} non-members; give "
            "as many of one as of the other, two or more"
        )
    inside, outside, asked = (
        true_class_probability(*each)[:, None] for each in (members, outsiders, forgotten)
    )
    half = count // 2
    # Kernel and penalty of the reference code.
    attack = SVC(C=3.0, gamma="auto", kernel="rbf").fit(
        np.concatenate([inside[:half], outside[:half]]), np.repeat([1, 0], half)
    )
    right = attack.predict(inside[half:]).mean(), 1.0 - attack.predict(outside[half:]).mean()
    return ConfidenceAttack(
        efficacy=float(1.0 - attack.predict(asked).mean()), accuracy=float(np.mean(right))
    )
