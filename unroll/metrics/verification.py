"""Distances between parameters: the verification error (Thudi et al., arXiv 2109.13398).

    v = || w_unlearned - w_retrained ||_2

over all trainable parameters, flattened, in float64, not normalised. It means something only
between coupled models: same key, same schedule, same program. Two independently retrained models
are about as far apart as two unrelated ones, so the oracle here is always the twin. A small value
is an engineering result and no certificate: the same weights can come from other data (2110.11891).
"""

from __future__ import annotations

from unroll import tree
from unroll.errors import InputError
from unroll.types import Params


def verification_error(unlearned: Params, twin: Params) -> float:
    """Distance of the unlearned parameters from the twin's. Ideal 0; null floor 0 (same bits)."""
    return tree.distance(unlearned, twin)


def relative_verification_error(unlearned: Params, twin: Params, original: Params) -> float:
    """Verification error divided by the no-unlearning distance: 1 = did nothing, 0 = retrained.

    Raises:
      InputError: if original and twin are equal, so that there is nothing to unlearn.
    """
    scale = tree.distance(original, twin)
    if scale == 0:
        raise InputError(
            "the original and the retrained model are equal: nothing was forgotten, "
            "so the relative verification error is not defined"
        )
    return tree.distance(unlearned, twin) / scale
