"""Damage to what a server keeps, done to copies: each must be named, and nothing made worse.

A damage is done to a copy of a workdir; then the server is started on it. It must end with an error
of one line that says why, and leave the copy as it was. A damaged entry of the store is another
matter: it must be named too, and made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import stress_checks
from stress_process import Serving, is_one_line_error

from unroll.deletion import keys

# What may change: locks, whose files hold the name of the last process.
_UNCOUNTED = re.compile(r".*\.lock")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one attempt.

    Attributes:
      kind: what was tried.
      good: whether it was met as it should be.
      message: what the server said, or what was wrong.
    """

    kind: str
    good: bool
    message: str


@dataclasses.dataclass(frozen=True)
class Damage:
    """A damage to a workdir.

    Attributes:
      kind: its name.
      do: does it to a copy, `(workdir, generator)`.
      reason: regular expression for the error.
      arguments: further flags of the server, from the copy's path.
    """

    kind: str
    do: Callable[[Path, np.random.Generator], None]
    reason: str
    arguments: Callable[[Path], Sequence[str]] = lambda workdir: ()


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file of a folder by its relative path, but for locks."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if not _UNCOUNTED.fullmatch(path.name)
    }


def _judged(kind, reason, code, errors, before, after) -> Outcome:
    """Whether a start ended in the error that it should, and changed no file."""
    last = errors[-1] if errors else "no error"
    if code == 0 or not is_one_line_error(errors):
        return Outcome(kind, False, f"exit code {code}: {last}")
    if not re.search(reason, last):
        return Outcome(kind, False, f"another reason: {last}")
    changed = sorted(set(before.items()) ^ set(after.items()))
    if changed:
        return Outcome(kind, False, f"changed {changed[0][0]}; {last}")
    return Outcome(kind, True, last)


@contextlib.contextmanager
def _copied(serving: Serving) -> Iterator[Serving]:
    """A server on a copy of a workdir, which is removed afterwards."""
    folder = serving.workdir.with_name(f"{serving.workdir.name}-copy")
    shutil.rmtree(folder, ignore_errors=True)
    # A lock in the copy would name a process that never held it.
    shutil.copytree(serving.workdir, folder, ignore=shutil.ignore_patterns("*.lock"))
    try:
        yield serving.changed(f"--config.requests={folder / 'requests.jsonl'}", workdir=folder)
    finally:
        shutil.rmtree(folder)


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def _edit(name: str, change: Callable[[list[bytes], np.random.Generator], list[bytes]]):
    def do(workdir: Path, generator: np.random.Generator) -> None:
        path = workdir / name
        path.write_bytes(b"".join(change(_lines(path), generator)))

    return do


def _without_tail(lines: list[bytes], generator: np.random.Generator) -> list[bytes]:
    return lines[: int(generator.integers(1, len(lines)))]


