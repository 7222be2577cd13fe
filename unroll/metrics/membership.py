"""A loss-threshold membership attack on the forget set (Yeom et al. 2018).

Score: minus the cross-entropy, which is the log-confidence in the label. Members: the forget set;
non-members: the test set. It is one fixed attack on one model, a smoke test: population attacks
overestimate protection (arXiv 2403.01218). Where forget and test set differ in distribution the
retrained model's value is not 0.5, so the target is the retrained model's value.
"""

from __future__ import annotations

import numpy as np

from unroll.metrics.outputs import example_losses


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
