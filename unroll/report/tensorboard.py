"""TensorBoard scalars, where the extra `tensorboard` is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from unroll.evaluation.records import Record


def write_scalars(records: Iterable[Record], directory: Path) -> bool:
    """Writes curves over their axis and scalar metrics per training seed.

    Returns:
      Whether anything was written: without the package `tensorboardX` nothing is.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        return False
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(directory)) as writer:
        for record in records:
            if record.value is None:
                continue
            parts = (record.metric, record.oracle, record.split, record.label)
            tag = "/".join(part for part in parts if part)
            if record.metric == "training_loss":
                writer.add_scalar(f"{tag}/seed{record.train_seed}", record.value, int(record.at))
            elif record.at is None:
                writer.add_scalar(tag, record.value, record.train_seed)
    return True
