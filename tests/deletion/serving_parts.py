"""A model that only counts, lines of requests, and kills between any two durable steps."""

import contextlib
import hashlib
import json
import os

import numpy as np

from unroll.deletion.journal import Journal
from unroll.deletion.policies import make_policy
from unroll.deletion.server import Server
from unroll.deletion.services import Work
from unroll.errors import InputError

EXAMPLES = 40


class Killed(BaseException):
    """No handler of errors may take a kill for an error of its own."""


class Counting:
    """A service whose model is the list of what it is without; `made` is what was asked of all."""

    def __init__(self, deleted=(), since=(), made=None):
        self.deleted, self.since = frozenset(deleted), frozenset(since)
        self.made = [] if made is None else made
        self.examples = EXAMPLES

    @property
    def removed(self):
        return np.array(sorted(self.deleted | self.since), np.int64)

    @property
    def hash(self):
        text = json.dumps([sorted(self.deleted), sorted(self.since)])
        return hashlib.sha256(text.encode()).hexdigest()

    def describe(self):
        return {"kind": "counting"}

    def check_method(self, method):
        if method == "impossible":
            raise InputError("no such method")

    def _new(self, ids, how):
        new = set(map(int, ids))
        assert not new & (self.deleted | self.since), "applied twice"
        self.made.append((how, tuple(sorted(new))))
        return new

    def without(self, ids, *, progress=None):
        new = self._new(ids, "exact")
        return Counting(self.deleted | self.since | new, (), self.made), Work(10.0, 0.5)

    def approximately(self, ids, method, *, progress=None):
        new = self._new(ids, "approximate")
        moved = {"distance": float(len(self.since | new)), "guess": 0.25}
        made = Counting(self.deleted, self.since | new, self.made)
        return made, Work(1.0, 0.1, moved)

    def predict(self, dataset):
        # The class is the number of removed examples, so an answer tells which model gave it.
        return np.eye(EXAMPLES)[np.full(len(dataset), len(self.removed))]


def line(number, kind, ids, time=None, **fields):
    """A request line as bytes; `time` is its number by default."""
    time = float(number) if time is None else time
    return json.dumps({"request": f"r-{number}", "time": time, kind: ids, **fields}).encode()


@contextlib.contextmanager
def serving(path, policy="immediately", service=None, **options):
    """A server on the journal in a folder."""
    with Journal.open(path / "journal.jsonl") as journal:
        service = Counting() if service is None else service
        yield Server(service, journal, make_policy(policy), **options)


def serve(path, lines, **options):
    """Serves all lines that were not consumed yet, to the end; returns the server, closed."""
    with serving(path, **options) as server:
        server.journal.verify_lines(lines)
        for each in lines[server.journal.lines :]:
            server.submit(each)
        server.finish()
    return server


def steady(records):
    """Records without what is measured by a clock or chained to it."""
    loose = ("hash", "previous", "seconds", "entry")
    return [{k: v for k, v in each.items() if k not in loose} for each in records]


@contextlib.contextmanager
def killed_at(monkeypatch, number, before=True):
    """Raises `Killed` at the n-th synchronisation to the disk, from 0, before it or behind it.

    Every durable step syncs, so this is between any two of them. Yields a list of the count.
    """
    count, sync = [0], os.fsync

    def counted(descriptor):
        here = count[0] == number
        count[0] += 1
        if here and before:
            raise Killed
        sync(descriptor)
        if here:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", counted)
        yield count
