"""Grids of experiments: one config, many cells.

A config with a grid has `variants`, a tuple of named recipes, each a tuple of (field, value) pairs,
and `axes`, a tuple of (field, values) pairs; its cells are all variants crossed with all axes. A
field may be nested: `optimizer.momentum`.

A grid writes rows that know some fields of a cell only; a cell is named by those.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from unroll.calls import format_call
from unroll.errors import InputError


def cells(config: ml_collections.ConfigDict) -> Iterator[ml_collections.ConfigDict]:
    """Yields one config for each cell, variants outermost.

    Raises:
      InputError: if a variant or an axis is no such tuple, names a field that the config does not
        have, or gives it a value of another type.
    """
    axes = _pairs("axes", config.axes)
    fields = [field for field, _ in axes]
    for field, values in axes:
        if not isinstance(values, tuple | list):
            raise InputError(f"the axis {field!r} needs a tuple of values; got {values!r}")
    for variant in (_pairs("a variant", variant) for variant in config.variants):
        for values in itertools.product(*(values for _, values in axes)):
            cell = config.copy_and_resolve_references()
            for field, value in (*variant, *zip(fields, values, strict=True)):
                _set(cell, field, value)
            yield cell


def _pairs(name: str, pairs: Any) -> Sequence[tuple[str, Any]]:
    good = isinstance(pairs, tuple | list) and all(
        isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)
        for pair in pairs
    )
    if not good:
        raise InputError(f"{name} of the grid must be a tuple of (field, ...) pairs; got {pairs!r}")
    return pairs


def _set(config: ml_collections.ConfigDict, field: str, value: Any) -> None:
    *path, name = field.split(".")
    place = config
    for part in path:
        place = place.get(part) if isinstance(place, ml_collections.ConfigDict) else None
    if not isinstance(place, ml_collections.ConfigDict) or name not in place:
        raise InputError(f"the grid sets {field!r}, which the config does not have")
    try:
        place[name] = value
    except (TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"the grid sets {field}={value!r}, which does not fit: {text}") from None


def refuse_equal_cells(places: Sequence[Mapping[str, Any]]) -> None:
    """Refuses cells that their rows cannot tell apart, which would pass for repetitions.

    Args:
      places: what a row knows of each cell, all for one seed.

    Raises:
      InputError: if two of them are equal.
    """
    if len({tuple(place.values()) for place in places}) < len(places):
        known = ", ".join(name for name in places[0] if name != "seed")
        raise InputError(
            "two cells of the grid are the same to a row, which knows their "
            f"{known}; vary other fields in a config of their own"
        )


def optimizer_text(config: ml_collections.ConfigDict) -> str:
    """The optimiser of a cell as a call, for example `sgd(learning_rate=0.05)`."""
    options = {
        key: value
        for key, value in config.optimizer.to_dict().items()
        if value not in (None, 0, 0.0, "constant") and key != "name"
    }
    return format_call(config.optimizer.name, options)
