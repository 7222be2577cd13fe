"""The ledger: every way to tamper with it, kills while appending, keys, locks and clocks."""

import dataclasses
import datetime
import json
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_parts import at, entry, filled, hash_of, open_ledger

from unroll.deletion import keys
from unroll.deletion.entry import GENESIS, Entry, canonical, parse_line
from unroll.deletion.ledger import Ledger
from unroll.errors import InputError, StoreError


def links(ledger, **options):
    return [(problem.line, problem.link) for problem in ledger.verify(**options)]


def lines_of(ledger):
    return ledger.path.read_bytes().splitlines(keepends=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A ledger of four entries and its bytes; tests that change it restore them."""
    ledger, private = filled(tmp_path_factory.mktemp("written"))
    return ledger, private, ledger.path.read_bytes()


@pytest.fixture
def ledger(written):
    ledger, _, content = written
    ledger.path.write_bytes(content)
    yield ledger
    ledger.path.write_bytes(content)


def test_entries_come_back_as_they_were_appended(ledger):
    found = ledger.entries()
    assert [signed.entry for signed in found] == [entry(number) for number in range(4)]
    assert [signed.index for signed in found] == [0, 1, 2, 3]
    assert found[2].time == "2026-01-01T00:00:02.000000Z"
    assert [found[0].previous, found[3].previous] == [GENESIS, found[2].hash]
    assert ledger.head() == found[-1].hash
    assert ledger.verify() == [] == ledger.verify(expected_head=ledger.head())


def test_the_form_in_bytes_is_fixed(ledger):
    """Another release must still read and check what this one wrote."""
    import hashlib

    assert canonical({"b": [1, 2.5], "a": "é"}) == b'{"a":"\\u00e9","b":[1,2.5]}'
    first = lines_of(ledger)[0]
    fields = json.loads(first)
    signature = bytes.fromhex(fields.pop("signature"))
    content = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    ledger.public_key.verify(signature, content)  # raises if it does not hold
    assert hashlib.sha256(content).hexdigest() == json.loads(lines_of(ledger)[1])["previous"]


def test_an_empty_ledger_verifies(tmp_path):
    ledger, _ = open_ledger(tmp_path)
    assert ledger.verify() == [] and ledger.entries() == [] and ledger.head() == GENESIS


def other(value):
    """Another value that an entry could have there."""
    if isinstance(value, dict):
        return {**value, "device": "another"}
    if isinstance(value, list):
        return value[:1]
    if isinstance(value, int):
        return value + 1
    if value in ("run", "deletion"):
        return "run" if value == "deletion" else "deletion"
    if value.endswith("Z"):
        return value.replace("02.0", "02.5")
    return hash_of(14) if len(value) == 64 else ("0" * 128 if len(value) == 128 else value + "x")


FIELDS = [field.name for field in dataclasses.fields(Entry)]


@pytest.mark.parametrize("name", [*FIELDS, "index", "time", "previous", "signature"])
def test_a_changed_field_is_found(ledger, name):
    lines = lines_of(ledger)
    fields = json.loads(lines[2])
    fields[name] = other(fields[name])
    lines[2] = canonical(fields) + b"\n"
    parse_line(lines[2][:-1])  # still of the right form, so only the signature tells
    ledger.path.write_bytes(b"".join(lines))
    assert (3, "wrong signature") in links(ledger)
    with pytest.raises(InputError, match="does not verify: line 3"):
        ledger.entries()


@pytest.mark.parametrize("name", ["metrics", "environment", "code", "packages"])
def test_a_changed_value_inside_a_field_is_found(ledger, name):
    lines = lines_of(ledger)
    fields = json.loads(lines[1])
    for key in fields[name]:
        changed = {**fields, name: {**fields[name], key: "other"}}
        ledger.path.write_bytes(b"".join([lines[0], canonical(changed) + b"\n", *lines[2:]]))
        assert (2, "wrong signature") in links(ledger)


@pytest.mark.parametrize("name", [*FIELDS, "format", "index", "time", "previous", "signature"])
def test_a_missing_field_is_found(ledger, name):
    lines = lines_of(ledger)
    fields = json.loads(lines[2])
    del fields[name]
    ledger.path.write_bytes(b"".join([*lines[:2], canonical(fields) + b"\n", lines[3]]))
    assert links(ledger) == [(3, "unreadable line")]


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_changed_byte_is_found(written, data):
    ledger, _, content = written
    place = data.draw(st.integers(0, len(content) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    ledger.path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
    try:
        assert ledger.verify()
    finally:
        ledger.path.write_bytes(content)


@given(data=st.data())
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_removed_or_added_bytes_are_found(written, data):
    """But for the removal of whole lines at the end, which only a published head shows."""
    ledger, _, content = written
    head = ledger.head()
    begin = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(begin, len(content)))
    added = data.draw(st.binary(max_size=3))
    changed = content[:begin] + added + content[end:]
    ledger.path.write_bytes(changed)
    try:
        assert bool(ledger.verify(expected_head=head)) == (changed != content)
    finally:
        ledger.path.write_bytes(content)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"index":2', b'"index": 2'),
        (b'"replay"', b'"\\u0072eplay"'),
        (b'"seconds":1.5', b'"seconds":1.50'),
        (b'"index":2', b'"index":7,"index":2'),
        (b"{", b" {"),
    ],
)
def test_other_bytes_of_the_same_meaning_are_found(ledger, old, new):
    """The signature holds, since it is over the one canonical form."""
    lines = lines_of(ledger)
    assert old in lines[2]
    lines[2] = lines[2].replace(old, new, 1)
    ledger.path.write_bytes(b"".join(lines))
    assert links(ledger) == [(3, "changed bytes")]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([1, 2, 3], [(1, "missing entry"), (1, "broken chain")]),
        ([0, 3], [(2, "missing entry"), (2, "broken chain")]),
        ([0, 1, 1, 2, 3], [(3, "replayed entry"), (3, "broken chain")]),
        ([0, 1, 2, 3, 1], [(5, "replayed entry"), (5, "broken chain"), (5, "clock goes back")]),
        (
            [0, 2, 1, 3],
            [
                *[(2, "missing entry"), (2, "broken chain")],
                *[(3, "out of order"), (3, "broken chain"), (3, "clock goes back")],
                (4, "broken chain"),
            ],
        ),
    ],
)
def test_missing_replayed_and_reordered_entries_are_named(ledger, order, expected):
    lines = lines_of(ledger)
    ledger.path.write_bytes(b"".join(lines[index] for index in order))
    assert links(ledger) == expected


def test_message_names_the_range_of_what_is_missing(ledger):
    lines = lines_of(ledger)
    ledger.path.write_bytes(lines[3])
    assert "entry 0 to 2 should stand before entry 3" in str(ledger.verify()[0])


def test_a_line_of_another_ledger_with_the_same_key_is_found(ledger, written, tmp_path):
    _, private, _ = written
    second = Ledger.open(tmp_path / "other.jsonl", ledger.public_key)
    for number in range(4):
        second.append(entry(number + 7), private, now=at(number))
    lines = lines_of(ledger)
    lines[2] = lines_of(second)[2]
    ledger.path.write_bytes(b"".join(lines))
    assert links(ledger) == [(3, "broken chain"), (4, "broken chain")]


def test_a_cut_tail_shows_only_against_a_published_head(ledger):
    head = ledger.head()
    ledger.path.write_bytes(b"".join(lines_of(ledger)[:3]))
    assert ledger.verify() == []
    (problem,) = ledger.verify(expected_head=head)
    assert problem.link == "head" and "it was cut or replaced" in problem.message


def test_a_published_head_stays_valid_while_the_log_grows(tmp_path):
    ledger, private = filled(tmp_path, 2)
    head = ledger.head()
    ledger.append(entry(2), private, now=at(2))
    assert ledger.verify(expected_head=head) == []
    ledger.path.unlink()
    assert links(ledger, expected_head=head) == [(0, "head")]


def test_another_key_does_not_verify_and_cannot_append(ledger, written, tmp_path):
    keys.create_keys(tmp_path / "keys")
    foreign = Ledger.open(ledger.path, keys.load_verifying_key(tmp_path / "keys"))
    assert links(foreign) == [(line, "wrong signature") for line in range(1, 5)]
    private = keys.load_signing_key(tmp_path / "keys")
    with pytest.raises(InputError, match="the private key does not belong to the public key"):
        ledger.append(entry(), private)
    with pytest.raises(InputError, match="does not verify"):
        foreign.append(entry(), private)


def test_a_clock_that_goes_back_is_refused_and_found(tmp_path):
    ledger, private = filled(tmp_path, 2)
    with pytest.raises(InputError, match="the clock went back: it is 2026-01-01T00:00:00.5"):
        ledger.append(entry(), private, now=at(0.5))
    assert len(ledger.entries()) == 2
    ledger.append(entry(), private, now=at(1))  # the same moment is no step back
    # A writer with the key could sign one all the same.
    forged = dataclasses.replace(ledger.entries()[2], index=3, time="2026-01-01T00:00:00.000000Z")
    forged = dataclasses.replace(forged, previous=ledger.head())
    signature = private.sign(forged.content).hex()
    line = dataclasses.replace(forged, signature=signature).line
    ledger.path.write_bytes(ledger.path.read_bytes() + line + b"\n")
    assert links(ledger) == [(4, "clock goes back")]


def test_a_time_without_zone_is_refused(tmp_path):
    ledger, private = open_ledger(tmp_path)
    with pytest.raises(InputError, match="needs its zone"):
        ledger.append(entry(), private, now=datetime.datetime(2026, 1, 1))


def test_times_are_compared_in_one_zone(tmp_path):
    ledger, private = filled(tmp_path, 1)
    zone = datetime.timezone(datetime.timedelta(hours=5))
    signed = ledger.append(entry(), private, now=at(1).astimezone(zone))
    assert signed.time == "2026-01-01T00:00:01.000000Z"


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_half_written_line_is_cut_off_with_a_warning(tmp_path, caplog, kept):
    ledger, private = filled(tmp_path, 3)
    whole = b"".join(lines_of(ledger)[:2])
    ledger.path.write_bytes(whole + lines_of(ledger)[2][:kept])
    assert links(ledger) == [(3, "half-written line")]
    again = Ledger.open(ledger.path, ledger.public_key)
    assert len(again.entries()) == 2  # reading repairs nothing
    assert ledger.path.stat().st_size > len(whole)
    again.append(entry(2), private, now=at(5))
    assert "half-written line of" in caplog.text and "must be appended again" in caplog.text
    assert again.verify() == [] and len(again.entries()) == 3


def test_a_damaged_ledger_is_not_appended_to(ledger, written):
    _, private, content = written
    ledger.path.write_bytes(content.replace(b"replay", b"retain", 1))
    with pytest.raises(InputError, match="does not verify: line 1: wrong signature"):
        Ledger.open(ledger.path, ledger.public_key).append(entry(), private)


def test_two_writers_take_turns_and_the_second_is_told(tmp_path):
    ledger, private = filled(tmp_path, 1)
    second = Ledger.open(ledger.path, ledger.public_key)
    with ledger._writing():
        message = f"is being written by process {os.getpid()} on .*; wait for it or end it"
        with pytest.raises(StoreError, match=message):
            second.append(entry(1), private, now=at(1))
    second.append(entry(1), private, now=at(1))
    ledger.append(entry(2), private, now=at(2))  # sees what the other one wrote
    assert ledger.verify() == [] and len(ledger.entries()) == 3


def test_a_lock_file_that_was_left_behind_locks_nothing(tmp_path):
    ledger, private = open_ledger(tmp_path)
    (tmp_path / "ledger.jsonl.lock").write_text("process 1 on elsewhere\n")
    ledger.append(entry(), private)
    assert len(ledger.entries()) == 1


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    ledger, private = filled(tmp_path, 1)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[: len(line) // 2]))
    with pytest.raises(StoreError, match="cannot append"):
        ledger.append(entry(1), private, now=at(1))
    monkeypatch.undo()
    assert ledger.verify() == [] and len(ledger.entries()) == 1
    ledger.append(entry(1), private, now=at(1))
    assert len(ledger.entries()) == 2


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from ledger_parts import entry, open_ledger
ledger, private = open_ledger(Path(sys.argv[2]))
for number in range(10**6):
    ledger.append(entry(number), private)
    print(number, flush=True)
"""


@pytest.mark.parametrize("seconds", [0.0, 0.013])
def test_nothing_that_was_confirmed_is_lost_in_a_kill(tmp_path, seconds):
    ledger, private = open_ledger(tmp_path)
    command = [sys.executable, "-c", WRITER, os.path.dirname(__file__), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    confirmed = 1 + len([line for line in process.stdout.read().split("\n") if line])
    process.wait()
    ledger.append(entry(), private)  # no lock is left
    assert ledger.verify() == []
    assert len(ledger.entries()) - 1 in (confirmed, confirmed + 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(kind="deleted"), "kind='deleted' is not one of"),
        (dict(requests=["7"]), "requests=.* is not a sorted list of different hashes"),
        (dict(requests=[hash_of(2), hash_of(1)]), "sorted list"),
        (dict(requests=[hash_of(2), hash_of(2)]), "sorted list"),
        (dict(dataset=None), "dataset=None is not a hex SHA-256 hash"),
        (dict(parameters_after="A" * 64), "parameters_after='A"),
        (dict(initial=""), "initial='' is not a hex SHA-256 hash or None"),
        (dict(seed=1.0), "seed=1.0 is not a whole number"),
        (dict(method=None), "method=None is not a text"),
        (dict(metrics=[]), "metrics=.* is not a dictionary"),
        (dict(metrics={"error": float("nan")}), "cannot be written as JSON"),
        (dict(metrics={"error": open}), "cannot be written as JSON"),
    ],
)
def test_mistakes_in_an_entry_are_refused_when_it_is_made(changes, message):
    with pytest.raises(InputError, match=message):
        entry(**changes)


