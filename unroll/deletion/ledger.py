"""An append-only log of runs and deletions, signed and chained: one line of JSON per entry.

Every entry carries the hash of the one before and an Ed25519 signature (RFC 8032) over its
canonical JSON form. `Ledger.verify` names each link that fails: a changed byte, a missing, replayed
or reordered entry, a wrong key, a clock that went back. Ids are listed as salted hashes only.

What such a record does not prove:

- That the logged model is the one that is served, or that no other copy of the forgotten examples
  exists. A dishonest provider can log an honest run and serve another model (arXiv 2408.00929).
- Anything about the parameters alone. The same parameters can come from other data too (arXiv
  2110.11891), so a proof is defined only at the level of the algorithm: this program, on this data,
  gives these bits.
- That near-duplicates of the forgotten examples are gone, or that tuning, early stopping or a
  pretrained part never saw them.
- That the end of the log is its end. A log that was cut after a whole entry is a valid shorter log.
  So publish `head()` where the writer cannot take it back, and verify with `expected_head`.
- The true time. The writer's clock is logged; the chain only fixes the order.

Side channels remain: the length of the log, its times, its metrics and free texts are open.
Whoever has salt or data can test a guess: an id, or a model retrained for it.

Design: one line is written by one call, and synced; a line without its end is what a kill leaves
and is no entry. Writers exclude each other by a lock of the operating system on `<path>.lock`,
which ends with its process; a lock file that lies around locks nothing. Rejected: a lock file
whose existence is the lock. A kill leaves it behind, and taking over what a dead process left is a
race of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unroll.deletion.entry import GENESIS, TIME, Entry, SignedEntry, parse_line
from unroll.errors import InputError, StoreError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A link of the chain that fails.

    Attributes:
      line: line of the log, from 1; 0 for the log as a whole.
      link: `unreadable line`, `changed bytes`, `wrong signature`, `broken chain`, `missing entry`,
        `replayed entry`, `out of order`, `clock goes back`, `half-written line` or `head`.
      message: what is wrong.
    """

    line: int
    link: str
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.link}: {self.message}"


