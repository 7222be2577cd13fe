"""Subspaces that the inputs of a model's layers span: captured, summed, subtracted, cut off.

`inputs` reads them off any linen model, `statistics` sums their second moments over a data set,
`spectrum` decides what of them is protected, `recorded` keeps them beside a run.
`unroll.training.projection` keeps updates out of them.
"""

from unroll.unrolling.subspaces.recorded import (
    Projection,
    Retained,
    parse_projection,
    record_statistics,
    retained_bases,
)
from unroll.unrolling.subspaces.spectrum import RankRule
from unroll.unrolling.subspaces.statistics import LayerOptions, Statistics, input_statistics

__all__ = [
    "LayerOptions",
    "Projection",
    "RankRule",
    "Retained",
    "Statistics",
    "input_statistics",
    "parse_projection",
    "record_statistics",
    "retained_bases",
]
