"""The server: fates, answers, policies, kills between any two durable steps, damage, the ledger."""

import copy
import io
import json

import numpy as np
import pytest
from serving_parts import (
    EXAMPLES,
    Counting,
    Killed,
    killed_at,
    line,
    serve,
    serving,
    steady,
)

import unroll
from unroll.deletion import keys
from unroll.deletion.journal import Journal
from unroll.deletion.requests import LONGEST_LINE, Request, format_request, read_lines
from unroll.deletion.server import SignedLog
from unroll.deletion.services import SingleModel, Work
from unroll.errors import InputError, StoreError

BATCHES = "batches(size=3, longest_wait=2.5)"
BUDGETED = "budgeted(method='any', threshold=3, distance=2.5)"
POLICIES = ("immediately", BATCHES, BUDGETED)


@pytest.fixture(scope="module")
def test_set(blobs):
    return blobs[1].take(range(10))


def mixed():
    """Lines of every kind and fate; every second line waits a while in a batch."""
    return [
        line(1, "delete", [5, 6]),
        b"no request at all",
        line(2, "predict", [0, 9]),
        line(3, "delete", [7]),
        line(3, "delete", [8], time=9),  # a name that was taken
        line(4, "status", [5, 7, 9]),
        line(5, "delete", [5]),  # taken already
        line(6, "delete", [10], time=6),
        line(7, "delete", [11], time=5.5),  # the clock goes back
        line(8, "delete", [12], time=6),
        line(9, "predict", [3], time=20),
        line(10, "delete", [13, 14, 15, 16]),
        line(11, "status", [13, 39], time=21),
    ]


GONE = [5, 6, 7, 10, 12, 13, 14, 15, 16]
# Line 10 goes back to time 10 after line 9.
GONE_AT_LAST = [each for each in GONE if each < 13]


def test_every_line_has_one_fate(tmp_path, test_set):
    server = serve(tmp_path, mixed(), test=test_set)
    fates = [r["record"] for r in server.journal.records if "sha256" in r]
    a, r, q = "accepted", "refused", "answered"
    assert fates == [a, r, q, a, r, q, r, a, r, a, q, r, q]
    assert [x["line"] for x in server.journal.records if "sha256" in x] == list(range(1, 14))
    assert server.removed.tolist() == GONE_AT_LAST and server.waiting == []


@pytest.mark.parametrize("policy", POLICIES)
def test_the_end_is_that_of_one_deletion_of_all(tmp_path, test_set, policy):
    server = serve(tmp_path, mixed(), policy=policy, test=test_set)
    assert server.service.hash == Counting(GONE_AT_LAST).hash
    assert server.register.deleted == set(GONE_AT_LAST)


def applied(server):
    return [
        (each["how"], each["requests"], each["time"])
        for each in server.journal.records
        if each["record"] == "applied"
    ]


def test_at_once(tmp_path, test_set):
    server = serve(tmp_path, mixed(), test=test_set)
    assert applied(server) == [
        ("exact", ["r-1"], 1.0),
        ("exact", ["r-3"], 3.0),
        ("exact", ["r-6"], 6.0),
        ("exact", ["r-8"], 6.0),
    ]


def test_in_batches(tmp_path, test_set):
    server = serve(tmp_path, mixed(), policy=BATCHES, test=test_set)
    # r-1 is late when line 4 comes at 4.0, and was at 3.5; r-6 and r-8 when line 9 comes.
    assert applied(server) == [("exact", ["r-1", "r-3"], 3.5), ("exact", ["r-6", "r-8"], 8.5)]


def test_within_a_budget(tmp_path, test_set):
    server = serve(tmp_path, mixed(), policy=BUDGETED, test=test_set)
    assert applied(server) == [
        ("approximate", ["r-1"], 1.0),  # two examples, distance 2
        ("approximate", ["r-3"], 3.0),  # three, whose distance of 3 is too far:
        ("exact", ["r-1", "r-3"], 3.0),
        ("approximate", ["r-6"], 6.0),
        ("approximate", ["r-8"], 6.0),
        ("exact", ["r-6", "r-8"], 21.0),
    ]


