"""The journal of a server: what became of every line, on the disk before anybody is told.

    {"record": "begin", ...}                         what is served, and by which policy
    {"record": "accepted" | "answered" | "refused", "line": n, "sha256": ..., ...}
    {"record": "applied", "requests": [...], "how": ..., "model": ..., ...}

One JSON object per line. Each holds the hash of the one before (`previous`) and its own (`hash`),
so a changed, missing or moved record is found and named. Every line of input leaves exactly one
record of its fate; their number is how many lines were consumed. The journal names ids of deleted
examples and is not for publication; what is published is the ledger.

Order of what is made durable, and what a kill between two steps leaves:

1. the record is written and synced: before that it never happened, its line is read again, and
   what was half-written is cut off at opening;
2. `<journal>.head` is replaced by a file with the number of records and the last hash: before that
   it speaks of fewer records, which is allowed;
3. the caller learns of it.

So a journal that is *shorter* than its head was cut after it was acknowledged, which its own chain
could not show. Rejected: one database file instead (sqlite keeps the order by itself); a torn page
or a changed byte in it is found by nobody, and a journal is read by people.

A server holds a lock of the operating system on `<journal>.lock` as long as it lives; it ends with
its process, and a lock file that lies around locks nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from unroll.deletion.entry import GENESIS, canonical
from unroll.errors import InputError, StoreError

logger = logging.getLogger(__name__)

FORMAT = 1
FATES = ("accepted", "answered", "refused")
_ADVICE = "restore it from a copy, or serve all requests again in a new directory"


def line_hash(line: bytes) -> str:
    """SHA-256 of a line of input without its end, hex."""
    return hashlib.sha256(line).hexdigest()


class Journal:
    """A journal that is open for one server; made with `Journal.open`, also a context manager.

    Attributes:
      path: the file.
      records: all records, in their order.
      line_hashes: hash of every line of input that was consumed.
    """

    def __init__(self, path: Path, lock: BinaryIO):
        self.path, self._lock = path, lock
        self.records: list[dict[str, Any]] = []
        self.line_hashes: list[str] = []
        self._previous, self._descriptor = GENESIS, -1

    @classmethod
    def open(cls, path: str | os.PathLike) -> Journal:
        """Opens a journal, which need not exist yet, and keeps other servers out.

        What a kill left of a last record is cut off, with a warning: nobody was told of it.

        Raises:
          InputError: if another server is running, or the journal is damaged.
          StoreError: if it cannot be read or written.
        """
        path = Path(path)
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the journal's file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            journal = cls(path, _locked(path))
        except OSError as error:
            raise StoreError(f"cannot write to {path.parent} ({error.strerror})") from None
        try:
            journal._read()
        except BaseException:
            journal.close()
            raise
        return journal

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other servers in; nothing is written."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._lock.close()

    @property
    def lines(self) -> int:
        """Number of lines of input that were consumed."""
        return len(self.line_hashes)

    def begin(self, description: Mapping[str, Any]) -> None:
        """Writes down what is served, once; later it must be the same.

        Raises:
          InputError: if the journal is of something else.
        """
        if not self.records:
            self.append({"record": "begin", "format": FORMAT, "serves": dict(description)})
            return
        served = self.records[0]["serves"]
        here = json.loads(canonical(dict(description)))
        other = sorted(name for name in here | served if here.get(name) != served.get(name))
        if other:
            raise InputError(
                f"{self.path} is the journal of another server: {', '.join(other)} "
                f"{'differs' if len(other) == 1 else 'differ'}; go back to the same configuration "
                "and versions, or start in a new directory"
            )

    def verify_lines(self, lines: Iterable[bytes]) -> None:
        """Whether the lines that were consumed are still the first ones of the requests.

        Args:
          lines: without their ends, from the first on; no more are taken than were consumed.

        Raises:
          InputError: if one of them was changed, or is missing.
        """
        found = iter(lines)
        for number, expected in enumerate(self.line_hashes, start=1):
            line = next(found, None)
            if line is None or line_hash(line) != expected:
                what = "is missing" if line is None else "is not the one that was served"
                raise InputError(
                    f"line {number} of the requests {what}: {self.path} has consumed "
                    f"{self.lines} lines; restore the requests, or serve them in a new directory"
                )

    def append(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Writes a record behind the last one; on return it is on the disk.

        Raises:
          InputError: if the record has no JSON form.
          StoreError: if it cannot be written. Whether it is there shows when the journal is opened
            again, which is all that can then be done.
        """
        try:
            complete = _chained(record, self._previous)
        except (TypeError, ValueError) as error:
            raise InputError(f"a record of the journal cannot be written ({error})") from None
        data = canonical(complete) + b"\n"
        size = os.fstat(self._descriptor).st_size
        try:
            _write(self._descriptor, data)
            os.fsync(self._descriptor)
        except OSError as error:
            # Where even this fails, the half record is cut off at the next opening.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise StoreError(f"cannot append to {self.path} ({error.strerror})") from error
        self._remember(complete)
        self._write_head()
        return complete

    def _remember(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self._previous = record["hash"]
        if record["record"] in FATES:
            self.line_hashes.append(record["sha256"])

    @property
    def _head(self) -> Path:
        return self.path.with_name(self.path.name + ".head")

    def _write_head(self) -> None:
        text = json.dumps({"records": len(self.records), "hash": self._previous})
        temporary = self._head.with_name(f".{self._head.name}")  # one writer: the lock's holder
        try:
            with open(temporary, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._head)
        except OSError as error:
            raise StoreError(f"cannot write {self._head} ({error.strerror})") from error

    def _read(self) -> None:
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise StoreError(f"cannot read {self.path} ({error.strerror})") from None
        *lines, rest = content.split(b"\n")
        for number, line in enumerate(lines, start=1):
            self._remember(self._checked(number, line))
        self._check_head()
        # Only now, so that damage leaves everything as it was.
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise StoreError(f"cannot open {self.path} ({error.strerror})") from None
        # Also where a file is there: a kill may have come between its making and this.
        if not content:
            sync_folder(self.path.parent)
        if rest:
            logger.warning(
                "%s ends with a half-written record of %d bytes, which a kill left; it is cut off",
                self.path,
                len(rest),
            )
            os.ftruncate(self._descriptor, len(content) - len(rest))
            os.fsync(self._descriptor)

    def _checked(self, number: int, line: bytes) -> dict[str, Any]:
        """A record, if it is the one that was written at this place."""

        def damaged(what: str) -> InputError:
            return InputError(f"{self.path}: record {number} {what}; {_ADVICE}")

        try:
            record = json.loads(line)
            content = {name: value for name, value in record.items() if name != "hash"}
            previous = record["previous"]
            intact = record == _chained(content, previous) and line == canonical(record)
            said = [record["record"], *([record["sha256"]] if record["record"] in FATES else [])]
            if not all(isinstance(each, str) for each in said):
                raise TypeError("not texts")
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
            raise damaged("cannot be read") from None
        if not intact:
            raise damaged("was changed")
        if previous != self._previous:
            raise damaged("does not follow the one before it: records are missing or moved")
        if (record["record"] == "begin") != (number == 1):
            raise damaged("does not belong there")
        if number == 1 and record.get("format") != FORMAT:
            raise damaged(f"is of format {record.get('format')}, not {FORMAT}")
        return record

    def _check_head(self) -> None:
        """A head that speaks of more than is there, or of something else, shows a cut journal."""
        try:
            head = json.loads(self._head.read_text(encoding="ascii"))
            count, found = int(head["records"]), head["hash"]
        except FileNotFoundError:
            if len(self.records) <= 1:  # killed before the first head was written
                return
            raise InputError(f"{self._head} is missing beside {self.path}; {_ADVICE}") from None
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{self._head} cannot be read; {_ADVICE}") from None
        if count > len(self.records):
            raise InputError(
                f"{self.path} was cut: it has {len(self.records)} records of {count}; {_ADVICE}"
            )
        if count < 1 or self.records[count - 1]["hash"] != found:
            raise InputError(f"{self._head} is not of {self.path}; {_ADVICE}")


def _chained(record: Mapping[str, Any], previous: str) -> dict[str, Any]:
    content = {**record, "previous": previous}
    return {**content, "hash": hashlib.sha256(canonical(content)).hexdigest()}


def _write(descriptor: int, data: bytes) -> None:
    if os.write(descriptor, data) != len(data):
        raise OSError(None, "the disk took only a part")


def _locked(path: Path) -> BinaryIO:
    import fcntl  # absent on Windows, where no server runs

    lock = path.with_name(path.name + ".lock")
    file = open(lock, "a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().decode("ascii", "replace").strip() or "a process without a name yet"
        file.close()
        raise InputError(
            f"another server ({owner}) holds {path}; wait for it or end it (the lock ends with its "
            "process, the file needs no removal)"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()}".encode("ascii"))
    file.flush()
    return file


def sync_folder(folder: Path) -> None:
    """Puts the names of a folder's files on the disk, as `os.fsync` does with their content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
