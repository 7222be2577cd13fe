"""One entry of the ledger, and its one form in bytes.

Design: an entry is checked when it is made, so that what is signed can always be read back.
Rejected: signing the line as it happens to be written; two writers of JSON differ in spaces, and
the same entry would have two hashes.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from unroll.errors import InputError

FORMAT = 1
GENESIS = "0" * 64
"""What the first entry names as the hash of the one before."""

KINDS = ("run", "deletion")
_HASH, _SIGNATURE = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{128}")
TIME = "%Y-%m-%dT%H:%M:%S.%fZ"


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is logged about a run or a deletion.

    All hashes are hex SHA-256. Those marked "salted" are HMACs: what they hide has few possible
    values, and a plain hash would be undone by trying them.

    Attributes:
      kind: `run` or `deletion`.
      requests: salted hashes of the deleted ids, sorted.
      dataset: fingerprint of the whole training set.
      data_before: Merkle root of the examples that the model depended on; `None` for a run.
      data_after: Merkle root of those that it is to depend on now.
      spec: hash of the specification's description.
      schedule: salted hash of the schedule.
      weights: salted hash of the example weights after.
      seed: seed of the run.
      initial: content hash of the state it started from; `None` if the seed made it.
      parameters_before: hash of the model; `None` for a run.
      parameters_after: hash of the model.
      method: what was done, for example `replay` or `taylor(order=2)`.
      recipe: salted hash of what a re-execution needs (`evidence.Recipe`); `None` without.
      code: version and source hash of the library.
      packages: versions.
      environment: XLA flags, kind of device, settings of jax.
      metrics: finite numbers and texts; they are published, so no ids in them.
    """

    kind: str
    requests: tuple[str, ...]
    dataset: str
    data_before: str | None
    data_after: str
    spec: str
    schedule: str
    weights: str
    seed: int
    initial: str | None
    parameters_before: str | None
    parameters_after: str
    method: str
    recipe: str | None
    code: dict[str, Any]
    packages: dict[str, Any]
    environment: dict[str, Any]
    metrics: dict[str, Any]

    def __post_init__(self):
        object.__setattr__(self, "requests", tuple(self.requests))
        for name, holds, expected in self._rules():
            if not holds:
                raise InputError(f"entry: {name}={getattr(self, name)!r} is not {expected}")
        try:
            canonical(dataclasses.asdict(self))
        except (TypeError, ValueError) as error:
            raise InputError(f"entry: it cannot be written as JSON ({error})") from None

    def _rules(self) -> Iterator[tuple[str, bool, str]]:
        yield "kind", self.kind in KINDS, f"one of {list(KINDS)}"
        hashes = [_is_hash(each) for each in self.requests]
        in_order = all(hashes) and list(self.requests) == sorted(set(self.requests))
        yield "requests", in_order, "a sorted list of different hashes"
        required = ("dataset", "data_after", "spec", "schedule", "weights", "parameters_after")
        for name in required:
            yield name, _is_hash(getattr(self, name)), "a hex SHA-256 hash"
        for name in ("data_before", "initial", "parameters_before", "recipe"):
            value = getattr(self, name)
            yield name, value is None or _is_hash(value), "a hex SHA-256 hash or None"
        yield "seed", type(self.seed) is int, "a whole number"
        yield "method", isinstance(self.method, str), "a text"
        for name in ("code", "packages", "environment", "metrics"):
            yield name, isinstance(getattr(self, name), dict), "a dictionary"


@dataclasses.dataclass(frozen=True)
class SignedEntry:
    """An entry as it stands in the log.

    Attributes:
      entry: what is logged.
      index: position in the log, from 0.
      time: when it was appended, UTC, ISO 8601 with microseconds.
      previous: hash of the entry before, `GENESIS` for the first.
      signature: Ed25519 over the canonical form of all of the above, hex.
    """

    entry: Entry
    index: int
    time: str
    previous: str
    signature: str = ""

    @functools.cached_property
    def content(self) -> bytes:
        """Canonical form of everything but the signature: what is signed and hashed."""
        place = dict(format=FORMAT, index=self.index, time=self.time, previous=self.previous)
        return canonical({**dataclasses.asdict(self.entry), **place})

    @functools.cached_property
    def hash(self) -> str:
        """What the next entry names; hex."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def line(self) -> bytes:
        """The line of the log, without its end."""
        return canonical({**json.loads(self.content), "signature": self.signature})


def canonical(value: Any) -> bytes:
    """The one JSON form of a value: sorted names, no spaces, ASCII, finite numbers only.

    Raises:
      TypeError: if a value has no JSON form.
      ValueError: if a number is not finite.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def parse_line(line: bytes) -> SignedEntry:
    """Reads one line of a log, without checking its signature or place.

    Raises:
      InputError: if it is no entry.
    """
    try:
        fields = json.loads(line.decode("ascii"))
        if not isinstance(fields, dict):
            raise ValueError("no JSON object")
        if fields.pop("format", None) != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        place = {name: fields.pop(name) for name in ("index", "time", "previous", "signature")}
        signed = SignedEntry(Entry(**fields), **place)
        if type(signed.index) is not int or signed.index < 0:
            raise ValueError(f"index={signed.index!r} is no position")
        if not _is_hash(signed.previous) or not _SIGNATURE.fullmatch(signed.signature):
            raise ValueError("previous or signature is no hash")
        parsed = datetime.datetime.strptime(signed.time, TIME)
        if parsed.strftime(TIME) != signed.time:
            raise ValueError(f"time={signed.time!r} is not in its one form")
        return signed
    except KeyError as error:
        raise InputError(f"field {error} is missing") from None
    except (TypeError, ValueError, RecursionError) as error:  # decoding errors are among them
        raise InputError(f"this is no entry ({error})".replace("\n", " ")) from None


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None
