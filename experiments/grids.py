"""Grids of experiments: one config, many cells.

A config with a grid has `variants`, a tuple of named recipes, each a tuple of (field, value) pairs,
and `axes`, a tuple of (field, values) pairs; its cells are all variants crossed with all axes. A
field may be nested: `optimizer.momentum`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import ml_collections

from unroll.calls import format_call
from unroll.errors import InputError


def cells(config: ml_collections.ConfigDict) -> Iterator[ml_collections.ConfigDict]:
    """Yields one config for each cell, variants outermost.

    Raises:
      InputError: if a variant or an axis names a field that the config does not have.
    """
    fields = [field for field, _ in config.axes]
    for variant in config.variants:
        for values in itertools.product(*(values for _, values in config.axes)):
            cell = config.copy_and_resolve_references()
            for field, value in (*variant, *zip(fields, values, strict=True)):
                _set(cell, field, value)
            yield cell


def _set(config: ml_collections.ConfigDict, field: str, value) -> None:
    *path, name = field.split(".")
    place = config
    for part in path:
        place = place[part]
    if name not in place:
        raise InputError(f"the grid sets {field!r}, which the config does not have")
    place[name] = value


def optimizer_text(config: ml_collections.ConfigDict) -> str:
    """The optimiser of a cell as a call, for example `sgd(learning_rate=0.05)`."""
    options = {
        key: value
        for key, value in config.optimizer.to_dict().items()
        if value not in (None, 0, 0.0, "constant") and key != "name"
    }
    return format_call(config.optimizer.name, options)
