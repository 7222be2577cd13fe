"""A content-addressed store of training states. The only module that imports orbax.

An entry lies under the hash of everything that determines it, so the same model is never computed
twice, across methods, metrics and processes:

    <root>/<address>/identity.json          what the address is the hash of
    <root>/<address>/00000450/tree/         orbax checkpoint of step 450, or one file leaves.npz
    <root>/<address>/00000450/manifest.json content hash and metadata

An entry is written under a temporary name and renamed when it is complete; its content hash is
checked on reading. What is half-written is invisible, and what is corrupted is removed with a
warning and computed again.

Rejected: orbax's own step directories with its manager. They number steps of one run well, but
know no content hash, and "latest" is not a safe notion when several processes share a store.

In a job of several processes (`jax.distributed`) each stores by itself, without meeting the others,
so that any function of the library works there. Orbax does not let it (see `_save`).
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from unroll import tree
from unroll.errors import StoreError
from unroll.types import PyTree

logger = logging.getLogger(__name__)

FORMAT = 3
"""Version of what is stored and of how it is computed; part of every address.

Raise it with every change of the library after which an equal specification gives other bits.
"""

_LEAVES = "leaves.npz"


@dataclasses.dataclass(frozen=True)
class Store:
    """Checkpoints under one directory.

    Attributes:
      root: the directory; created when missing.
      progress_seconds: a run in progress saves its state at least this often. Only speed and the
        work lost in a kill depend on it, never a result.

    Raises:
      StoreError: if the directory cannot be created or written.
    """

    root: Path
    progress_seconds: float = 20.0

    def __post_init__(self):
        object.__setattr__(self, "root", Path(self.root).resolve())
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise StoreError(
                f"cannot write to {self.root} ({error.strerror}); choose another directory"
            ) from None

    def write(self, address: str, step: int, value: PyTree, metadata: dict[str, Any]) -> None:
        """Stores a tree of arrays as one complete entry, or nothing.

        Args:
          address: hash that identifies the computation.
          step: which of its states this is.
          value: tree of numpy or jax arrays.
          metadata: JSON-able facts to keep beside it (seconds, costs).

        Raises:
          StoreError: if the disk is full or cannot be written.
        """
        value = tree.to_host(value)
        target = self._path(address, step)
        size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(value))
        free = shutil.disk_usage(self.root).free
        if free < 2 * size + 2**20:
            raise StoreError(
                f"no space: {size / 2**20:.0f} MiB to store, {free / 2**20:.0f} MiB free under "
                f"{self.root}; free some space and start again, finished work is kept"
            )
        temporary = target.parent / f".{target.name}-{uuid.uuid4().hex}"
        manifest = {"format": FORMAT, "hash": tree.content_hash(value), "metadata": metadata}
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _save(temporary / "tree", value)
            (temporary / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
            self._publish(temporary, target)
        except OSError as error:
            raise StoreError(f"cannot store {target}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _publish(self, temporary: Path, target: Path) -> None:
        try:
            os.rename(temporary, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            # Another process finished the same entry first; addresses are content, so it is equal.

    def read(self, address: str, step: int, target: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """Reads an entry and its metadata; `None` if there is none that can be trusted.

        Args:
          address: hash that identifies the computation.
          step: which of its states.
          target: tree of arrays with the structure, shapes and dtypes that are expected.
        """
        path = self._path(address, step)
        if not path.exists():
            return None
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            value = tree.to_host(_load(path / "tree", tree.to_host(target)))
            if manifest["format"] != FORMAT:
                raise ValueError(f"format {manifest['format']} instead of {FORMAT}")
            if manifest["hash"] != tree.content_hash(value):
                raise ValueError("the content does not match its hash")
            return value, manifest["metadata"]
        except (MemoryError, PermissionError):
            raise  # says nothing about the entry
        except Exception as error:  # any other way of being unreadable is damage
            logger.warning(
                "stored entry %s is damaged (%s); it is removed and computed again",
                path,
                str(error).split("\n")[0],
            )
            shutil.rmtree(path, ignore_errors=True)
            return None

    def steps(self, address: str) -> list[int]:
        """Steps with a complete entry, ascending; damage shows only when an entry is read."""
        folder = self.root / address
        if not folder.is_dir():
            return []
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())

    def describe(self, address: str, identity: dict[str, Any]) -> None:
        """Writes down, once, what an address stands for."""
        path = self.root / address / "identity.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".identity-{uuid.uuid4().hex}")
            temporary.write_text(json.dumps(identity, indent=1, sort_keys=True), encoding="utf-8")
            os.replace(temporary, path)

    def discard(self, address: str, step: int) -> None:
        """Removes an entry that is no longer needed."""
        shutil.rmtree(self._path(address, step), ignore_errors=True)

    def _path(self, address: str, step: int) -> Path:
        return self.root / address / f"{step:08d}"


def _save(path: Path, value: PyTree) -> None:
    """Writes a tree of numpy arrays into a new directory."""
    if jax.process_count() == 1:
        ocp.save(path, value)
        return
    # Orbax (0.12.8) makes all processes of a job meet at every entry, in one directory, and lets
    # the first of them write. Entries of this store belong to single processes.
    path.mkdir(parents=True)
    np.savez(path / _LEAVES, *jax.tree.leaves(value))


def _load(path: Path, target: PyTree) -> PyTree:
    """Reads what `_save` wrote, in whatever kind of job."""
    leaves, structure = jax.tree.flatten(target)
    if (path / _LEAVES).exists():
        with np.load(path / _LEAVES) as file:
            stored = [file[f"arr_{number}"] for number in range(len(leaves))]
        # numpy does not know bfloat16 and returns its bits without a type.
        return structure.unflatten(
            array.view(leaf.dtype) if array.dtype.kind == "V" else array
            for array, leaf in zip(stored, leaves, strict=True)
        )
    context = ocp.Context()
    if jax.process_count() > 1:
        context.multiprocessing.primary_host = jax.process_index()
        context.multiprocessing.active_processes = {jax.process_index()}
    with context:
        return ocp.load(path, target)