def test_keys_are_private_and_never_overwritten(tmp_path):
    folder = keys.create_keys(tmp_path / "keys")
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert len(list(folder.iterdir())) == 3 and len(keys.load_salt(folder)) == 32
    with pytest.raises(InputError, match="exists; keys are never overwritten"):
        keys.create_keys(folder)


LOADERS = {
    "signing.pem": keys.load_signing_key,
    "verifying.pem": keys.load_verifying_key,
    "salt.hex": keys.load_salt,
}


@pytest.mark.parametrize("name", LOADERS)
def test_wrong_or_missing_keys_are_one_line(tmp_path, name):
    load = LOADERS[name]
    with pytest.raises(InputError, match="there is no key .*; make one with create_keys"):
        load(tmp_path)
    path = keys.create_keys(tmp_path / "keys") / name
    wrong = tmp_path / "keys" / ("signing.pem" if name != "signing.pem" else "verifying.pem")
    for content in (wrong.read_bytes(), b"", b"\xff\xfe", path.read_bytes()[:40]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"is no .*create_keys") as error:
            load(tmp_path / "keys")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["signing.pem", "salt.hex"])
def test_secrets_that_others_can_read_are_refused(tmp_path, name):
    folder = keys.create_keys(tmp_path / "keys")
    (folder / name).chmod(0o644)
    with pytest.raises(InputError, match=r"can be read by others \(mode 644\); run chmod 600"):
        LOADERS[name](folder)


def test_wrong_arguments_of_open(tmp_path):
    _, private = open_ledger(tmp_path)
    with pytest.raises(InputError, match="is a folder"):
        Ledger.open(tmp_path, private.public_key())
    with pytest.raises(InputError, match="needs an Ed25519 public key"):
        Ledger.open(tmp_path / "ledger.jsonl", b"key")
