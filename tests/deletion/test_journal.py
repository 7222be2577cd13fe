"""The journal: what comes back after a kill, and every kind of damage by its name."""

import json
import logging

import pytest
from serving_parts import Killed, killed_at

from unroll.deletion import journal as module
from unroll.deletion.journal import Journal, line_hash
from unroll.errors import InputError, StoreError

LINES = [b"first", b"second", b"third"]


def fate(number):
    return {"record": "accepted", "line": number, "sha256": line_hash(LINES[number - 1])}


def filled(path, count=3):
    with Journal.open(path) as journal:
        journal.begin({"policy": "immediately", "keyed": False})
        for number in range(1, count + 1):
            journal.append(fate(number))
    return path


@pytest.fixture
def path(tmp_path):
    return filled(tmp_path / "journal.jsonl")


def contents(path):
    return {
        each.name: each.read_bytes() for each in path.parent.iterdir() if "lock" not in each.name
    }


def refusal(path):
    before = contents(path)
    with pytest.raises(InputError) as found:
        Journal.open(path)
    assert "\n" not in str(found.value)
    assert contents(path) == before, "a damaged journal is evidence"
    return str(found.value)


def test_records_come_back(path):
    with Journal.open(path) as journal:
        kinds = [record["record"] for record in journal.records]
        assert kinds == ["begin", "accepted", "accepted", "accepted"]
        assert journal.lines == 3 and journal.line_hashes == list(map(line_hash, LINES))
        journal.begin({"keyed": False, "policy": "immediately"})
        assert len(journal.records) == 4


def test_it_is_of_one_server(path):
    with Journal.open(path) as journal:
        message = "journal of another server: policy differs"
        with pytest.raises(InputError, match=message):
            journal.begin({"policy": "batches(size=2)", "keyed": False})
        with pytest.raises(InputError, match="more, policy differ;"):
            journal.begin({"policy": "batches(size=2)", "keyed": False, "more": 1})


def test_a_second_server_is_kept_out_until_the_first_has_ended(path):
    with Journal.open(path), pytest.raises(InputError, match=r"another server \(process \d+\)"):
        Journal.open(path)
    Journal.open(path).close()


def test_consumed_lines_must_stay(path):
    with Journal.open(path) as journal:
        journal.verify_lines([*LINES, b"a fourth that was not consumed"])
        with pytest.raises(InputError, match="line 2 of the requests is not the one"):
            journal.verify_lines([b"first", b"changed", b"third"])
        with pytest.raises(InputError, match="line 1 of the requests is not the one"):
            journal.verify_lines([b"second", b"first", b"third"])
        with pytest.raises(InputError, match="line 3 of the requests is missing"):
            journal.verify_lines(LINES[:2])


@pytest.mark.parametrize("size", [1, 20, 10**6])
def test_half_of_a_record_is_cut_off_and_said(path, caplog, size):
    whole = path.read_bytes()
    half = whole.splitlines()[-1][:size]
    path.write_bytes(whole + half)
    with caplog.at_level(logging.WARNING), Journal.open(path) as journal:
        assert journal.lines == 3
    assert path.read_bytes() == whole
    assert [record.message.count("half-written") for record in caplog.records] == [1]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("number", range(2))
def test_a_kill_between_two_steps_of_an_append(path, monkeypatch, number, before):
    with Journal.open(path) as journal, killed_at(monkeypatch, number, before):
        with pytest.raises(Killed):
            journal.append({"record": "applied", "requests": []})
    with Journal.open(path) as journal:
        # In this process what was written stays in the file, synced or not.
        assert [record["record"] for record in journal.records][3:] == ["accepted", "applied"]
        journal.append({"record": "applied", "requests": ["more"]})
    with Journal.open(path) as journal:
        assert len(journal.records) == 6


