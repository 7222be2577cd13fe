"""Corrupted and malicious request lines, to try a server with; each with the reason to refuse it.

    valid lines + seed  ->  the same lines, with corrupted ones at random places between them

Every line is made from one that would be taken where it stands, with a name and ids that are fresh
and the time of the last request, and differs in what its kind says. So a server that overlooks this
one thing takes the line, and its state shows it. Where the server has a key, all that can be
authenticated is: the sender is malicious, not a stranger.

Design: kinds are written down by hand, after what can go wrong in reading, in the fields and in the
history of a stream. Rejected: random bytes. Nearly all of them are no JSON, and the reason that a
refusal should give is not known.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
from collections.abc import Callable, Sequence

import numpy as np

from unroll.checks import whole_number
from unroll.data.ids import make_generator
from unroll.deletion.requests import Request, parse_request
from unroll.errors import InputError

TOO_LONG = 2**20 + 1
"""Bytes of a line that is longer than a request may be."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a stream of requests, without its end.

    Attributes:
      content: what is read.
      kind: how it is corrupted, one of `KINDS`; empty for a valid request.
      reason: regular expression, to search for in the refusal; empty for a valid request.
    """

    content: bytes
    kind: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class History:
    """What has happened in the stream before a line.

    Attributes:
      earlier: the requests that were taken, in their order.
      lines: their lines.
      examples: number of training examples.
      test_examples: number of test examples.
      key: of the server, or none.
      number: of the line that is made, for its name.
      generator: of the choices that are left.
    """

    earlier: Sequence[Request]
    lines: Sequence[bytes]
    examples: int
    test_examples: int
    key: bytes | None
    number: int
    generator: np.random.Generator

    @property
    def deleted(self) -> list[int]:
        """Ids that deletions asked for before."""
        return [id for each in self.earlier if each.kind == "delete" for id in each.ids]

    @property
    def fresh(self) -> list[int]:
        """Ids that no deletion asked for before, ascending."""
        return np.setdiff1d(np.arange(self.examples), self.deleted).tolist()

    def fields(self, **changes) -> dict:
        """The fields of a deletion that would be taken here, with some of them changed."""
        time = self.earlier[-1].time if self.earlier else 0.0
        id = int(self.generator.choice(self.fresh))
        return {"request": f"x-{self.number:06d}", "time": time, "delete": [id], **changes}

    def line(self, fields: dict, *, signed: bool = True) -> bytes:
        """A line of JSON of some fields, with its code of authenticity if there is a key."""
        if self.key is not None and signed:
            fields = {**fields, "mac": authentication_code(fields, self.key)}
        return json.dumps(fields).encode()

    def changed(self, **changes) -> bytes:
        """The line of `fields(**changes)`."""
        return self.line(self.fields(**changes))

    def raw(self, name: str, text: str) -> bytes:
        """A line with literal text for the value of a field, without a code of authenticity."""
        line = self.line(self.fields(**{name: _MARK}), signed=False)
        return line.replace(f'"{_MARK}"'.encode(), text.encode())


_MARK = "the place of a literal"


def authentication_code(fields: dict, key: bytes) -> str:
    """Hexadecimal HMAC-SHA256 over the fields as JSON with sorted keys and without spaces."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _without(history: History, *names: str) -> bytes:
    fields = history.fields()
    return history.line({key: value for key, value in fields.items() if key not in names})


def _padded(history: History) -> bytes:
    return history.changed().ljust(TOO_LONG)


def _null_bytes(history: History) -> bytes:
    line = history.changed()
    place = int(history.generator.integers(1, len(line)))
    return line[:place] + b"\0\0" + line[place:]


def _cut_off(history: History) -> bytes:
    line = history.changed()
    return line[: int(history.generator.integers(1, len(line)))]


def _duplicate_key(history: History) -> bytes:
    line = history.changed()
    return line.replace(b'"delete"', b'"delete": [%d], "delete"' % history.fresh[0])


def _name_taken(history: History) -> bytes:
    return history.changed(request=_any(history, history.earlier).name)


def _unknown_test_id(history: History) -> bytes:
    fields = history.fields(predict=[history.test_examples])
    del fields["delete"]
    return history.line(fields)


def _wrong_mac(history: History) -> bytes:
    fields = history.fields()
    other = {**fields, "delete": [(fields["delete"][0] + 1) % history.examples]}
    code = authentication_code(other, history.key)
    return json.dumps({**fields, "mac": code}).encode()


