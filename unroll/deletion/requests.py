"""Deletion requests as lines of text, and what may be asked of a model in its present state.

    {"request": "r-000001", "time": 12.5, "delete": [17, 4]}
    {"request": "r-000002", "time": 13.0, "predict": [0, 5]}    ids of the test set
    {"request": "r-000003", "time": 13.0, "status": [17]}

One JSON object per line, UTF-8, at most 1 MiB. `time` is seconds since the start of the stream. An
optional `mac` is the HMAC-SHA256, in hex, of the line's canonical form without it: sorted names, no
spaces, ASCII. A server with a key demands it; one without a key looks at its form only, so there it
proves nothing.

What does not have this form exactly is refused with one line that says what to do. A field too many
or twice may mean that the sender meant something else, and a deletion cannot be taken back.

Design: `parse_request` knows the line alone, `Register` what came before it, so each refusal has
one place. Rejected: a schema checked by a library; it says which rule failed, not what to do, and
duplicate names, huge numbers and NaN are gone before it sees the object.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import itertools
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from unroll.checks import whole_number
from unroll.deletion.journal import sync_folder
from unroll.errors import InputError, StoreError

LONGEST_LINE = 2**20
"""Bytes of the longest line that is read, its end not counted."""

KINDS = ("delete", "predict", "status")
_NAME, _MAC = re.compile(r"[\x20-\x7e]{1,128}"), re.compile("[0-9a-f]{64}")
_FIELDS = frozenset({"request", "time", "mac", *KINDS})


@dataclasses.dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
      name: 1 to 128 printable ASCII characters.
      time: seconds since the start of the stream.
      kind: `delete`, `predict` or `status`.
      ids: different ids, of training examples; of test examples for `predict`.
    """

    name: str
    time: float
    kind: str
    ids: tuple[int, ...]


def parse_request(line: bytes, *, key: bytes | None = None) -> Request:
    """Reads one line.

    Args:
      line: without its end.
      key: of the mac that is demanded; `None` demands none.

    Raises:
      InputError: if it is anything but one request.
    """
    fields = _read_object(line)
    unknown = sorted(set(fields) - _FIELDS)
    if unknown:
        raise InputError(f"unknown field {_shown(unknown[0])}; leave it out")
    kinds = [kind for kind in KINDS if kind in fields]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none"
        raise InputError(f"give exactly one of delete, predict and status; found {found}")
    for name in ("request", "time"):
        if name not in fields:
            raise InputError(f"the field {name!r} is missing; add it")
    (kind,) = kinds
    request = Request(
        _read_name(fields["request"]), _read_time(fields["time"]), kind, _read_ids(fields[kind])
    )
    _check_mac(fields, key)
    return request


def format_request(request: Request, key: bytes | None = None) -> str:
    """The line of a request, without its end; with a key it gets its mac.

    >>> format_request(Request("r-1", 12.5, "delete", (17, 4)))
    '{"delete":[17,4],"request":"r-1","time":12.5}'
    """
    fields: dict[str, Any] = {"request": request.name, "time": request.time}
    fields[request.kind] = list(request.ids)
    if key is not None:
        fields["mac"] = _mac(fields, key)
    return _canonical(fields).decode("ascii")


def _read_object(line: bytes) -> dict[str, Any]:
    if len(line) > LONGEST_LINE:
        raise InputError(f"the line is longer than {LONGEST_LINE} bytes; split the request")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"byte {error.start} is not UTF-8; write the line in UTF-8") from None
    if "\n" in text or not text.strip():
        raise InputError("this is no line with one JSON object; write one request per line")
    try:
        value = json.loads(text, object_pairs_hook=_different_names, parse_constant=_no_constant)
    except InputError:
        raise
    except RecursionError:
        raise InputError("the line is nested too deeply; write one flat JSON object") from None
    except ValueError as error:  # a number of thousands of digits is one too
        reason = str(error).split(";")[0]
        raise InputError(f"this is no JSON ({reason}); write one JSON object per line") from None
    if not isinstance(value, dict):
        raise InputError("this is no JSON object; write {...} with the fields of a request")
    return value


def _different_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise InputError(f"the field {_shown(twice)} occurs twice; give it once")
    return fields


def _no_constant(text: str) -> None:
    raise InputError(f"{text} is no number that a request can have; give a finite one")


def _read_name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InputError(
            f"request={_shown(value)} is no name; give 1 to 128 printable ASCII characters"
        )
    return value


def _read_time(value: Any) -> float:
    if type(value) in (int, float):
        try:
            seconds = float(value)
        except OverflowError:
            seconds = math.inf
        if 0 <= seconds < math.inf:
            return seconds + 0.0  # -0.0 becomes 0.0
    raise InputError(f"time={_shown(value)} is no time; give finite seconds, 0 or more")


def _read_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{_shown(value)} is no list of ids; give one id or more, as in [17, 4]")
    for each in value:
        if type(each) is not int or each < 0:
            raise InputError(f"{_shown(each)} is no id; ids are whole numbers from 0")
    # Not by a set: a stranger can choose numbers of equal hash, which all meet in one place of it.
    for one, following in itertools.pairwise(sorted(value)):
        if one == following:
            raise InputError(f"id {_shown(one)} occurs twice; give each id once")
    return tuple(value)