def test_answers_come_from_the_model_of_the_moment(tmp_path, test_set):
    with serving(tmp_path, BUDGETED, test=test_set) as server:
        assert server.submit(line(1, "predict", [4, 2])).result == (0, 0)
        assert server.submit(line(2, "delete", [8, 9])).fate == "accepted"
        assert server.submit(line(3, "predict", [4, 2])).result == (2, 2)
        assert server.submit(line(4, "status", [8, 1])).result == ("approximated", "present")
        server.finish()
        assert server.submit(line(5, "status", [9])).result == ("deleted",)
    with serving(tmp_path / "other", "batches(size=2)", test=test_set) as server:
        server.submit(line(1, "delete", [8]))
        assert server.waiting == [8] and not len(server.removed)
        assert server.submit(line(2, "status", [8])).result == ("waiting",)
        assert server.submit(line(3, "predict", [0])).result == (0,)
        server.submit(line(4, "delete", [9]))
        assert server.waiting == [] and server.removed.tolist() == [8, 9]


def whole_state(server):
    register = copy.deepcopy(vars(server.register))
    return register, server.service.hash, server.waiting, server.service.made[:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "no JSON"),
        (b"\xff", "not UTF-8"),
        ("\ud800", "not UTF-8"),
        (b"x" * (2**20 + 1), "longer than"),
        (line(1, "delete", [3]), "replayed"),
        (line(9, "delete", [40]), "unknown id 40"),
        (line(9, "predict", [10]), "unknown id 10"),
        (line(9, "delete", [1]), "already deleted"),
        (line(9, "delete", [3], time=0.5), "clock goes back"),
        (line(9, "delete", [0, *range(2, EXAMPLES)]), "no example would be left"),
        (line(9, "delete", [3], time=1e12, more=1), "unknown field"),
    ],
)
@pytest.mark.parametrize("policy", ["immediately", "batches(size=9, longest_wait=50.0)"])
def test_a_refused_line_changes_nothing(tmp_path, test_set, content, message, policy):
    with serving(tmp_path, policy, test=test_set) as server:
        server.submit(line(1, "delete", [1]))
        if policy == "immediately" or message != "already deleted":
            before = whole_state(server)
            answer = server.submit(content)
            assert (answer.fate, answer.request, answer.result) == ("refused", None, None)
            assert message in answer.message and "\n" not in answer.message
            assert server.journal.records[-1]["why"] == answer.message
            assert whole_state(server) == before
        assert server.submit(line(2, "delete", [3])).fate == "accepted"


def test_lines_that_end_as_on_windows_are_the_same_after_a_restart(tmp_path):
    lines = list(read_lines(io.BytesIO(line(1, "delete", [1]) + b"\r\n\r\nnonsense\r\n")))
    serve(tmp_path, lines)
    server = serve(tmp_path, [*lines, line(2, "delete", [2])])
    assert server.removed.tolist() == [1, 2] and server.journal.lines == 4


def test_a_line_that_is_cut_for_its_length_is_refused_wherever_the_cut_falls(tmp_path):
    content = line(1, "delete", [1]).ljust(LONGEST_LINE) + b"\r and more of it"
    (found,) = read_lines(io.BytesIO(content + b"\n"))
    with serving(tmp_path) as server:
        assert "longer than" in server.submit(found).message


class Failing(Counting):
    """Cannot be stored, so many times."""

    errors = 0

    def without(self, ids, *, progress=None):
        if len(ids) and Failing.errors > 0:
            Failing.errors -= 1
            raise StoreError("no space")
        return super().without(ids, progress=progress)


