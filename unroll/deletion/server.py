"""A server of deletion requests that can be killed at any moment.

    with Journal.open(path) as journal:
        server = Server(service, journal, make_policy("batches(size=8)"), test=test)
        for line in lines[journal.lines:]:
            answer = server.submit(line)
        server.finish()

Order of what is made durable for one line, each step after the one before it is on the disk:

1. the line itself, by whoever keeps the requests, before it is submitted;
2. if its time makes waiting deletions due: their application, see below. Only lines that are taken
   move the clock, so a refused one does nothing;
3. one record of its fate, after which the line is never read again;
4. the answer;
5. if the policy finds deletions due now: their application.

And for an application:

a. a record `begun` that names the requests: what is begun is what is done after a kill, also where
   the policy would by now find more of them due;
b. the model, in the store if the service has one. It is a pure function of what was removed, so
   losing it costs time only;
c. the entry of the ledger, if there is one. A last entry that the journal does not know is that of
   the application that was begun: it is compared and not written again;
d. a record `applied` with the hash of the model. From here on its examples are deleted;
e. the purge, if wanted. It is done again at every start, so a kill in it leaves nothing.

At a start the journal gives back names, clock and the state of every example; the model is made
from what was removed, and its hash must be that of the last record; what was begun is done; then
the policy looks again. Thus no request is lost (step 3 comes after step 1, and what waits is in
the journal), and none is applied twice (d alone changes what waits).

An error is met like a kill: the server that raised it stands between two steps and does no more;
another one on the same journal, opened again, goes on.

Rejected: applying first and recording both fate and application at once. It is one step less, but
then a request is acknowledged only when its training ends, and batches cannot be served at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unroll.data.dataset import Dataset
from unroll.deletion import keys
from unroll.deletion.entry import Entry
from unroll.deletion.journal import Journal, line_hash
from unroll.deletion.ledger import Ledger
from unroll.deletion.policies import APPROXIMATE, EXACT, Policy, Situation
from unroll.deletion.requests import KINDS, Register, Request, ids_of, parse_request
from unroll.deletion.services import Service
from unroll.errors import InputError
from unroll.training.run import Progress
from unroll.training.spec import description_hash

Measure = Callable[[Service, str], Mapping[str, float]]
"""Takes the new model and how it was made, and gives numbers to keep with the application."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a sender is told.

    Attributes:
      line: number of the line, from 1.
      fate: `accepted` (a deletion waits or is done), `answered` or `refused`.
      request: name of the request; `None` where it was refused.
      message: why it was refused.
      result: classes of a prediction, or the status of each id: `present`, `waiting`,
        `approximated` or `deleted`.
    """

    line: int
    fate: str
    request: str | None = None
    message: str | None = None
    result: tuple[int | str, ...] | None = None


def describe_server(
    service: Mapping[str, Any],
    policy: Policy,
    test: Dataset | None = None,
    key: bytes | None = None,
) -> dict[str, Any]:
    """What a journal belongs to, see `Journal.begin`.

    Args:
      service: its `describe()`.
      policy: when deletions are applied.
      test: of predictions.
      key: of requests; what is kept of it is a code that it makes, since under another key every
        further line would be refused, and consumed.
    """
    return {
        "service": description_hash(dict(service)),
        "policy": str(policy),
        "test": None if test is None else test.fingerprint,
        "request key": None if key is None else hmac.new(key, b"journal", "sha256").hexdigest(),
    }


class Server:
    """Takes lines one after the other; see the module docstring.

    Args:
      service: the model, without examples that the journal knows as deleted or with them; what it
        still has of them is removed now.
      journal: open; it stays the caller's to close.
      policy: when deletions are applied, and how.
      test: what `predict` requests speak of; none are taken by default.
      key: of the mac that every request must carry; none by default.
      log: a ledger for exact applications.
      measure: called after every application, for reports.
      purge: whether to remove from the service's store what depends on deleted examples.
      progress: called with (steps done, steps in all) of an application.

    Raises:
      InputError: if the journal is of another server, or does not fit the model or the ledger.
      StoreError: if something cannot be written.
      DivergenceError: if a model diverges on what remains.
    """

    def __init__(
        self,
        service: Service,
        journal: Journal,
        policy: Policy,
        *,
        test: Dataset | None = None,
        key: bytes | None = None,
        log: SignedLog | None = None,
        measure: Measure | None = None,
        purge: bool = False,
        progress: Progress | None = None,
    ):
        if policy.method is not None:
            service.check_method(policy.method)
        self.journal, self.policy, self.test = journal, policy, test
        self._key, self._log, self._measure = key, log, measure
        self._purge, self._progress = purge, progress
        self._scores: tuple[Service, np.ndarray] | None = None
        self._estimates: Mapping[str, float] = {}
        self._stopped = False
        journal.begin(describe_server(service.describe(), policy, test, key))
        self.register = Register(service.examples, 0 if test is None else len(test))
        begun = replay(self.register, journal)
        self.service = self._restored(service)
        if purge:
            self.service.record_lineage()
            self.service.purge()
        if log is not None:
            entry_due = begun is not None and begun["how"] == EXACT
            log.start(self.service, self._exact_entries(), entry_due)
        if begun is not None:
            self._complete(begun["how"], begun["time"])
        self._apply_what_is_due(self.register.clock)

    @property
    def removed(self) -> np.ndarray:
        """Ids that the model is without, exactly or not."""
        return self.service.removed

    @property
    def waiting(self) -> list[int]:
        """Ids whose deletion was accepted and not applied yet, ascending."""
        return ids_of(self.register.waiting)

    def submit(self, line: bytes | str) -> Answer:
        """Takes one line, without its end or with it; on return its fate is on the disk.

        Raises:
          InputError: if an error came before this; see the module docstring.
          StoreError: if something cannot be written. The journal says, when it is opened again, how
            many lines were consumed; the next one is to be submitted to another server.
          DivergenceError: if a model diverges on what remains.
        """
        with self._to_its_end():
            return self._submit(line)

    @contextlib.contextmanager
    def _to_its_end(self) -> Iterator[None]:
        if self._stopped:
            raise InputError(
                "this server stopped at an error; open its journal again, and make another server, "
                "which goes on from there"
            )
        self._stopped = True
        yield
        self._stopped = False

    def _submit(self, line: bytes | str) -> Answer:
        # What is no UTF-8 stays none, and is refused.
        line = line.encode("utf-8", "surrogatepass") if isinstance(line, str) else bytes(line)
        line = line.removesuffix(b"\n")
        number = self.journal.lines + 1
        record = {"line": number, "sha256": line_hash(line)}
        try:
            request = parse_request(line, key=self._key)
            self.register.check(request)
        except InputError as error:
            self.journal.append({"record": "refused", "why": str(error), **record})
            return Answer(number, "refused", message=str(error))
        self._apply_what_is_due(request.time)
        record |= {"request": request.name, "time": request.time}
        if request.kind == "delete":
            self.journal.append({"record": "accepted", "delete": list(request.ids), **record})
            self.register.take(request)
            self._apply_what_is_due(request.time)
            return Answer(number, "accepted", request.name)
        result = self._answer(request)
        fields = {"kind": request.kind, "answer": list(result), "model": self.service.hash}
        self.journal.append({"record": "answered", **fields, **record})
        self.register.take(request)
        return Answer(number, "answered", request.name, result=result)

    def finish(self) -> None:
        """Applies exactly whatever is not exact yet; more lines may follow.

        Raises:
          What `submit` raises.
        """
        with self._to_its_end():
            if self.register.due(EXACT):
                self._apply(EXACT, self.register.clock)

    def _answer(self, request: Request) -> tuple[int | str, ...]:
        if request.kind == "status":
            return tuple(self.register.status(example) for example in request.ids)
        if self._scores is None or self._scores[0] is not self.service:
            # All of the test set at once: a program for every number of ids would compile anew.
            self._scores = self.service, self.service.predict(self.test)
        return tuple(int(each) for each in self._scores[1][list(request.ids)].argmax(axis=-1))

    def _situation(self, clock: float) -> Situation:
        waiting = self.register.waiting
        return Situation(
            clock=clock,
            waiting=len(waiting),
            waiting_examples=sum(len(request.ids) for request in waiting),
            oldest=waiting[0].time if waiting else math.inf,
            approximated_examples=sum(len(each.ids) for each in self.register.approximated),
            estimates=self._estimates,
        )

    def _apply_what_is_due(self, clock: float) -> None:
        while True:
            situation = self._situation(clock)
            how = self.policy.decide(situation)
            if how is None or not self.register.due(how):
                return
            self._apply(how, self.policy.ready(situation))

    def _apply(self, how: str, time: float) -> None:
        names = [request.name for request in self.register.due(how)]
        self.journal.append({"record": "begun", "requests": names, "how": how, "time": time})
        self._complete(how, time)

    def _complete(self, how: str, time: float) -> None:
        """Does what was begun: steps b to e."""
        before, served = self.service, self.register.due(how)
        ids, extra = ids_of(self.register.waiting), {}
        if how == EXACT:
            after, work = before.without(ids, progress=self._progress)
        else:
            after, work = before.approximately(ids, self.policy.method, progress=self._progress)
        if self._measure is not None:
            extra["metrics"] = _written(self._measure(after, how))
        if how == EXACT and self._purge:
            after.record_lineage()
        if how == EXACT and self._log is not None:
            extra["entry"] = self._log.append(before, after)
        record = self.journal.append(
            {
                "record": "applied",
                "requests": [request.name for request in served],
                "how": how,
                "time": time,
                "example_gradients": work.example_gradients,
                "seconds": work.seconds,
                "estimates": _written(work.estimates),
                "model": after.hash,
                **extra,
            }
        )
        self.register.apply(how)
        self.service, self._estimates = after, _read(record["estimates"])
        if how == EXACT and self._purge:
            after.purge()

    def _applied(self) -> list[dict[str, Any]]:
        return [record for record in self.journal.records if record["record"] == "applied"]

    def _exact_entries(self) -> list[str | None]:
        return [each.get("entry") for each in self._applied() if each["how"] == EXACT]

    def _restored(self, service: Service) -> Service:
        """The model after the last application."""
        register = self.register
        extra = sorted(set(service.removed.tolist()) - register.deleted)
        if extra:
            raise InputError(
                f"the model is without example {extra[0]}, which {self.journal.path} does not know "
                "as deleted; start from a model that has it"
            )
        missing = sorted(register.deleted - set(service.removed.tolist()))
        if missing:
            service, _ = service.without(missing, progress=self._progress)
        if register.approximated:
            ids = ids_of(register.approximated)
            service, _ = service.approximately(ids, self.policy.method, progress=self._progress)
        applied = self._applied()
        if applied and service.hash != applied[-1]["model"]:
            raise InputError(
                f"the model has hash {service.hash[:12]}, but {self.journal.path} says "
                f"{applied[-1]['model'][:12]}: machine or code give other bits now; serve all "
                "requests again in a new directory"
            )
        self._estimates = _read(applied[-1]["estimates"]) if applied else {}
        return service


def _written(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers as JSON has them, which knows nothing infinite."""
    return {name: each if math.isfinite(each) else None for name, each in numbers.items()}


