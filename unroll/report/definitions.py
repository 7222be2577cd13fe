"""What each number in a report is, what it should be, and which way is better."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Definition:
    """One metric, in words.

    Attributes:
      title: short name for a column header.
      sentence: what the number is, in one sentence.
      ideal: the target; `retrain` means the value of the retrain row, whatever it is.
      direction: `lower`, `higher`, or `two-sided` (either side of the target is worse).
      signed: print the sign of positive values too.
    """

    title: str
    sentence: str
    ideal: str
    direction: str
    signed: bool = False


metric_definitions: dict[str, Definition] = {
    "relative_verification_error": Definition(
        "Relative verification error",
        "Distance between the parameters of the unlearned model and of the twin, divided by the "
        "no-unlearning distance (1 = did nothing, 0 = the retrained model).",
        ideal="0",
        direction="lower",
    ),
    "verification_error": Definition(
        "Verification error",
        "Euclidean distance between the parameters of the unlearned model and of the twin "
        "(same key, same schedule, forget set at weight zero).",
        ideal="0",
        direction="lower",
    ),
    "no_unlearning_distance": Definition(
        "No-unlearning distance",
        "Euclidean distance between the parameters of the original model and of the twin: "
        "the unit of the relative verification error.",
        ideal="a property of the problem, not a score",
        direction="two-sided",
    ),
    "cost_ratio_gradients": Definition(
        "Cost (gradients)",
        "Example-gradient evaluations divided by those of retraining.",
        ideal="as low as possible; retraining is 1",
        direction="lower",
    ),
    "cost_ratio_seconds": Definition(
        "Cost (seconds)",
        "Seconds without compilation divided by those of retraining on the same hardware.",
        ideal="as low as possible; retraining is 1",
        direction="lower",
    ),
    "accuracy": Definition(
        "Accuracy",
        "Share of the split that the model classifies correctly.",
        ideal="retrain",
        direction="two-sided",
    ),
    "loss": Definition(
        "Loss",
        "Mean loss per example of the split.",
        ideal="retrain",
        direction="two-sided",
    ),
    "accuracy_gap": Definition(
        "Accuracy gap",
        "Accuracy of the unlearned model minus accuracy of the oracle; below zero on the forget "
        "set is over-forgetting.",
        ideal="0",
        direction="two-sided",
        signed=True,
    ),
    "loss_gap": Definition(
        "Loss gap",
        "Mean loss of the unlearned model minus mean loss of the oracle; above zero on the forget "
        "set is over-forgetting.",
        ideal="0",
        direction="two-sided",
        signed=True,
    ),
    "tow": Definition(
        "ToW",
        "Tug-of-war: product over forget, retain and test set of 1 - |accuracy gap to the oracle|.",
        ideal="the null row (1 is out of reach between independent models)",
        direction="higher",
    ),
    "tow_mia": Definition(
        "ToW-MIA",
        "As ToW, with the attack efficacy in the place of the accuracy on the forget set.",
        ideal="the null row (1 is out of reach between independent models)",
        direction="higher",
    ),
    "js_divergence": Definition(
        "JS divergence",
        "Jensen-Shannon divergence between the predictions of the unlearned model and of the "
        "oracle, in nats, averaged over examples (at most 0.693).",
        ideal="the null row (0 only for the oracle itself)",
        direction="lower",
    ),
    "activation_distance_l2": Definition(
        "Activation distance",
        "Euclidean distance between the probabilities of the unlearned model and of the oracle, "
        "averaged over examples (at most 1.414).",
        ideal="the null row (0 only for the oracle itself)",
        direction="lower",
    ),
    "mia": Definition(
        "MIA AUC",
        "Area under the curve of an attack that thresholds the loss to tell forget from test "
        "examples; a smoke test, not a proof of forgetting.",
        ideal="retrain",
        direction="two-sided",
    ),
    "attack_efficacy": Definition(
        "Attack efficacy",
        "Share of the forget set that a classifier of the confidence, told retained from test "
        "examples, takes for non-members; a population attack, not a proof of forgetting.",
        ideal="retrain",
        direction="two-sided",
    ),
    "attack_accuracy": Definition(
        "Attack accuracy",
        "Balanced accuracy of that classifier on retained and test examples that it has not "
        "learned from (0.5 = it knows nothing, and its efficacy says nothing).",
        ideal="retrain",
        direction="two-sided",
    ),
    "privacy_risk": Definition(
        "Privacy risk",
        "Mean probability, at even odds, that a forget example was a member, judged by its "
        "modified entropy against shadow models (Song and Mittal; 0.5 = no information); a "
        "population attack, not a proof of forgetting.",
        ideal="retrain",
        direction="two-sided",
    ),
    "training_loss": Definition(
        "Training loss",
        "Mean loss of the training batch at a step.",
        ideal="a property of the problem, not a score",
        direction="two-sided",
    ),
    "true_class_probability": Definition(
        "True-class probability",
        "Quantiles over the examples of the split of the probability given to the true class.",
        ideal="retrain",
        direction="two-sided",
    ),
    "output_entropy": Definition(
        "Output entropy",
        "Quantiles over the examples of the split of the entropy of the output, in nats.",
        ideal="retrain",
        direction="two-sided",
    ),
}
"""Definitions by metric name, the two costs included. A metric that is not here is still listed."""


def define(metric: str) -> Definition:
    """Returns the definition of a metric, or a placeholder that says that there is none."""
    placeholder = Definition(
        metric.replace("_", " ").capitalize(),
        "No definition is registered in `unroll.report.definitions`.",
        ideal="not stated",
        direction="not stated",
    )
    return metric_definitions.get(metric, placeholder)
