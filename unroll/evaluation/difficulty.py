"""Forget sets that should be easy or hard: low, medium and high by memorization or entanglement.

Source: RUM (arXiv 2406.01257), which finds forget sets harder the more they are memorized, and the
more they are entangled with the retained ones in the features of the original model.

Design: a forget set of one level is a study of its own, with its own twin; the levels share
originals. Rejected: one forget set whose parts are judged apart; a method that unlearns all three
at once says nothing about what it would do to one.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from unroll.memorization.refinement import groups
from unroll.metrics.entanglement import entangled_groups, entanglement_score

AXES = ("memorization", "entanglement")
LEVELS = ("low", "medium", "high")


@dataclasses.dataclass(frozen=True)
class DifficultySet:
    """A forget set with its place on both axes.

    Attributes:
      axis: what it was chosen by, one of `AXES`.
      level: one of `LEVELS`.
      ids: ascending ids of the training set.
      memorization: mean memorization score of its examples.
      memorization_spread: their standard deviation.
      entanglement: entanglement score of the set against all other examples.
    """

    axis: str
    level: str
    ids: list[int]
    memorization: float
    memorization_spread: float
    entanglement: float

    @property
    def description(self) -> str:
        """What was forgotten, in words, as it appears in records."""
        return f"{self.level} {self.axis}"


def difficulty_sets(
    scores: np.ndarray,
    features: np.ndarray,
    size: int,
    *,
    mid_rule: str = "half",
    tie_seed: int = 0,
) -> list[DifficultySet]:
    """Six forget sets of one size: three by memorization, three by entanglement.

    Args:
      scores: `[N]` memorization scores, larger is more memorized.
      features: `[N, d]` penultimate features of an original model.
      size: of each set.
      mid_rule: of the medium memorized, see `unroll.memorization.refinement.groups`.
      tie_seed: likewise.

    Raises:
      InputError: if the training set is too small for three sets of that size.
    """
    chosen = {
        "memorization": groups(scores, size, mid_rule=mid_rule, tie_seed=tie_seed),
        "entanglement": [ids for ids, _ in entangled_groups(features, size)],
    }
    sets = []
    for axis, members in chosen.items():
        for level, ids in zip(LEVELS, members, strict=True):
            rest = np.delete(features, ids, axis=0)
            sets.append(
                DifficultySet(
                    axis=axis,
                    level=level,
                    ids=ids.tolist(),
                    memorization=float(np.mean(scores[ids])),
                    memorization_spread=float(np.std(scores[ids])),
                    entanglement=entanglement_score(rest, features[ids]),
                )
            )
    return sets