def _without_end(lines: list[bytes], generator: np.random.Generator) -> list[bytes]:
    place = int(generator.integers(1, len(lines)))
    return [*lines[:place], lines[place][: len(lines[place]) // 2]]


def _without_one(lines: list[bytes], generator: np.random.Generator) -> list[bytes]:
    place = int(generator.integers(1, len(lines) - 1))
    return lines[:place] + lines[place + 1 :]


def _exchanged(lines: list[bytes], generator: np.random.Generator) -> list[bytes]:
    place = int(generator.integers(1, len(lines) - 1))
    return [*lines[:place], lines[place + 1], lines[place], *lines[place + 2 :]]


def _repeated(lines: list[bytes], generator: np.random.Generator) -> list[bytes]:
    place = int(generator.integers(1, len(lines)))
    return [*lines[:place], *lines[place - 1 :]]


def _changed_byte(lines: list[bytes], generator: np.random.Generator) -> list[bytes]:
    place = int(generator.integers(len(lines)))
    line = bytearray(lines[place])
    # Never the end of the line, which would be two records in one.
    where = int(generator.integers(len(line) - 1))
    line[where] ^= 1 << int(generator.integers(7))
    return [*lines[:place], bytes(line), *lines[place + 1 :]]


def _removed(name: str):
    return lambda workdir, generator: (workdir / name).unlink()


def _consumed_line(workdir: Path, generator: np.random.Generator) -> None:
    """Changes an id in a request that was served."""
    path = workdir / "requests.jsonl"
    lines = path.read_bytes().split(b"\n")
    consumed = len(stress_checks.fates(stress_checks.read_journal(workdir / "journal.jsonl")))
    places = [n for n in range(consumed) if re.search(rb'"delete": ?\[\d+\]', lines[n])]
    place = places[int(generator.integers(len(places)))]
    lines[place] = re.sub(rb"\[(\d)", rb"[9\1", lines[place], count=1)
    path.write_bytes(b"\n".join(lines))


def _fewer_requests(workdir: Path, generator: np.random.Generator) -> None:
    path = workdir / "requests.jsonl"
    consumed = len(stress_checks.fates(stress_checks.read_journal(workdir / "journal.jsonl")))
    path.write_bytes(b"".join(_lines(path)[: consumed - 1]))


def _new_keys(workdir: Path) -> Sequence[str]:
    folder = workdir.with_name("other-keys")
    shutil.rmtree(folder, ignore_errors=True)
    keys.create_keys(folder)
    return (f"--config.key_folder={folder}",)


def _new_request_key(workdir: Path) -> Sequence[str]:
    path = workdir.with_name("other-request.key")
    path.write_text("another key, long enough, for requests")
    return (f"--config.request_key={path}",)


def _nothing(workdir: Path, generator: np.random.Generator) -> None:
    del workdir, generator


_JOURNAL, _LEDGER = "journal.jsonl", "ledger/ledger.jsonl"
_DAMAGED = "record .* (cannot be read|was changed|does not)|was cut|is not of"

DAMAGES = (
    Damage("journal: a changed bit", _edit(_JOURNAL, _changed_byte), _DAMAGED),
    Damage("journal: last records cut off", _edit(_JOURNAL, _without_tail), "was cut"),
    Damage("journal: cut within a record", _edit(_JOURNAL, _without_end), "was cut"),
    Damage("journal: a record left out", _edit(_JOURNAL, _without_one), _DAMAGED),
    Damage("journal: records exchanged", _edit(_JOURNAL, _exchanged), _DAMAGED),
    Damage("journal: a record repeated", _edit(_JOURNAL, _repeated), _DAMAGED),
    Damage("journal: removed", _removed(_JOURNAL), "was cut"),
    Damage("journal: head removed", _removed(_JOURNAL + ".head"), "is missing beside"),
    Damage("requests: a served line changed", _consumed_line, "is not the one that was served"),
    Damage("requests: served lines cut off", _fewer_requests, "is missing|is not the one"),
    Damage("requests: another key", _nothing, "key", _new_request_key),
    Damage("ledger: a changed bit", _edit(_LEDGER, _changed_byte), "does not verify"),
    Damage("ledger: last entries cut off", _edit(_LEDGER, _without_tail), "are not the same"),
    Damage("ledger: another key", _nothing, "does not verify|does not belong", _new_keys),
)
EARLIER_CLOCK, TWO_SERVERS = "ledger: the clock goes back", "two servers at once"
STORE = "store: a truncated file", "store: a changed bit", "store: a removed file"
ON_THE_WAY = EARLIER_CLOCK, TWO_SERVERS
"""What needs a server that still has something to do."""
REPEATED = "journal: a changed bit", "requests: a served line changed", "ledger: a changed bit"
"""What is tried at several places."""
KINDS = (*(damage.kind for damage in DAMAGES), EARLIER_CLOCK, TWO_SERVERS, *STORE)


def attempt(kind: str, serving: Serving, seed: Sequence[int]) -> Outcome:
    """Tries one of `KINDS` on copies.

    Args:
      kind: which.
      serving: a server that was killed or has ended; of its directory nothing is changed.
      seed: of the place of the damage.
    """
    generator = np.random.default_rng([*seed, KINDS.index(kind)])
    if kind in STORE:
        return _damaged_store(kind, serving, generator)
    with _copied(serving) as copy:
        if kind == TWO_SERVERS:
            return _two_servers(copy)
        if kind == EARLIER_CLOCK:
            return _earlier_clock(copy)
        damage = next(each for each in DAMAGES if each.kind == kind)
        damage.do(copy.workdir, generator)
        before = contents(copy.workdir)
        code, errors = copy.changed(*damage.arguments(copy.workdir)).run()
        return _judged(kind, damage.reason, code, errors, before, contents(copy.workdir))


def _two_servers(copy: Serving) -> Outcome:
    """The first one is stopped (SIGSTOP) as long as the second one tries."""
    lock = copy.journal.with_name(copy.journal.name + ".lock")
    first = copy.start()
    while first.running and not (lock.exists() and lock.read_bytes()):
        time.sleep(0.01)
    first.send(signal.SIGSTOP)
    before = contents(copy.workdir)
    code, errors = copy.run()
    after = contents(copy.workdir)
    first.kill()
    return _judged(TWO_SERVERS, "another server", code, errors, before, after)


def _earlier_clock(copy: Serving) -> Outcome:
    """Lines may be taken until the next deletion is to be logged; what was there must stay."""
    before, ledger = copy.journal.read_bytes(), copy.workdir / _LEDGER
    logged = ledger.read_bytes()
    code, errors = copy.run(earlier_clock=True)
    kept = copy.journal.read_bytes().startswith(before) and ledger.read_bytes() == logged
    changed = {} if kept else {"journal or ledger": "changed"}
    return _judged(EARLIER_CLOCK, "the clock went back", code, errors, {}, changed)


def _damaged_store(kind: str, serving: Serving, generator: np.random.Generator) -> Outcome:
    """Damages the newest entry; the server must name it, make it again and end with that model."""
    store = serving.workdir.with_name("store-copy")
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(serving.store, store, copy_function=os.link)
    manifest = max(store.rglob("manifest.json"), key=lambda path: path.stat().st_mtime_ns)
    expected = json.loads(manifest.read_text())["hash"]
    files = [path for path in (manifest.parent / "tree").rglob("*") if path.is_file()]
    _damage_file(kind, max(files, key=lambda path: path.stat().st_size), generator)
    with _copied(serving) as copy:
        code, errors = copy.changed(f"--store={store}").run()
        before, after = (
            stress_checks.last_model(stress_checks.read_journal(each.journal))
            for each in (serving, copy)
        )
    named = [line for line in errors if "is damaged" in line and manifest.parent.name in line]
    again = manifest.exists() and json.loads(manifest.read_text())["hash"] == expected
    shutil.rmtree(store)
    if code != 0 or not named or not again or before != after:
        last = errors[-1] if errors else "nothing said"
        return Outcome(kind, False, f"exit code {code}, made again: {again}; {last}")
    return Outcome(kind, True, named[0])


def _damage_file(kind: str, path: Path, generator: np.random.Generator) -> None:
    content = path.read_bytes()
    path.unlink()  # a new file: the old one is linked from the undamaged store
    if kind == STORE[0]:
        path.write_bytes(content[: len(content) // 2])
    elif kind == STORE[1]:
        place = int(generator.integers(len(content) // 4, 3 * len(content) // 4))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
