"""Tug of war (Zhao et al., RUM, arXiv 2406.01257): closeness to retraining in three accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SPLITS = ("forget", "retain", "test")


def tow(
    accuracies: Mapping[str, float],
    oracle: Mapping[str, float],
    splits: Sequence[str] = SPLITS,
) -> float:
    """Product over forget, retain and test of `1 - |accuracy - oracle accuracy|`.

    Ideal: the null row's value, which is below 1 for independently retrained oracles.
    """
    product = 1.0
    for split in splits:
        product *= 1.0 - abs(accuracies[split] - oracle[split])
    return product


def tow_mia(
    accuracies: Mapping[str, float],
    efficacy: float,
    oracle: Mapping[str, float],
    oracle_efficacy: float,
) -> float:
    """As `tow`, with the efficacy of a membership attack in the place of the forget accuracy.

    Args:
      accuracies: of the model, on retain and test set.
      efficacy: share of the forget set that the attack takes for non-members, see
        `membership.confidence_attack`.
      oracle: accuracies of the retrained model.
      oracle_efficacy: that share for the retrained model.
    """
    rest = tow(accuracies, oracle, SPLITS[1:])
    return (1.0 - abs(efficacy - oracle_efficacy)) * rest