def _read(numbers: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if each is None else each for name, each in numbers.items()}


def replay(register: Register, journal: Journal) -> dict[str, Any] | None:
    """Brings a new register to the end of a journal.

    A model may be made from its `deleted` before there is a server, so that what was purged, or
    never stored, is not trained again.

    Returns:
      The record of an application that was begun and not ended, if there is one.

    Raises:
      InputError: if the records do not follow from each other.
    """
    begun = None
    for number, record in enumerate(journal.records, start=1):
        kind = record["record"]
        try:
            if begun is not None and kind != "applied":
                raise InputError("an application was begun before it and not ended")
            if kind in ("accepted", "answered"):
                _take(register, record)
            elif kind in ("begun", "applied"):
                names = [request.name for request in register.due(record["how"])]
                if record["how"] not in (EXACT, APPROXIMATE) or record["requests"] != names:
                    raise InputError("it is not of the requests that wait")
                begun = record if kind == "begun" else None
                if kind == "applied":
                    register.apply(record["how"])
            elif kind not in ("begin", "refused"):
                raise InputError(f"{kind!r} is no kind of record")
        except (InputError, KeyError, TypeError) as error:
            raise InputError(
                f"{journal.path}: record {number} does not fit those before it ({error}); restore "
                "it from a copy, or serve all requests again in a new directory"
            ) from None
    return begun


