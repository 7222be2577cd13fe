"""Result rows of grid experiments: one JSON object per line, one dataclass per kind of row.

`evaluation.records.Record` is the row of a comparison of methods. Experiments over a grid (of
optimisers, fractions, penalties) have other coordinates; each has its own frozen dataclass, stored
here in the same way: appended as soon as it exists, so that a killed grid goes on where it was.

Rejected: squeezing the coordinates into the `experiment` field of a `Record`; a report would have
to take them apart again.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from unroll.errors import InputError

Row = TypeVar("Row")


def append_rows(path: str | os.PathLike, rows: Iterable[Any]) -> None:
    """Appends dataclass instances to a JSON-lines file and flushes them to disk.

    Raises:
      InputError: if a number is not finite; such a row has `None` and says why in its `note`.
    """
    rows = [dataclasses.asdict(row) for row in rows]
    for name, number in (pair for row in rows for pair in _numbers(row)):
        if not math.isfinite(number):
            raise InputError(f"{name}={number} in a row; store None and say why in `note`")
    with open(path, "a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every float of a row with its name, those of nested mappings too."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            yield prefix + key, value


def read_rows(path: str | os.PathLike, kind: type[Row]) -> list[Row]:
    """Reads rows of one kind; a last line cut off by a kill is dropped.

    Raises:
      InputError: on any other line that is not such a row.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            rows.append(kind(**json.loads(line)))
        except (json.JSONDecodeError, TypeError) as error:
            if number < len(lines):
                raise InputError(
                    f"{path}:{number} is not a row of this experiment ({error}); delete the file"
                ) from None
    return rows


def resume_rows(
    path: str | os.PathLike, kind: type[Row], group: Callable[[Row], Hashable], size: int
) -> list[Row]:
    """Reads the rows of a killed grid and drops those of groups that are not complete.

    Args:
      path: the file; it is rewritten without the rows that are dropped and without a line that
        was cut off, which the next row would be joined to.
      kind: dataclass of the rows.
      group: what a row belongs to, for example the coordinates of its cell.
      size: number of rows of a complete group.
    """
    rows = read_rows(path, kind)
    counts = collections.Counter(map(group, rows))
    kept = [row for row in rows if counts[group(row)] == size]
    if Path(path).exists():
        temporary = Path(path).with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        append_rows(temporary, kept)
        os.replace(temporary, path)
    return kept
