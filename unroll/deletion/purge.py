"""Removing what carries forgotten examples from a store, and checking that nothing does.

Design: an entry's description goes last and its hashes are written first, so a purge that was
killed finds every half-removed entry again. Rejected: moving entries to a folder of their own
before they are removed, from which a kill would leave parameters that no walk over entries sees.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from unroll.checkpoint import Store
from unroll.data.ids import IdsLike
from unroll.deletion.lineage import Dependent, dependence_of, dependents, kind_of
from unroll.deletion.lineage_files import (
    DESCRIPTIONS,
    NOISE,
    PURGED,
    arrays_folder,
    entries,
    has_content,
    read_identity,
    read_json,
    read_lineage,
    write_json,
    write_lineage,
)
from unroll.errors import InputError, StoreError


def purge(
    store: Store,
    fingerprint: str,
    ids: IdsLike,
    *,
    folders: Iterable[str | os.PathLike] = (),
    keep_hashes: bool = True,
    dry_run: bool = True,
) -> list[Dependent]:
    """Removes what depends on any of the examples, and returns what it was.

    Of each removed entry a file `purged.json` stays with the content hashes of its states, so that
    what the ledger names can be told from what never existed; no array stays. The noise that
    constant work leaves goes without a trace. A purge that was interrupted is called again. The
    last run that can be replayed must be without the examples before (`retrain` or `replay`, stored
    and recorded), or there is none left.

    Args:
      store: the store.
      fingerprint: of the data set that the ids count in.
      ids: ids of forgotten examples.
      folders: further folders, as in `dependents`; everything in those that depend is removed.
      keep_hashes: leave `purged.json`.
      dry_run: only list; the default.

    Raises:
      InputError: if an id is negative, or a folder that is to be removed has no lineage or holds
        the store.
      StoreError: if something cannot be removed.
    """
    folders = list(folders)
    found = dependents(store, fingerprint, ids, folders=folders)
    if dry_run:
        return found
    for folder in folders:
        _check_removable(store, Path(folder))
    _settle(store)
    try:
        for each in found:
            _remove(each.path, keep_hashes)
        _collect_arrays(store)
    except OSError as error:
        raise StoreError(
            f"cannot purge {error.filename} ({error.strerror}); run it again"
        ) from None
    return found


def check_purged(
    store: Store, fingerprint: str, ids: IdsLike, *, folders: Iterable[str | os.PathLike] = ()
) -> list[Dependent]:
    """What is left that depends on any of the examples: an empty list is the proof.

    Every entry is walked and its dependence derived from what lies there now.
    """
    return dependents(store, fingerprint, ids, folders=folders)


def _check_removable(store: Store, folder: Path) -> None:
    """A folder was named by hand; one that nobody recorded may hold anything."""
    if store.root.is_relative_to(folder.resolve()):
        raise InputError(f"{folder} holds the store itself; name the folders of reports only")
    if has_content(folder) and read_lineage(folder.resolve()) is None:
        raise InputError(
            f"{folder} has no lineage.json; call record_folder for it, or remove it by hand"
        )


def _settle(store: Store) -> None:
    """Writes down the lineage of what is derived from another entry, which may go before it."""
    for path in entries(store.root):
        if not has_content(path) or read_lineage(path) is not None:
            continue
        identity = read_identity(path)
        if identity is not None and isinstance(identity.get("run"), str):
            known = dependence_of(store, path)
            write_lineage(path, kind_of(path), known.parts, {"every_slot": known.every_slot})


def _remove(path: Path, keep_hashes: bool) -> None:
    if path.is_file():
        path.unlink()
        return
    kind = kind_of(path)
    keep_hashes = keep_hashes and kind != NOISE  # no ledger names it
    if keep_hashes:
        write_json(path / PURGED, {"kind": kind, "states": _state_hashes(path)})
    # What describes the entry goes last: a half-removed one must still be known for what it is.
    children = sorted(path.iterdir(), key=lambda child: child.name in DESCRIPTIONS)
    for child in children:
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        elif child.name != PURGED or not keep_hashes:
            child.unlink()
    if not keep_hashes:
        path.rmdir()


def _state_hashes(path: Path) -> dict[str, str | None]:
    """Content hashes of the entry's states by step, those of a former purge too."""
    hashes = dict((read_json(path / PURGED) or {}).get("states", {}))
    for child in path.iterdir():
        if child.is_dir() and child.name.isdigit():
            manifest = read_json(child / "manifest.json") or {}
            hashes[child.name] = manifest.get("hash", hashes.get(child.name))
    return hashes


def _collect_arrays(store: Store) -> None:
    """Drops schedules and weights that no entry names any more."""
    named = set()
    for path in entries(store.root):
        identity = read_identity(path) or {}
        named |= {identity.get("schedule"), identity.get("weights")}
    folder = arrays_folder(store)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.stem not in named:
            path.unlink()