def _take(register: Register, record: Mapping[str, Any]) -> None:
    name, time = record["request"], record["time"]
    if record["record"] == "accepted":
        request = Request(name, time, "delete", tuple(record["delete"]))
        register.check(request)
    else:
        request = Request(name, time, record["kind"], ())
        if request.kind not in KINDS:
            raise InputError(f"{request.kind!r} is no kind of request")
    register.take(request)


class SignedLog:
    """A ledger that holds the training and every exact application, with the recipes beside it.

    Args:
      folder: of `ledger.jsonl` and `recipes/`.
      key_folder: made by `keys.create_keys`.

    Raises:
      InputError: if a key is missing or of another kind.
    """

    COMPARED = ("kind", "method", "requests", "data_before", "data_after", "weights") + (
        "parameters_before",
        "parameters_after",
    )

    def __init__(self, folder: Path, key_folder: Path):
        self.ledger = Ledger.open(
            Path(folder) / "ledger.jsonl", keys.load_verifying_key(key_folder)
        )
        self._private, self._salt = keys.load_signing_key(key_folder), keys.load_salt(key_folder)
        self._surplus = None

    def start(self, service: Service, known: list[str | None], begun: bool) -> None:
        """Whether the ledger holds the training and what the journal applied; logs the training.

        Args:
          service: the model of now.
          known: hashes of the entries of the exact applications, as the journal has them.
          begun: whether an exact application was begun; its entry may be there already.

        Raises:
          InputError: if the ledger does not verify or is of something else.
        """
        entries = self.ledger.entries()
        if not entries and not known:
            entries = [self._write(*service.training_entry(self._salt))]
        elif not known:
            self._compare(entries[0].entry, service.training_entry(self._salt)[0])
        logged = entries[1 : 1 + len(known)]
        surplus = entries[1 + len(known) :]
        if [each.hash for each in logged] != known or len(surplus) > int(begun):
            raise InputError(
                f"{self.ledger.path} has {len(entries) - 1} deletions, the journal has "
                f"{len(known)}, and they are not the same; restore both from one copy, or serve "
                "all requests again in a new directory"
            )
        self._surplus = surplus[0] if surplus else None

    def append(self, before: Service, after: Service) -> str:
        """Logs an application, unless it is there already; returns the hash of its entry."""
        entry, recipe = before.deletion_entry(after, self._salt)
        if self._surplus is not None:
            signed, self._surplus = self._surplus, None
            self._compare(signed.entry, entry)
            return signed.hash
        return self._write(entry, recipe).hash

    def _write(self, entry: Entry, recipe: Any):
        recipe.save(self.ledger.path.parent / "recipes", entry.recipe)
        return self.ledger.append(entry, self._private)

    def _compare(self, there: Entry, here: Entry) -> None:
        other = [name for name in self.COMPARED if getattr(there, name) != getattr(here, name)]
        if other:
            raise InputError(
                f"{self.ledger.path} has another entry than what is applied now ({other[0]} "
                "differs); restore it and the journal from one copy, or start in a new directory"
            )