def _other_key(history: History) -> bytes:
    fields = history.fields()
    code = authentication_code(fields, hashlib.sha256(history.key).digest())
    return json.dumps({**fields, "mac": code}).encode()


def _everything(history: History) -> bytes:
    name = json.dumps("\n" * 10_000)
    field = f'{{"request": {name}, "time": NaN, "time": -1e999, "delete": [true, -1, 1.5, "0"]'
    return b"\xff\0" + field.encode() + b', "x": ' + b"[" * 10_000


def _any(history: History, values: Sequence):
    return values[int(history.generator.integers(len(values)))]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to corrupt a line.

    Attributes:
      make: from the history to the line.
      reason: regular expression for the refusal.
      after: what must have been there: `request`, `delete` (a deletion), `key`, or nothing.
    """

    make: Callable[[History], bytes]
    reason: str
    after: str = ""


_NO_JSON, _NO_ID, _NO_NAME, _NO_TIME = "no JSON", "is no id", "is no name", "is no time"

KINDS: dict[str, Kind] = {
    # What cannot be read.
    "no JSON": Kind(lambda s: b"please delete example %d" % s.fresh[0], _NO_JSON),
    "empty line": Kind(lambda s: b"", "no line with one JSON object"),
    "cut off": Kind(_cut_off, _NO_JSON),
    "two requests in a line": Kind(lambda s: s.changed() + s.changed(), _NO_JSON),
    "not UTF-8": Kind(lambda s: s.changed(request="\0").replace(b"\\u0000", b"\xff"), "not UTF-8"),
    "null bytes": Kind(_null_bytes, _NO_JSON),
    "byte order mark": Kind(lambda s: b"\xef\xbb\xbf" + s.changed(), _NO_JSON),
    "too long": Kind(_padded, "longer than"),
    "deep nesting": Kind(lambda s: s.raw("delete", "[" * 10**5 + "]" * 10**5), "nested too deeply"),
    "number of 5,000 digits": Kind(lambda s: s.raw("delete", "[" + "9" * 5000 + "]"), _NO_JSON),
    "no object": Kind(lambda s: json.dumps([s.fields()]).encode(), "no JSON object"),
    # What can be read and says something else.
    "duplicate key": Kind(_duplicate_key, "'delete' occurs twice"),
    "extra field": Kind(lambda s: s.changed(force=True), "unknown field 'force'"),
    "no name": Kind(lambda s: _without(s, "request"), "'request' is missing"),
    "no time": Kind(lambda s: _without(s, "time"), "'time' is missing"),
    "no action": Kind(lambda s: _without(s, "delete"), "exactly one of"),
    "two actions": Kind(lambda s: s.changed(status=[0]), "exactly one of"),
    "ids no list": Kind(lambda s: s.changed(delete=s.fresh[0]), "no list of ids"),
    "nested list": Kind(lambda s: s.changed(delete=[[s.fresh[0]]]), _NO_ID),
    "no ids": Kind(lambda s: s.changed(delete=[]), "no list of ids"),
    "id true": Kind(lambda s: s.changed(delete=[True]), _NO_ID),
    "id a fraction": Kind(lambda s: s.changed(delete=[s.fresh[0] + 0.5]), _NO_ID),
    "id a whole float": Kind(lambda s: s.changed(delete=[float(s.fresh[0])]), _NO_ID),
    "id a string": Kind(lambda s: s.changed(delete=[str(s.fresh[0])]), _NO_ID),
    "id null": Kind(lambda s: s.changed(delete=[None]), _NO_ID),
    "id negative": Kind(lambda s: s.changed(delete=[-1]), _NO_ID),
    "id huge": Kind(lambda s: s.changed(delete=[2**64 + s.fresh[0]]), "unknown id"),
    "id twice": Kind(lambda s: s.changed(delete=[s.fresh[0]] * 2), "occurs twice"),
    "id unknown": Kind(lambda s: s.changed(delete=[s.fresh[0], s.examples]), "unknown id"),
    "test id unknown": Kind(_unknown_test_id, "unknown id"),
    "time NaN": Kind(lambda s: s.changed(time=float("nan")), "NaN is no number"),
    "time infinite": Kind(lambda s: s.changed(time=float("inf")), "Infinity is no number"),
    "time overflows": Kind(lambda s: s.raw("time", "1e999"), _NO_TIME),
    "time negative": Kind(lambda s: s.changed(time=-1.0), _NO_TIME),
    "time a string": Kind(lambda s: s.changed(time="now"), _NO_TIME),
    "time true": Kind(lambda s: s.changed(time=True), _NO_TIME),
    "name a number": Kind(lambda s: s.changed(request=s.number), _NO_NAME),
    "name empty": Kind(lambda s: s.changed(request=""), _NO_NAME),
    "name with newline": Kind(lambda s: s.changed(request=f"x\n{s.number}"), _NO_NAME),
    "name of 10,000 characters": Kind(lambda s: s.changed(request="x" * 10_000), _NO_NAME),
    "name with lone surrogate": Kind(lambda s: s.changed(request="x\ud800"), _NO_NAME),
    # What would be a request, but for what was there before.
    "already deleted": Kind(
        lambda s: s.changed(delete=[s.fresh[0], _any(s, s.deleted)]),
        "already deleted|waiting for deletion already",
        after="delete",
    ),
    "all that is left": Kind(lambda s: s.changed(delete=s.fresh), "no example would be left"),
    "replayed line": Kind(lambda s: _any(s, s.lines), "replayed", after="request"),
    "name taken": Kind(_name_taken, "replayed", after="request"),
    "clock goes back": Kind(
        lambda s: s.changed(time=s.earlier[-1].time / 2), "clock goes back", after="request"
    ),
    # What the server's key shows.
    "mac of other content": Kind(_wrong_mac, "mac is wrong", after="key"),
    "mac of another key": Kind(_other_key, "mac is wrong", after="key"),
    "no mac": Kind(lambda s: s.line(s.fields(), signed=False), "mac is missing", after="key"),
    "everything at once": Kind(_everything, "not UTF-8"),
}


def corrupt(kind: str, history: History) -> Line:
    """A line of one kind, as it would come after a history.

    Raises:
      InputError: if there is no such kind, or it needs what has not been there.
    """
    if kind not in KINDS:
        raise InputError(f"unknown kind {kind!r} of corruption; choose one of {list(KINDS)}")
    if not _possible(KINDS[kind], history):
        raise InputError(f"a line of the kind {kind!r} needs an earlier {KINDS[kind].after}")
    return Line(KINDS[kind].make(history), kind, KINDS[kind].reason)


def _possible(kind: Kind, history: History) -> bool:
    there = {
        "": True,
        "request": bool(history.earlier),
        "delete": bool(history.deleted),
        "key": history.key is not None,
    }
    return there[kind.after]


def mix_in(
    lines: Sequence[str],
    count: int,
    *,
    examples: int,
    test_examples: int,
    seed: int,
    key: bytes | None = None,
) -> list[Line]:
    """Valid lines in their order, with corrupted ones at random places between them.

    The kinds take turns, so that `count` lines have all of them where it is large enough.

    Args:
      lines: valid requests, such as a stream's.
      count: number of corrupted lines.
      examples: number of training examples.
      test_examples: number of test examples.
      seed: of places and contents.
      key: of the server, or none.

    Returns:
      All lines, `len(lines) + count` of them.

    Raises:
      InputError: if a line is no valid request, or none of them is a deletion, which some kinds
        build on.
    """
    contents = [line.encode() for line in lines]
    requests = [parse_request(content, key=key) for content in contents]
    deletions = [place for place, each in enumerate(requests) if each.kind == "delete"]
    if not deletions:
        raise InputError("give at least one deletion among the valid lines")
    generator = make_generator(seed, "corrupted lines")
    kinds = [name for name, kind in KINDS.items() if key is not None or kind.after != "key"]
    before: list[list[str]] = [[] for _ in range(len(lines) + 1)]
    first = {"": 0, "key": 0, "request": 1, "delete": deletions[0] + 1}
    for number in range(whole_number("count", count, least=0)):
        kind = kinds[number % len(kinds)]
        place = generator.integers(first[KINDS[kind].after], len(lines) + 1)
        before[int(place)].append(kind)
    mixed: list[Line] = []
    for place in range(len(lines) + 1):
        for kind in before[place]:
            past = requests[:place], contents[:place]
            history = History(*past, examples, test_examples, key, len(mixed), generator)
            mixed.append(corrupt(kind, history))
        if place < len(lines):
            mixed.append(Line(contents[place]))
    return mixed
