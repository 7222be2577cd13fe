"""Memorization: exact scores, cheap proxies, and the refinement of a forget set by them.

`subsets` trains models on random subsets and `scores` makes exact scores of them; `proxies` has
what is cheaper; `refinement` cuts a forget set by any score and `rum` unlearns it part by part.
"""

from unroll.memorization.proxies import PROXIES, proxy
from unroll.memorization.refinement import forget_sets, groups, partition
from unroll.memorization.rum import rum
from unroll.memorization.scores import (
    MemorizationScores,
    exact_scores,
    influence,
    load_scores,
    memorization,
    released_scores,
    save_scores,
    scores_of,
)
from unroll.memorization.subject import Proxy, ProxyResult, Subject
from unroll.memorization.subsets import SubsetRecipe, train_on_subsets

__all__ = [
    "PROXIES",
    "MemorizationScores",
    "Proxy",
    "ProxyResult",
    "Subject",
    "SubsetRecipe",
    "exact_scores",
    "forget_sets",
    "groups",
    "influence",
    "load_scores",
    "memorization",
    "partition",
    "proxy",
    "released_scores",
    "rum",
    "save_scores",
    "scores_of",
    "train_on_subsets",
]
