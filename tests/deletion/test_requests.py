"""Reading request lines: what is one, what is none and why, macs, and the register of a stream."""

import copy
import io
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_parts import line

from unroll.deletion.requests import (
    LONGEST_LINE,
    Register,
    Request,
    _shown,
    append_line,
    cut_half_line,
    format_request,
    parse_request,
    read_lines,
)
from unroll.errors import InputError, StoreError

KEY = b"a key"
GOOD = {"request": "r-1", "time": 12.5, "delete": [17, 4]}


def refusal(content, key=None):
    with pytest.raises(InputError) as found:
        parse_request(content, key=key)
    message = str(found.value)
    assert "\n" not in message and len(message) < 300 and message.isascii(), message
    return message


def changed(**fields):
    return json.dumps({**GOOD, **fields}).encode()


def test_a_request_is_read():
    assert parse_request(changed()) == Request("r-1", 12.5, "delete", (17, 4))
    assert parse_request(b' {"time":3,"predict":[0],"request":"a b"} ').time == 3.0
    assert parse_request(line(2, "status", [1])).kind == "status"


names = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=128)
times = st.floats(0, allow_nan=False, allow_infinity=False)
kinds = st.sampled_from(["delete", "predict", "status"])
ids = st.lists(st.integers(0, 2**80), min_size=1, max_size=5, unique=True).map(tuple)


@given(names, times, kinds, ids, st.sampled_from([None, KEY]))
def test_what_is_formatted_is_read_again(name, time, kind, ids, key):
    request = Request(name, time, kind, ids)
    assert parse_request(format_request(request, key).encode(), key=key) == request


BAD = [
    (b"", "no line with one JSON object"),
    (b"  ", "no line with one JSON object"),
    (b"{", "no JSON"),
    (b"nonsense", "no JSON"),
    (changed()[:-1], "no JSON"),
    (changed() + changed(), "no JSON"),
    (changed() + b"\n" + changed(), "no line with one JSON object"),
    (b"\xff\xfe{}", "byte 0 is not UTF-8"),
    (b"[" * 100_000, "nested too deeply|no JSON"),
    (b'{"request": "' + b"a" * 2**20 + b'"}', "longer than 1048576 bytes"),
    (b"[1, 2]", "no JSON object"),
    (b"17", "no JSON object"),
    (b'{"request":"a","request":"b","time":1,"delete":[1]}', "'request' occurs twice"),
    (b'{"request":"a","time":1,"delete":[1],"delete":[2]}', "'delete' occurs twice"),
    (changed(extra=1), "unknown field 'extra'"),
    (changed(**{"x" * 500: 1}), "unknown field 'xxx"),
    (changed(**{"\u00e9\n": 1}), "unknown field"),
    (changed(predict=[1]), "exactly one of delete, predict and status; found delete and predict"),
    (b'{"request":"a","time":1}', "exactly one of delete, predict and status; found none"),
    (b'{"time":1,"delete":[1]}', "'request' is missing"),
    (b'{"request":"a","delete":[1]}', "'time' is missing"),
    (changed(request=""), "no name"),
    (changed(request="a" * 129), "no name"),
    (changed(request="caf\u00e9"), "no name"),
    (changed(request="a\n"), "no name"),
    (changed(request="\ud800"), "no name"),
    (changed(request=7), "no name"),
    (changed(request=None), "no name"),
    (changed(time="1"), "no time"),
    (changed(time=True), "no time"),
    (changed(time=None), "no time"),
    (changed(time=-0.5), "no time"),
    (changed(time=10**400), "no time"),
    (b'{"request":"a","time":1e999,"delete":[1]}', "no time"),
    (b'{"request":"a","time":NaN,"delete":[1]}', "NaN is no number"),
    (b'{"request":"a","time":-Infinity,"delete":[1]}', "-Infinity is no number"),
    (b'{"request":"a","time":1,"delete":[' + b"9" * 5000 + b"]}", "no JSON"),
    (changed(delete=17), "no list of ids"),
    (changed(delete=[]), "no list of ids"),
    (changed(delete={"1": 1}), "no list of ids"),
    (changed(delete=[True]), "True is no id"),
    (changed(delete=[1.0]), "1.0 is no id"),
    (changed(delete=["1"]), "'1' is no id"),
    (changed(delete=[None]), "None is no id"),
    (changed(delete=[-1]), "-1 is no id"),
    (changed(delete=[[1]]), "is no id"),
    (changed(delete=[3, 4, 3]), "id 3 occurs twice"),
    (changed(mac="0" * 63), "not 64 hex digits"),
    (changed(mac=5), "not 64 hex digits"),
    (changed(mac="A" * 64), "not 64 hex digits in lower case"),
    (changed(time="\ud83d"), "no time"),
    (changed(delete=[1.5e3]), "1500.0 is no id"),
    (b'{"request":"a","time":1,"delete":[1e3]}', "1000.0 is no id"),
    (b'{"request":"a","time":1,"delete":[-0.0]}', "-0.0 is no id"),
    (b'{"request":"a","time":1,"delete":[0, -0]}', "id 0 occurs twice"),
    (b'{"request":"a","time":1,"delete":[01]}', "no JSON"),
    (b'{"request":"a","time":1,"delete":[{"x":1,"x":1}]}', "'x' occurs twice"),
    (b'{"request":"a","time":1,"d\\u0065lete":[1],"delete":[2]}', "'delete' occurs twice"),
    (b"\xef\xbb\xbf" + changed(), "no JSON"),
    (changed() + b"\0", "no JSON"),
    (changed() + b"\xc2\xa0", "no JSON"),
    (b"\xed\xa0\x80", "byte 0 is not UTF-8"),
    (b"\xc0\xae", "byte 0 is not UTF-8"),
]


