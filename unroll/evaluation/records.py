"""Flat result rows, one JSON object per line: the only thing that reports read.

A row is one number: a metric of one unlearned model, with everything that is needed to group it,
plot it, or throw it away. Rows are appended as soon as they exist, so a killed experiment keeps
what it measured.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unroll.calls import format_call
from unroll.errors import InputError

ORIGINAL = "original"
"""Method name of the do-nothing row."""
RETRAIN = "retrain"
"""Method name of the twin: same key, same schedule, the forget set at weight zero."""
NULL = "retrain_vs_retrain"
"""Method name of the null row: an independently retrained model judged as if it were unlearned."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One measured number.

    Attributes:
      experiment: name of the experiment (the config).
      dataset: name of the data set, with its sizes where it is a subset.
      model: name of the model.
      forget: what was forgotten, for example `random(fraction=0.01)`.
      forget_size: number of forgotten examples.
      method: registry name of the method; `original`, `retrain` and `retrain_vs_retrain` are the
        do-nothing row, the twin and the null row.
      hyperparameters: keyword arguments of the method.
      train_seed: seed of the original run (`retrain_vs_retrain`: of the coupled oracle).
      method_seed: seed of the method.
      metric: name of the metric, for example `relative_verification_error`.
      split: `forget`, `retain`, `test`, `train`, or `None` where there is none.
      value: the number. `None` where it is not defined, with the reason in `note`.
      oracle: what the value was compared with: `twin`, `independent`, or `None` for no comparison.
      at: position along the metric's axis (a step, a quantile), or `None` for a scalar metric.
      cost_ratio_gradients: example-gradient evaluations divided by those of retraining.
      cost_ratio_seconds: seconds without compilation divided by those of retraining.
      seconds: seconds without compilation.
      note: why a value is missing or to be read with care.
    """

    experiment: str
    dataset: str
    model: str
    forget: str
    forget_size: int
    method: str
    hyperparameters: dict[str, Any]
    train_seed: int
    method_seed: int
    metric: str
    split: str | None
    value: float | None
    oracle: str | None = None
    at: float | None = None
    cost_ratio_gradients: float | None = None
    cost_ratio_seconds: float | None = None
    seconds: float | None = None
    note: str | None = None

    def __post_init__(self):
        if self.value is not None and not math.isfinite(self.value):
            raise InputError(
                f"record {self.method}/{self.metric}/{self.split} has the value {self.value}; "
                "store None and say why in `note`"
            )

    @property
    def label(self) -> str:
        """Method with its hyper-parameters, for example `taylor(order=2)`."""
        return format_call(self.method, self.hyperparameters)


def append_records(path: str | os.PathLike, records: Iterable[Record]) -> None:
    """Appends rows to a JSON-lines file and flushes them to disk."""
    with open(path, "a", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(dataclasses.asdict(record), allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_records(path: str | os.PathLike) -> list[Record]:
    """Reads rows; a last line cut off by a kill is dropped, any other bad line is an error."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            records.append(Record(**json.loads(line)))
        except (json.JSONDecodeError, TypeError) as error:
            if number == len(lines):
                continue
            raise InputError(
                f"{path}:{number} is not a record ({error}); delete the line"
            ) from None
    return records
