"""The option `projection=` of the methods that train on: what it protects, costs and reports.

Design: one value for the case with and the case without a projection, so that a method has no
branches. Rejected: bases that are computed where the steps are taken; their cost belongs to the
method, that of the statistics to the preparation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from unroll.data.dataset import Dataset
from unroll.training.projection import Bases
from unroll.training.spec import TrainSpec
from unroll.types import TrainState
from unroll.unrolling.subspaces import Projection, Statistics, retained_bases


class Protection(NamedTuple):
    """What the steps must stay out of.

    Attributes:
      bases: by layer, or `None` where the steps may go anywhere.
      example_gradients: what it cost.
      note: JSON-able facts for the info of a method.
    """

    bases: Bases | None
    example_gradients: float
    note: dict[str, Any]


def protection(
    projection: Projection | None,
    statistics: Statistics | None,
    spec: TrainSpec,
    state: TrainState,
    forget: Dataset,
) -> Protection:
    """Bases of the retained inputs, by subtraction; nothing without a projection.

    Args:
      projection: rank rule and options, or `None`.
      statistics: of all that was learned, with the projection's options.
      spec: the model and its preprocessing.
      state: the original model.
      forget: the examples to forget.

    Raises:
      InputError: see `retained_bases`.
    """
    if projection is None:
        return Protection(None, 0.0, {})
    found = retained_bases(
        statistics, spec, state.params, state.model_state, forget, projection.rule
    )
    return Protection(found.bases, found.example_gradients, found.note)