@pytest.mark.parametrize(("content", "message"), BAD, ids=range(len(BAD)))
def test_what_is_no_request_is_refused_in_one_line(content, message):
    with pytest.raises(InputError, match=message):
        raise InputError(refusal(content))


def test_what_is_read_though_it_looks_odd():
    assert parse_request(changed() + b"\r") == parse_request(changed())
    assert str(parse_request(b'{"request":"a","time":-0.0,"delete":[1]}').time) == "0.0"
    assert parse_request(b'{"request":"a","time":1e3,"delete":[1]}').time == 1000.0
    assert parse_request(b'{"request":"\\u0061","time":1,"delete":[1]}').name == "a"


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({str(number): 0 for number in range(50_000)})[:-1] + ', "49999": 0}',
        # All of these numbers have the same hash.
        '{"request":"a","time":1,"delete":%s}' % [n * (2**61 - 1) for n in range(40_000)],
    ],
    ids=["names", "ids"],
)
def test_no_line_takes_long(content):
    """As it would where each name or id is compared with all others."""
    begun = time.process_time()
    try:
        parse_request(content.encode())
    except InputError as error:
        assert "'49999' occurs twice" in str(error)
    assert time.process_time() - begun < 3


def test_a_value_that_is_too_deep_to_print_is_shown():
    value = []
    for _ in range(100_000):
        value = [value]
    assert _shown(value) == "something huge"


def test_macs():
    signed = format_request(Request("r-1", 12.5, "delete", (17, 4)), KEY).encode()
    assert parse_request(signed, key=KEY) == parse_request(signed)
    # The form is canonical, so other spaces and another order are the same request.
    fields = json.loads(signed)
    assert parse_request(json.dumps(dict(reversed(fields.items()))).encode(), key=KEY)
    assert "mac is missing" in refusal(changed(), KEY)
    assert "mac is wrong" in refusal(signed, b"another key")
    for name, value in [("request", "r-2"), ("time", 12.0), ("delete", [17, 5])]:
        assert "mac is wrong" in refusal(json.dumps({**fields, name: value}).encode(), KEY)
    renamed = {("status" if k == "delete" else k): v for k, v in fields.items()}
    assert "mac is wrong" in refusal(json.dumps(renamed).encode(), KEY)


def register():
    """Of 6 training and 3 test examples: 1 deleted, 2 approximated, 3 waiting, at time 5."""
    made = Register(6, 3)
    for number, example, how in [(1, 1, "exact"), (2, 2, "approximate"), (5, 3, None)]:
        request = Request(f"r-{number}", float(number), "delete", (example,))
        made.check(request)
        made.take(request)
        if how:
            made.apply(how)
    return made


def facts(made):
    return copy.deepcopy(vars(made))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (("r-2", 6, "delete", (4,)), r"'r-2' was taken before \(replayed\)"),
        (("r-2", 6, "status", (4,)), "replayed"),
        (("a", 4.9, "delete", (4,)), "clock goes back: time=4.9 after 5.0"),
        (("a", 4.9, "predict", (0,)), "clock goes back"),
        (("a", 5, "delete", (6,)), "unknown id 6; there are 6 training examples"),
        (("a", 5, "delete", (10**4000,)), "unknown id 1000"),
        (("a", 5, "delete", (10**5000,)), "unknown id something huge"),
        (("a", 5, "status", (6,)), "unknown id 6; there are 6 training"),
        (("a", 5, "predict", (3,)), "unknown id 3; there are 3 test examples"),
        (("a", 5, "delete", (4, 1)), "id 1 is already deleted"),
        (("a", 5, "delete", (2,)), r"waiting for deletion already \(approximated"),
        (("a", 5, "delete", (3,)), "id 3 is waiting for deletion already;"),
        (("a", 5, "delete", (0, 4, 5)), "no example would be left"),
    ],
)
def test_what_cannot_be_taken_is_refused_and_changes_nothing(request_, message):
    made = register()
    before = facts(made)
    with pytest.raises(InputError, match=message) as found:
        made.check(Request(*request_))
    assert "\n" not in str(found.value)
    assert facts(made) == before


def test_states_of_an_example():
    made = register()
    assert [made.status(i) for i in range(5)] == [
        *["present", "deleted", "approximated", "waiting", "present"]
    ]
    assert [request.ids for request in made.due("exact")] == [(2,), (3,)]
    assert [request.ids for request in made.due("approximate")] == [(3,)]
    made.apply("approximate")
    assert made.status(3) == "approximated" and made.due("approximate") == []
    made.apply("exact")
    assert made.deleted == {1, 2, 3} and made.due("exact") == [] and made.status(2) == "deleted"
    made.check(Request("same time", 5.0, "delete", (0, 4)))


def test_lines_of_a_file():
    longest = b"a" * LONGEST_LINE
    content = b"one\n\n" + longest + b"\n" + longest + b"b" * 3_000_000 + b"\nlast\nwithout end"
    found = list(read_lines(io.BytesIO(content)))
    assert found == [b"one", b"", longest, longest + b"b", b"last"]
    assert list(read_lines(io.BytesIO(b""))) == []


def test_a_half_written_line_is_cut_off_and_written_again(tmp_path):
    path = tmp_path / "requests.jsonl"
    cut_half_line(path)
    append_line(path, "one")
    path.write_bytes(path.read_bytes() + b"half")
    cut_half_line(path)
    append_line(path, "two")
    assert path.read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize("write", [cut_half_line, lambda path: append_line(path, "one")])
def test_what_cannot_be_written_is_said(tmp_path, write):
    with pytest.raises(StoreError, match="cannot write the requests .*Is a directory"):
        write(tmp_path)
