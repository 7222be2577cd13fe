"""The report of a server: counts, costs and waits from a journal that is known by hand."""

import json

import pytest

from unroll.errors import InputError
from unroll.report.serving import Served, summarize_serving, write_serving

SERVED = Served("toy", "budgeted", "stream", 10, 2, 0.0, "m3", "m3")


def applied(how, requests, time, gradients, seconds, **metrics):
    return {
        "record": "applied",
        "how": how,
        "requests": requests,
        "time": time,
        "example_gradients": gradients,
        "seconds": seconds,
        "estimates": {},
        "metrics": metrics,
    }


def journal():
    return [
        {"record": "begin"},
        {"record": "accepted", "request": "a", "time": 1.0, "delete": [1, 2]},
        applied("approximate", ["a"], 1.0, 5, 1.0, test_accuracy=0.5, drift=0.25),
        {"record": "refused", "why": "this is no JSON (x); write some"},
        {"record": "answered", "request": "q"},
        {"record": "accepted", "request": "b", "time": 2.0, "delete": [3]},
        applied("approximate", ["b"], 2.0, 5, 2.0, test_accuracy=0.75),
        applied("exact", ["a", "b"], 2.0, 20, 4.0, test_accuracy=1.0),
    ]


def test_numbers_of_a_journal():
    found = summarize_serving(journal(), SERVED)
    assert [found[name] for name in ("lines", "taken", "refused", "accepted")] == [4, 3, 1, 2]
    assert found["deleted_examples"] == 3 and found["exact"] is True
    assert found["applications"] == {"approximate": 2, "exact": 1}
    # Two epochs over 8 examples, then over 7.
    assert found["retraining_gradients"] == 30 and found["of_retraining"] == 1.0
    assert found["seconds_per_deletion"] == 3.5
    assert found["accuracy"] == [0.5, 0.75, 1.0]
    assert found["drift"] == {"measured": 1, "largest": 0.25}
    assert found["refusals"] == {"this is no JSON (x)": 1}


def test_refusals_for_the_same_reason_are_counted_together():
    reasons = [f"id {number} is already deleted; leave it out" for number in range(30)]
    reasons += ["unknown field 'a; b'; leave it out", 'unknown field "it\'s"; leave it out']
    reasons += [f"time={value} is no time; give" for value in ("-1.0", "'now'", "1e-05")]
    records = [*journal(), *({"record": "refused", "why": why} for why in reasons)]
    assert summarize_serving(records, SERVED)["refusals"] == {
        "id ... is already deleted": 30,
        "time=... is no time": 3,
        "unknown field ...": 2,
        "this is no JSON (x)": 1,
    }


def test_when_requests_were_acted_on():
    found = summarize_serving(journal(), SERVED)
    # a from 1 to 2, then b with the exact one behind it from 2 to 8.
    assert found["queues"]["until acted on"]["waits"] == [1.0, 6.0]
    # All work is for both, from 2 to 9.
    assert found["queues"]["until deleted"]["waits"] == [8.0, 7.0]


def test_seconds_of_a_gradient_make_the_queue_the_same_everywhere():
    served = Served("toy", "p", "s", 10, 2, 0.1, "m3", "other")
    found = summarize_serving(journal(), served)
    assert found["queues"]["until acted on"]["waits"] == pytest.approx([0.5, 2.5])
    assert found["exact"] is False


def test_pages(tmp_path):
    page = write_serving(journal(), SERVED, tmp_path, "Title").read_text()
    assert "yes, bit for bit" in page and "| test accuracy, lowest | 0.5 |" in page
    assert (tmp_path / "requests.png").stat().st_size > 1000
    assert json.loads((tmp_path / "report.json").read_text())["lines"] == 4


def test_nothing_was_asked(tmp_path):
    served = Served("toy", "p", "s", 10, 2, 0.0, "m3", None)
    page = write_serving([{"record": "begin"}], served, tmp_path, "Title").read_text()
    assert "Applications: none" in page and "not compared" in page


def test_an_application_out_of_nowhere():
    with pytest.raises(InputError, match="'z' was applied and not taken"):
        summarize_serving([applied("exact", ["z"], 1.0, 1, 1.0)], SERVED)