def test_after_an_error_only_another_server_goes_on(tmp_path):
    """What was begun comes first, so a server that went on would spoil the journal."""
    lines = [line(1, "delete", [1]), line(2, "delete", [2])]
    Failing.errors = 1
    with serving(tmp_path, service=Failing()) as server:
        with pytest.raises(StoreError, match="no space"):
            server.submit(lines[0])
        records = len(server.journal.records)
        for again in (lambda: server.submit(lines[0]), lambda: server.submit(lines[1])):
            with pytest.raises(InputError, match="stopped at an error; open its journal again"):
                again()
        with pytest.raises(InputError, match="stopped at an error"):
            server.finish()
        assert len(server.journal.records) == records
    server = serve(tmp_path, lines, service=Failing())
    assert applied(server) == [("exact", ["r-1"], 1.0), ("exact", ["r-2"], 2.0)]


def test_a_head_that_cannot_be_written_loses_no_line(tmp_path, monkeypatch):
    lines = [line(1, "delete", [1]), line(2, "delete", [2])]

    def full(journal):
        raise StoreError("cannot write the head")

    with serving(tmp_path, policy="batches(size=2)") as server, monkeypatch.context() as patch:
        patch.setattr(Journal, "_write_head", full)
        with pytest.raises(StoreError, match="head"):
            server.submit(lines[0])
        patch.undo()
        with pytest.raises(InputError, match="stopped at an error"):
            server.submit(lines[0])
    server = serve(tmp_path, lines, policy="batches(size=2)")
    assert applied(server) == [("exact", ["r-1", "r-2"], 2.0)]


class Unmeasurable(Counting):
    """An approximation of which nobody can say how far it went."""

    def approximately(self, ids, method, *, progress=None):
        made, _ = super().approximately(ids, method, progress=progress)
        estimates = {"distance": float("nan"), "guess": float("-inf")}
        return Unmeasurable(made.deleted, made.since, made.made), Work(1.0, 0.1, estimates)

    def without(self, ids, *, progress=None):
        made, work = super().without(ids, progress=progress)
        return Unmeasurable(made.deleted, (), made.made), work


def test_what_is_no_number_uses_the_budget_up_and_stops_nothing(tmp_path, monkeypatch):
    policy = "budgeted(method='any', threshold=9, estimate='guess', limit=1.0)"
    options = dict(policy=policy, measure=lambda service, how: {"drift": float("inf")})
    lines = [line(1, "delete", [1]), line(2, "delete", [2])]
    server = serve(tmp_path / "whole", lines, service=Unmeasurable(), **options)
    assert [how for how, _, _ in applied(server)] == ["approximate", "exact"] * 2
    record = next(each for each in server.journal.records if each["record"] == "applied")
    assert record["metrics"] == {"drift": None}
    assert record["estimates"] == {"distance": None, "guess": None}
    # Killed behind the approximation, which has the same consequence after the restart.
    with pytest.raises(Killed), killed_at(monkeypatch, 8):
        serve(tmp_path / "killed", lines, service=Unmeasurable(), **options)
    found = Journal.open(tmp_path / "killed" / "journal.jsonl")
    assert found.records[-1]["record"] == "applied"
    found.close()
    again = serve(tmp_path / "killed", lines, service=Unmeasurable(), **options)
    assert steady(again.journal.records) == steady(server.journal.records)


def test_a_key_is_demanded(tmp_path):
    signed = format_request(Request("r-1", 1.0, "delete", (3,)), b"secret")
    with serving(tmp_path, key=b"secret") as server:
        assert "mac is missing" in server.submit(line(1, "delete", [3])).message
        assert server.submit(signed).fate == "accepted"
        assert "replayed" in server.submit(signed).message


def uninterrupted(path, policy, test_set, **options):
    server = serve(path, mixed(), policy=policy, test=test_set, **options)
    return server, steady(server.journal.records)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_killed_between_any_two_durable_steps(tmp_path, monkeypatch, test_set, policy, before):
    whole, records = uninterrupted(tmp_path / "whole", policy, test_set)
    number, kills = 0, 0
    while True:
        path = tmp_path / f"{number}"
        try:
            with killed_at(monkeypatch, number, before):
                serve(path, mixed(), policy=policy, test=test_set)
            break
        except Killed:
            kills += 1
        server = serve(path, mixed(), policy=policy, test=test_set)
        assert server.service.hash == whole.service.hash
        assert steady(server.journal.records) == records
        number += 1
    # Two synchronisations for each record: its own and its head's; one for the new folder.
    assert kills == 2 * len(records) + 1