class Ledger:
    """A log on disk and the public key that its entries are checked with.

    Made with `Ledger.open`. Nothing is kept in memory but what speeds up appending.
    """

    def __init__(self, path: Path, public_key: Any):
        self.path, self.public_key = path, public_key
        self._known: tuple[int, SignedEntry | None] | None = None

    @classmethod
    def open(cls, path: str | os.PathLike, public_key: Any) -> Ledger:
        """A ledger, which need not exist yet.

        Args:
          path: the file.
          public_key: from `keys.load_verifying_key`.

        Raises:
          InputError: if the path is a folder, or the key of another kind.
        """
        path = Path(path)
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the ledger's file")
        if not hasattr(public_key, "verify"):
            raise InputError("the ledger needs an Ed25519 public key; see load_verifying_key")
        return cls(path, public_key)

    def head(self) -> str:
        """Hash of the last entry; publish it, since a shortened log shows only against it.

        Raises:
          InputError: if the log does not verify.
        """
        entries = self.entries()
        return entries[-1].hash if entries else GENESIS

    def entries(self) -> list[SignedEntry]:
        """All entries, verified; a half-written last line is none.

        Raises:
          InputError: if the log does not verify.
        """
        entries, problems = self._check()
        problems = [problem for problem in problems if problem.link != "half-written line"]
        if problems:
            raise InputError(f"{self.path} does not verify: {problems[0]}")
        return entries

    def verify(self, *, expected_head: str | None = None) -> list[Problem]:
        """Every link that fails; an empty list if none does.

        Args:
          expected_head: a head that was published earlier. It must be in the log; the log may have
            grown since. Without it a log that lacks its last entries passes for a shorter one.
        """
        entries, problems = self._check()
        if expected_head not in (None, GENESIS, *(entry.hash for entry in entries)):
            message = (
                f"the published head {expected_head} is not in the log: it was cut or replaced"
            )
            problems.append(Problem(0, "head", message))
        return problems

    def append(
        self, entry: Entry, private_key: Any, *, now: datetime.datetime | None = None
    ) -> SignedEntry:
        """Signs an entry and writes it behind the last one; on return it is on the disk.

        What a kill left of a line is cut off first, with a warning: its `append` never returned.

        Args:
          entry: what to log.
          private_key: from `keys.load_signing_key`.
          now: the time, with its zone; by default the clock's.

        Raises:
          InputError: if the key is not the ledger's, the log does not verify, or the time lies
            before that of the last entry.
          StoreError: if another process is writing, or the disk is full.
        """
        if _raw(private_key.public_key()) != _raw(self.public_key):
            raise InputError(f"the private key does not belong to the public key of {self.path}")
        with self._writing():
            last = self._last()
            time = _utc(now)
            if last is not None and time < last.time:
                raise InputError(
                    f"the clock went back: it is {time}, but the last entry of {self.path} is of "
                    f"{last.time}; set the clock right"
                )
            index, previous = (0, GENESIS) if last is None else (last.index + 1, last.hash)
            signed = SignedEntry(entry, index, time, previous)
            signature = private_key.sign(signed.content).hex()
            signed = dataclasses.replace(signed, signature=signature)
            self._known = self._write(signed.line + b"\n"), signed
            return signed

    def _last(self) -> SignedEntry | None:
        """The last entry, after what is half-written was cut off; needs the lock."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if self._known is None or self._known[0] != size:
            self._repair()
            entries = self.entries()
            size = self.path.stat().st_size if self.path.exists() else 0
            self._known = size, (entries[-1] if entries else None)
        return self._known[1]

    def _repair(self) -> None:
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole == len(content):
            return
        logger.warning(
            "%s ends with a half-written line of %d bytes, which a kill left; it is cut off, "
            "the entry must be appended again",
            self.path,
            len(content) - whole,
        )
        with open(self.path, "r+b") as file:
            file.truncate(whole)
            os.fsync(file.fileno())

    def _write(self, line: bytes) -> int:
        """Appends a line and returns the size of the file."""
        is_new = not self.path.exists()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            before = os.fstat(descriptor).st_size
            try:
                if os.write(descriptor, line) != len(line):
                    raise OSError(None, "the disk took only a part")
                os.fsync(descriptor)
            except OSError as error:
                os.ftruncate(descriptor, before)
                raise StoreError(f"cannot append to {self.path} ({error.strerror})") from error
        finally:
            os.close(descriptor)
        if is_new:
            _sync_folder(self.path.parent)
        return before + len(line)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        import fcntl  # absent on Windows, where a ledger can still be verified

        path = self.path.with_name(self.path.name + ".lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+", encoding="utf-8")
        except OSError as error:
            raise StoreError(f"cannot write to {path} ({error.strerror})") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip() or "a process that has not said its name yet"
                raise StoreError(
                    f"{self.path} is being written by {owner}; wait for it or end it (the lock "
                    "ends with its process, the file needs no removal)"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def _check(self) -> tuple[list[SignedEntry], list[Problem]]:
        """All entries that can be read, and every link that fails."""
        content = self.path.read_bytes() if self.path.exists() else b""
        *lines, rest = content.split(b"\n")
        check = _Chain(self.public_key)
        for number, line in enumerate(lines, start=1):
            check.visit(number, line)
        if rest:
            message = f"{len(rest)} bytes without an end; the next append cuts them off"
            check.fail(len(lines) + 1, "half-written line", message)
        return check.entries, check.problems


class _Chain:
    """Walks along the lines of a log."""

    def __init__(self, public_key: Any):
        self.entries: list[SignedEntry] = []
        self.problems: list[Problem] = []
        self._public_key = public_key
        self._previous: str | None = GENESIS
        self._next, self._time = 0, ""
        self._seen: set[str] = set()

    def fail(self, line: int, link: str, message: str) -> None:
        self.problems.append(Problem(line, link, message))

    def visit(self, number: int, line: bytes) -> None:
        """Checks one line against what came before."""
        try:
            signed = parse_line(line)
        except InputError as error:
            self.fail(number, "unreadable line", str(error))
            self._previous = None  # its hash is unknown
            self._next += 1
            return
        if signed.line != line:
            self.fail(number, "changed bytes", "the line is not in its canonical form")
        if not _is_signed(signed, self._public_key):
            message = f"entry {signed.index} was changed, or signed with another key"
            self.fail(number, "wrong signature", message)
        self._check_place(number, signed)
        if self._previous is not None and signed.previous != self._previous:
            message = f"entry {signed.index} does not follow the entry before it"
            self.fail(number, "broken chain", message)
        if signed.time < self._time:
            message = f"entry {signed.index} is of {signed.time}, the one before of {self._time}"
            self.fail(number, "clock goes back", message)
        self._previous, self._time = signed.hash, signed.time
        self._seen.add(signed.hash)
        self.entries.append(signed)

    def _check_place(self, number: int, signed: SignedEntry) -> None:
        expected, index = self._next, signed.index
        if index > expected:
            gone = f"entry {expected}" + (f" to {index - 1}" if index - 1 > expected else "")
            self.fail(number, "missing entry", f"{gone} should stand before entry {index}")
        elif index < expected and signed.hash in self._seen:
            self.fail(number, "replayed entry", f"entry {index} stands here again")
        elif index < expected:
            self.fail(number, "out of order", f"entry {index} stands where {expected} should")
        self._next = max(expected, index + 1)


def _is_signed(signed: SignedEntry, public_key: Any) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        public_key.verify(bytes.fromhex(signed.signature), signed.content)
    except InvalidSignature:
        return False
    return True


def _raw(public_key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return public_key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _utc(now: datetime.datetime | None) -> str:
    now = datetime.datetime.now(datetime.UTC) if now is None else now
    if now.tzinfo is None:
        raise InputError("the time of an entry needs its zone; give datetime.now(datetime.UTC)")
    return now.astimezone(datetime.UTC).strftime(TIME)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
