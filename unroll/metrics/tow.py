"""Tug of war (Zhao et al., RUM, arXiv 2406.01257): closeness to retraining in three accuracies."""

from __future__ import annotations

from collections.abc import Mapping

SPLITS = ("forget", "retain", "test")


def tow(accuracies: Mapping[str, float], oracle: Mapping[str, float]) -> float:
    """Product over forget, retain and test of `1 - |accuracy - oracle accuracy|`.

    Ideal: the null row's value, which is below 1 for independently retrained oracles.
    """
    product = 1.0
    for split in SPLITS:
        product *= 1.0 - abs(accuracies[split] - oracle[split])
    return product