def test_killed_again_and_again(tmp_path, monkeypatch, test_set):
    whole, records = uninterrupted(tmp_path / "whole", BUDGETED, test_set)
    rng, path, kills = np.random.default_rng(0), tmp_path / "killed", 0
    while True:
        try:
            with killed_at(monkeypatch, int(rng.integers(1, 9)), bool(rng.integers(2))):
                server = serve(path, mixed(), policy=BUDGETED, test=test_set)
            break
        except Killed:
            kills += 1
    assert kills >= 5 and server.service.hash == whole.service.hash
    assert steady(server.journal.records) == records


class Fragile(Counting):
    """Killed while it trains, so many times."""

    kills = 0

    def without(self, ids, *, progress=None):
        if len(ids) and Fragile.kills > 0:
            Fragile.kills -= 1
            raise Killed
        return super().without(ids, progress=progress)


def test_what_was_begun_is_what_is_done_though_more_came_since(tmp_path):
    lines = [line(1, "delete", [1]), line(2, "delete", [2])]
    Fragile.kills = 1
    with pytest.raises(Killed):
        serve(tmp_path, lines, policy="batches(size=3)", service=Fragile())
    # The end of the stream had begun an application; then the stream went on.
    more = [*lines, line(3, "delete", [3])]
    server = serve(tmp_path, more, policy="batches(size=3)", service=Fragile())
    assert [names for _, names, _ in applied(server)] == [["r-1", "r-2"], ["r-3"]]


def test_a_model_that_is_without_the_deleted_already_is_taken_as_it_is(tmp_path):
    serve(tmp_path, [line(1, "delete", [1]), line(2, "delete", [4])])
    service = Counting([1, 4])
    with serving(tmp_path, service=service) as server:
        assert server.service is service and service.made == []
    with pytest.raises(InputError, match="without example 7, which .* does not know"):
        with serving(tmp_path, service=Counting([1, 7])):
            pass


class Different(Counting):
    @property
    def hash(self):
        return "0" * 64


def test_another_model_for_the_same_deletions_is_refused(tmp_path):
    serve(tmp_path, [line(1, "delete", [1])])
    with pytest.raises(InputError, match="has hash 000000000000, but .* other bits now"):
        with serving(tmp_path, service=Different([1])):
            pass


def test_a_journal_is_of_one_service_policy_and_test_set(tmp_path, test_set, blobs):
    serve(tmp_path, [line(1, "delete", [1])], test=test_set)
    for changes, name in [
        ({"policy": "batches(size=2)", "test": test_set}, "policy"),
        ({"test": blobs[1]}, "test"),
        ({"test": test_set, "key": b"key"}, "request key"),
    ]:
        with pytest.raises(InputError, match=f"{name} differs"), serving(tmp_path, **changes):
            pass


@pytest.mark.parametrize("other", [b"another secret", None])
def test_a_journal_is_of_one_request_key(tmp_path, other):
    """Under another one every further line would be refused, and consumed."""
    with serving(tmp_path, key=b"secret"):
        pass
    content = (tmp_path / "journal.jsonl").read_bytes()
    assert b"secret" not in content
    with pytest.raises(InputError, match="request key differs"), serving(tmp_path, key=other):
        pass
    assert (tmp_path / "journal.jsonl").read_bytes() == content


def test_a_chain_of_records_that_make_no_sense_is_refused(tmp_path):
    serve(tmp_path, [line(1, "delete", [1])])
    with Journal.open(tmp_path / "journal.jsonl") as journal:
        journal.append({"record": "applied", "how": "exact", "requests": ["r-9"]})
    with pytest.raises(InputError, match="record 5 does not fit.* not of the requests that wait"):
        with serving(tmp_path):
            pass


def test_a_method_that_the_service_lacks_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="no such method"):
        with serving(tmp_path, "budgeted(method='impossible', threshold=2)"):
            pass
    assert (tmp_path / "journal.jsonl").read_bytes() == b""


