"""Corrupted lines: each is refused for its own reason, and taken without its corruption."""

import json
import re

import numpy as np
import pytest

from unroll.deletion.corruption import KINDS, History, Line, authentication_code, corrupt, mix_in
from unroll.deletion.requests import Register, Request, format_request, parse_request
from unroll.deletion.streams import make_stream
from unroll.errors import InputError

EXAMPLES, TEST = 40, 10
KEY = b"a key of 32 bytes, for the tests"
STREAM = "mixed(requests=12, largest=2)"
COUNT = 3 * len(KINDS)


def valid_lines(key=None):
    made = make_stream(STREAM, examples=EXAMPLES, test_examples=TEST, seed=0, key=key)
    return [made.line(number, None) for number in range(made.length)]


def serve(lines, key=None):
    """Lines and refusals (`None` where taken) of a server that applies nothing."""
    register = Register(EXAMPLES, TEST)
    for line in lines:
        try:
            request = parse_request(line.content, key=key)
            register.check(request)
        except InputError as error:
            yield line, str(error)
        else:
            register.take(request)
            yield line, None


def mixed(key=None, count=COUNT, **changes):
    settings = dict(examples=EXAMPLES, test_examples=TEST, seed=1, key=key)
    return mix_in(valid_lines(key), count, **{**settings, **changes})


@pytest.mark.parametrize("key", [None, KEY])
def test_valid_lines_are_taken_and_corrupted_ones_refused_for_their_reason(key):
    lines = mixed(key)
    for line, refusal in serve(lines, key):
        if not line.kind:
            assert refusal is None, refusal
        else:
            assert refusal is not None, f"{line.kind}: taken"
            assert re.search(line.reason, refusal), f"{line.kind}: {refusal}"
            assert "\n" not in refusal and len(refusal) < 300 and refusal.isprintable()
    kinds = {line.kind for line in lines if line.kind}
    left_out = {name for name, kind in KINDS.items() if kind.after == "key" and key is None}
    assert kinds == set(KINDS) - left_out and len(kinds) >= 40


@pytest.mark.parametrize("key", [None, KEY])
def test_the_uncorrupted_line_would_be_taken(key):
    earlier = [Request("a", 1.5, "delete", (3,)), Request("b", 2.0, "status", (1,))]
    contents = [format_request(request, key).encode() for request in earlier]
    generator = np.random.default_rng(0)
    history = History(earlier, contents, EXAMPLES, TEST, key, 7, generator)
    lines = [*map(Line, contents), Line(history.changed())]
    assert [refusal for _, refusal in serve(lines, key)] == [None] * 3
    assert history.deleted == [3] and 3 not in history.fresh


def test_no_line_is_two_lines():
    assert not any(b"\n" in line.content for line in mixed(KEY))


def test_the_code_of_authenticity_is_the_one_of_requests():
    fields = json.loads(format_request(Request("a", 1.5, "delete", (3, 1)), KEY))
    code = fields.pop("mac")
    assert authentication_code(fields, KEY) == code


def test_lines_depend_on_the_seed_alone():
    assert mixed() == mixed() != mixed(seed=2)
    assert mixed(count=0) == [Line(line.encode()) for line in valid_lines()]
    places = [[bool(line.kind) for line in mixed(count=30, seed=seed)] for seed in (1, 2)]
    assert places[0] != places[1] and sum(places[0]) == 30


def test_mistakes():
    settings = dict(examples=EXAMPLES, test_examples=TEST, seed=0)
    predictions = format_request(Request("a", 0.0, "predict", (1,)))
    with pytest.raises(InputError, match="at least one deletion"):
        mix_in([predictions], 1, **settings)
    with pytest.raises(InputError, match="no JSON"):
        mix_in(["delete"], 1, **settings)
    nothing = History([], [], EXAMPLES, TEST, None, 0, np.random.default_rng(0))
    with pytest.raises(InputError, match="unknown kind 'nonsense'"):
        corrupt("nonsense", nothing)
    for kind, needed in (("replayed line", "request"), ("already deleted", "delete")):
        with pytest.raises(InputError, match=f"needs an earlier {needed}"):
            corrupt(kind, nothing)
    with pytest.raises(InputError, match="needs an earlier key"):
        corrupt("no mac", nothing)
