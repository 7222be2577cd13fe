"""The directory of one experiment: config, records, report and figures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import ml_collections

from unroll.checkpoint import FORMAT
from unroll.errors import InputError, StoreError


def default_workdir(config_argument: str) -> Path:
    """`runs/<config name>`, with `-<variant>` for a config called with an argument.

    >>> str(default_workdir("configs/digits.py:smoke"))
    'runs/digits-smoke'
    """
    path, _, variant = config_argument.partition(":")
    return Path("runs") / (Path(path).stem + (f"-{variant}" if variant else ""))


def prepare(workdir: Path, config: ml_collections.ConfigDict) -> Path:
    """Creates the directory, writes `config.json` and sets earlier records aside.

    Rows of a grid are kept, so the file also says which `unroll.checkpoint.FORMAT` they are of.

    Raises:
      InputError: if the directory belongs to another config, or to code with other results.
      StoreError: if it cannot be written.
    """
    fields = json.loads(config.to_json_best_effort())
    text = json.dumps({**fields, "format": FORMAT}, indent=1, sort_keys=True)
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise InputError(
                f"{workdir} holds the results of another config or of an earlier version of the "
                "library; choose another --workdir or delete it (stored models are kept "
                "elsewhere, in --store)"
            )
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
        records = workdir / "records.jsonl"
        if records.exists():
            os.replace(records, workdir / "records-previous.jsonl")
    except OSError as error:
        raise StoreError(
            f"cannot write to {workdir} ({error.strerror}); choose another --workdir"
        ) from None
    return workdir