def test_a_record_that_was_torn_never_happened(path, monkeypatch):
    def torn(descriptor, data):
        module.os.write(descriptor, data[: len(data) // 2])
        raise Killed

    whole = path.read_bytes()
    with Journal.open(path) as journal:
        monkeypatch.setattr(module, "_write", torn)
        with pytest.raises(Killed):
            journal.append({"record": "applied", "requests": []})
    monkeypatch.undo()
    assert path.read_bytes() != whole
    with Journal.open(path) as journal:
        assert journal.lines == 3 and len(journal.records) == 4


def test_a_full_disk_leaves_no_half_record(path, monkeypatch):
    def full(descriptor, data):
        module.os.write(descriptor, data[:5])
        raise OSError(28, "No space left on device")

    whole = path.read_bytes()
    with Journal.open(path) as journal:
        monkeypatch.setattr(module, "_write", full)
        with pytest.raises(StoreError, match="No space left"):
            journal.append({"record": "applied"})
        assert path.read_bytes() == whole and len(journal.records) == 4
        with pytest.raises(InputError, match="cannot be written"):
            journal.append({"record": "applied", "seconds": float("nan")})


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


def change_one_byte(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"line":2', b'"line":5'))


def swap(path):
    lines = lines_of(path)
    path.write_bytes(b"".join([lines[0], lines[2], lines[1], lines[3]]))


def drop_middle(path):
    lines = lines_of(path)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))


def repeat(path):
    lines = lines_of(path)
    path.write_bytes(b"".join(lines + lines[-1:]))


def drop_last(path):
    path.write_bytes(b"".join(lines_of(path)[:-1]))


def cut_in_the_middle(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def other_spaces(path):
    path.write_bytes(path.read_bytes().replace(b'"line":2', b'"line": 2'))


def other_numbers(path):
    # A number that is equal and other bytes.
    path.write_bytes(path.read_bytes().replace(b'"line":2', b'"line":2.0'))


def no_object(path):
    lines = lines_of(path)
    path.write_bytes(b"".join([lines[0], b"[]\n", *lines[2:]]))


def forged(path):
    """A record changed with its hash recomputed."""
    lines = lines_of(path)
    record = json.loads(lines[1])
    previous = record.pop("previous")
    del record["hash"]
    record["line"] = 7
    made = module._chained(record, previous)
    path.write_bytes(b"".join([lines[0], module.canonical(made) + b"\n", *lines[2:]]))


def emptied(path):
    path.write_bytes(b"")


def removed(path):
    path.unlink()


def removed_head(path):
    path.with_name("journal.jsonl.head").unlink()


def broken_head(path):
    path.with_name("journal.jsonl.head").write_text("{}")


def other_head(path):
    filled(path.with_name("other.jsonl"), 2)
    path.with_name("other.jsonl.head").replace(path.with_name("journal.jsonl.head"))
    lines = lines_of(path)
    record = json.loads(lines[-1])
    path.with_name("journal.jsonl.head").write_text(
        json.dumps({"records": 2, "hash": record["hash"]})
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_one_byte, "record 3 was changed"),
        (swap, "record 2 does not follow"),
        (drop_middle, "record 3 does not follow"),
        (repeat, "record 5 does not follow"),
        (drop_last, "was cut: it has 3 records of 4"),
        (cut_in_the_middle, "was cut: it has 1 records of 4|was cut: it has 2 records of 4"),
        (removed, "was cut: it has 0 records of 4"),
        (emptied, "was cut: it has 0 records of 4"),
        (other_spaces, "record 3 was changed"),
        (other_numbers, "record 3 was changed"),
        (no_object, "record 2 cannot be read"),
        (forged, "record 3 does not follow"),
        (removed_head, "journal.jsonl.head is missing"),
        (broken_head, "journal.jsonl.head cannot be read"),
        (other_head, "head is not of"),
    ],
)
def test_damage_is_named_and_nothing_is_touched(path, damage, message):
    damage(path)
    text = refusal(path)
    with pytest.raises(InputError, match=message):
        raise InputError(text)
    assert "restore it" in text


@pytest.mark.parametrize("place", range(0, 400, 37))
def test_any_changed_byte_is_found(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InputError):
        Journal.open(path)


@pytest.mark.parametrize("record", [{}, {"record": ["accepted"]}, {"record": "accepted"}])
def test_a_record_in_good_order_that_says_nothing_is_damage(path, record):
    content = path.read_bytes()
    previous = json.loads(content.splitlines()[-1])["hash"]
    path.write_bytes(content + module.canonical(module._chained(record, previous)) + b"\n")
    assert "record 5 cannot be read" in refusal(path)


def test_what_a_kill_left_of_a_head_is_overwritten(path):
    left = path.with_name(".journal.jsonl.head")
    left.write_text("half of a he")
    with Journal.open(path) as journal:
        journal.append({"record": "applied", "requests": []})
    assert not left.exists()
    Journal.open(path).close()


def test_an_empty_journal_has_its_name_on_the_disk_before_anything_is_in_it(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    path.touch()  # killed between its making and the synchronisation of the folder
    with pytest.raises(Killed), killed_at(monkeypatch, 0):
        Journal.open(path)


def test_a_disk_that_does_not_even_take_back_is_said(path, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    with Journal.open(path) as journal:
        monkeypatch.setattr(module, "_write", broken)
        monkeypatch.setattr(module.os, "ftruncate", broken)
        with pytest.raises(StoreError, match="Input/output error"):
            journal.append({"record": "applied"})


def test_a_folder_is_no_journal(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        Journal.open(tmp_path)