def _check_mac(fields: dict[str, Any], key: bytes | None) -> None:
    found = fields.get("mac")
    if "mac" in fields and not (isinstance(found, str) and _MAC.fullmatch(found)):
        raise InputError(
            "the mac is not 64 hex digits in lower case; give the HMAC-SHA256 of the line"
        )
    if key is None:
        return
    if "mac" not in fields:
        raise InputError("the mac is missing; sign the request with the key of this server")
    if not hmac.compare_digest(found, _mac(fields, key)):
        raise InputError("the mac is wrong; sign this very request with the key of this server")


def _mac(fields: dict[str, Any], key: bytes) -> str:
    signed = {name: value for name, value in fields.items() if name != "mac"}
    return hmac.new(key, _canonical(signed), hashlib.sha256).hexdigest()


def _canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _shown(value: Any) -> str:
    """A value of a stranger in one short line of ASCII."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # a number of too many digits, or lists too deep
        return "something huge"
    return text if len(text) <= 60 else text[:57] + "..."


class Register:
    """What was taken so far: the names, the clock, and where each example stands.

    An example is present, `waiting` (asked for, nothing done yet), `approximated` (an approximate
    method took it back, the exact deletion is due) or `deleted` (exactly).

    Attributes:
      examples: size of the training set.
      test_examples: size of the test set.
      clock: time of the last request that was taken.
      names: of all requests that were taken.
      waiting: deletions that wait, in the order of their arrival.
      approximated: deletions that are approximate so far.
      deleted: ids that are gone, exactly.

    Raises:
      InputError: if the sizes are no whole numbers.
    """

    def __init__(self, examples: int, test_examples: int = 0):
        self.examples = whole_number("examples", examples)
        self.test_examples = whole_number("test_examples", test_examples, least=0)
        self.clock = 0.0
        self.names: set[str] = set()
        self.waiting: list[Request] = []
        self.approximated: list[Request] = []
        self.deleted: set[int] = set()
        self._state: dict[int, str] = {}  # of every id that is not present

    def status(self, example: int) -> str:
        """`present`, `waiting`, `approximated` or `deleted`."""
        return self._state.get(example, "present")

    def check(self, request: Request) -> None:
        """Whether a request may be taken; changes nothing.

        Raises:
          InputError: if its name was taken before (a replay), its time lies before the last one's,
            an id is unknown, deleted or waiting already, or no example would be left.
        """
        if request.name in self.names:
            raise InputError(
                f"request {_shown(request.name)} was taken before (replayed); give a new name"
            )
        if request.time < self.clock:
            raise InputError(
                f"the clock goes back: time={request.time!r} after {self.clock!r}; "
                "send requests in the order of their times"
            )
        which, size = "training", self.examples
        if request.kind == "predict":
            which, size = "test", self.test_examples
        for example in request.ids:
            if example >= size:
                raise InputError(
                    f"unknown id {_shown(example)}; there are {size} {which} examples, from 0 on"
                )
        if request.kind == "delete":
            self._check_deletion(request.ids)

    def _check_deletion(self, ids: tuple[int, ...]) -> None:
        for example in ids:
            state = self.status(example)
            if state == "deleted":
                raise InputError(f"id {example} is already deleted; leave it out")
            if state == "waiting":
                raise InputError(f"id {example} is waiting for deletion already; leave it out")
            if state == "approximated":
                raise InputError(
                    f"id {example} is waiting for deletion already (approximated until the exact "
                    "one); leave it out"
                )
        if len(self._state) + len(ids) >= self.examples:
            raise InputError("no example would be left; retain at least one")

    def take(self, request: Request) -> None:
        """Takes a request that was checked."""
        self.names.add(request.name)
        self.clock = request.time
        if request.kind == "delete":
            self.waiting.append(request)
            self._state.update(dict.fromkeys(request.ids, "waiting"))

    def due(self, how: str) -> list[Request]:
        """The requests that an application serves: all that wait; an exact one all not exact."""
        return [*self.approximated, *self.waiting] if how == "exact" else list(self.waiting)

    def apply(self, how: str) -> None:
        """Notes that `due(how)` was applied, `exact` or `approximate`."""
        state = "deleted" if how == "exact" else "approximated"
        served = self.due(how)
        for request in served:
            self._state.update(dict.fromkeys(request.ids, state))
        if how == "exact":
            self.deleted.update(each for request in served for each in request.ids)
            self.approximated = []
        else:
            self.approximated = [*self.approximated, *served]
        self.waiting = []


def ids_of(requests: list[Request]) -> list[int]:
    """All ids of some requests, ascending."""
    return sorted(example for request in requests for example in request.ids)


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file of requests without their ends, as many as have one.

    What has no end may still be growing. A line that is longer than a request may be is cut behind
    the first byte too many, so that it is refused for its length and never fills the memory.

    Args:
      file: open for reading bytes.
    """
    while True:
        line = file.readline(LONGEST_LINE + 2)
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(2**20)
        if not rest:
            return
        yield line.removesuffix(b"\n")[: LONGEST_LINE + 1]


def append_line(path: Path, line: str) -> None:
    """Writes a line behind the others; on return it is on the disk, where it must be before it is
    submitted.

    Raises:
      StoreError: if it cannot be written; what there is of it then is cut off at the next start.
    """
    with _writing(path) as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def cut_half_line(path: Path) -> None:
    """Cuts off what a kill of its one writer left of a last line, and makes the file if needed.

    Raises:
      StoreError: if it cannot be written.
    """
    with _writing(path) as file:
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        os.fsync(file.fileno())
        if not content:
            sync_folder(path.parent)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[BinaryIO]:
    try:
        with open(path, "a+b") as file:
            yield file
    except OSError as error:
        raise StoreError(f"cannot write the requests {path} ({error.strerror})") from None
