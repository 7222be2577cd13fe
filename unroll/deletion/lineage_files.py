"""The files that lineage is kept in, beside and between the entries of a store.

    <root>/<address>/lineage.json        what the entry depends on, as bits, with a digest
    <root>/<address>/purged.json         what is left of a purged entry: hashes
    <root>/lineage/arrays/<hash>.npy     schedules and weights of runs, under their hashes

Design: a file that is damaged, or that belongs to another folder, reads like a missing one, and
what is missing counts as a dependence on everything. Rejected: an error; a purge would stop at the
first damaged entry, which is one that it should remove.
"""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from unroll.checkpoint import Store
from unroll.training.run import array_hash
from unroll.training.spec import description_hash

IDENTITY, LINEAGE, PURGED = "identity.json", "lineage.json", "purged.json"
DESCRIPTIONS = (IDENTITY, LINEAGE, PURGED)
NOISE = "noise"
"""The only key of the description of what constant work leaves, see `stages.store_noise`."""
_OWN_FOLDER, _UNFINISHED, _TEMPORARY = "lineage", "unfinished-", ".description-"


def entries(root: Path) -> Iterator[Path]:
    """Every folder of a store that may hold something, those of unfinished groups too."""
    for path in sorted(root.iterdir()):
        if path.name == _OWN_FOLDER or path.name.startswith(".probe-"):
            continue
        if path.name.startswith(_UNFINISHED) and path.is_dir():
            yield from entries(path)
        else:
            yield path


def has_content(path: Path) -> bool:
    """Whether more than descriptions is there, be it half-written."""
    if path.is_file():
        return True
    return path.is_dir() and any(
        child.name not in DESCRIPTIONS and not child.name.startswith(_TEMPORARY)
        for child in path.iterdir()
    )


def keep_array(store: Store, array: np.ndarray) -> None:
    """Stores a schedule or weights under the hash that the run's identity has."""
    path = _array_path(store, array_hash(array))
    if load_array(store, path.stem) is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.npy")
        np.save(temporary, array, allow_pickle=False)
        os.replace(temporary, path)


def load_array(store: Store, name: str) -> np.ndarray | None:
    """The array with a hash; `None` if it is not there or is another one."""
    try:
        array = np.load(_array_path(store, name), allow_pickle=False)
    except (OSError, ValueError, EOFError):  # missing or damaged
        return None
    return array if array_hash(array) == name else None


def _array_path(store: Store, name: str) -> Path:
    return arrays_folder(store) / f"{name}.npy"


def arrays_folder(store: Store) -> Path:
    """Where schedules and weights lie."""
    return store.root / _OWN_FOLDER / "arrays"


def write_lineage(
    folder: Path, kind: str, parts: dict[str, np.ndarray | None] | None, extra: dict | None = None
) -> None:
    """Writes `lineage.json`; `parts` as in `lineage.Dependence`."""
    value = {"every_slot": False, "initial": None, **(extra or {})}
    value |= {"kind": kind, "address": folder.name, "depends_on": encoded(parts)}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / LINEAGE, {**value, "digest": description_hash(value)})


def read_lineage(folder: Path) -> dict | None:
    """What `write_lineage` wrote for this folder; `None` if it is missing or damaged."""
    value = read_json(folder / LINEAGE)
    if value is None or value.pop("digest", None) != description_hash(value):
        return None
    return value if value.get("address") == folder.name else None


def read_identity(folder: Path) -> dict | None:
    """The identity of an entry; `None` if it is missing or not the one that the address is of."""
    value = read_json(folder / IDENTITY)
    return value if value is not None and description_hash(value) == folder.name else None


def read_json(path: Path) -> dict | None:
    """A JSON object; `None` if there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: dict) -> None:
    """Writes a JSON object, whole or not at all."""
    temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(value, sort_keys=True), encoding="utf-8")
    os.replace(temporary, path)


def encoded(parts: Mapping[str, np.ndarray | None] | None) -> dict[str, str | None] | None:
    """Ids as bits, which takes a byte for eight examples."""
    if parts is None:
        return None
    texts: dict[str, str | None] = {}
    for fingerprint, ids in parts.items():
        if ids is None:
            texts[fingerprint] = None
            continue
        bits = np.zeros(int(ids.max()) + 1 if len(ids) else 0, bool)
        bits[ids] = True
        texts[fingerprint] = base64.b64encode(np.packbits(bits).tobytes()).decode("ascii")
    return texts


def decoded(texts: dict[str, str | None] | None) -> dict[str, np.ndarray | None] | None:
    """The inverse of `encoded`."""
    if texts is None:
        return None
    parts: dict[str, np.ndarray | None] = {}
    for fingerprint, text in texts.items():
        if text is None:
            parts[fingerprint] = None
            continue
        bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8))
        parts[fingerprint] = np.flatnonzero(bits).astype(np.int64)
    return parts