def test_measurements_are_kept_with_the_application(tmp_path):
    def measure(service, how):
        return {"left": EXAMPLES - len(service.removed), "exact": how == "exact"}

    server = serve(tmp_path, [line(1, "delete", [1])], measure=measure)
    assert server.journal.records[-1]["metrics"] == {"left": EXAMPLES - 1, "exact": True}


def test_a_thousand_lines_are_written_once_each_and_read_once(tmp_path, monkeypatch):
    reads = []
    original = Journal._checked
    monkeypatch.setattr(
        Journal,
        "_checked",
        lambda self, number, text: reads.append(number) or original(self, number, text),
    )
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    lines = [line(n, "status", [n % EXAMPLES]) for n in range(1000)]
    serve(tmp_path, lines[:500])
    assert reads == []
    server = serve(tmp_path, lines)
    assert len(reads) == 501 and server.journal.lines == 1000


@pytest.fixture(scope="module")
def single(blobs, mlp_spec):
    train = blobs[0].take(range(30))
    schedule = unroll.data.make_schedule(0, 30, batch_size=10, epochs=1)
    return SingleModel(unroll.train(mlp_spec, train, schedule))


def logged(path, lines, single, key_folder, **options):
    log = SignedLog(path / "ledger", key_folder)
    return serve(path, lines, service=single, log=log, **options), log.ledger


LOGGED = [line(1, "delete", [1, 2]), line(2, "delete", [3]), line(3, "delete", [4])]


def test_the_ledger_has_every_exact_application_once_wherever_a_kill_falls(
    tmp_path, monkeypatch, single
):
    secrets = keys.create_keys(tmp_path / "keys")
    policy = "budgeted(method='single_gradient', threshold=2)"
    whole, ledger = logged(tmp_path / "whole", LOGGED, single, secrets, policy=policy)
    entries = ledger.entries()
    assert [len(each.entry.requests) for each in entries] == [0, 3, 1]
    assert entries[-1].entry.parameters_after == whole.service.hash
    assert [r["entry"] for r in whole.journal.records if "entry" in r] == [
        each.hash for each in entries[1:]
    ]
    number = 0
    while True:
        path = tmp_path / f"{number}"
        try:
            with killed_at(monkeypatch, number, bool(number % 2)):
                logged(path, LOGGED, single, secrets, policy=policy)
            break
        except Killed:
            pass
        server, ledger = logged(path, LOGGED, single, secrets, policy=policy)
        found = ledger.entries()
        assert [each.entry for each in found] == [each.entry for each in entries]
        assert server.service.hash == whole.service.hash
        assert len(list((path / "ledger" / "recipes").glob("*.npz"))) == 3
        number += 1
    assert number > 2 * len(entries)


def test_a_ledger_that_is_not_of_the_journal_is_refused(tmp_path, single):
    secrets = keys.create_keys(tmp_path / "keys")
    logged(tmp_path / "one", LOGGED, single, secrets)
    logged(tmp_path / "two", LOGGED[:1], single, secrets)
    for name in ("one", "two"):
        other = SignedLog(tmp_path / ("two" if name == "one" else "one") / "ledger", secrets)
        with pytest.raises(InputError, match="they are not the same; restore both"):
            serve(tmp_path / name, LOGGED, service=single, log=other)
    entry = json.loads((tmp_path / "two/ledger/ledger.jsonl").read_text().splitlines()[0])
    assert entry["kind"] == "run"


def test_a_ledger_of_another_training_is_refused(tmp_path, single):
    secrets = keys.create_keys(tmp_path / "keys")
    logged(tmp_path, [], single, secrets)
    (tmp_path / "journal.jsonl").unlink()
    (tmp_path / "journal.jsonl.head").unlink()
    other, _ = single.without([9])
    trained = unroll.train(other.run.spec, other.run.dataset, other.run.schedule, seed=1)
    with pytest.raises(InputError, match=r"another entry than what is applied now \(parameters"):
        logged(tmp_path, [], SingleModel(trained), secrets)
