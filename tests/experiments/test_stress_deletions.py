"""The stress test of the server: its own checks must be able to fail, and its smoke run."""

import hashlib
import json

import pytest
import stress_checks
from run_script import one_line_error, run_script
from stress_damages import contents
from stress_process import Tail, is_one_line_error

from unroll.deletion.corruption import Line

REQUESTS = [
    {"request": "a", "time": 1.0, "delete": [4, 2]},
    {"request": "b", "time": 2.0, "status": [4, 1]},
    {"request": "c", "time": 3.0, "delete": [7]},
    {"request": "d", "time": 3.5, "status": [2, 7]},
]
IMAGES = "--config.dataset=random_images(num_train=128, num_test=20, size=8, num_classes=4)"
LINES = [Line(json.dumps(request).encode()) for request in REQUESTS]
PARTS = ("served", "corrupted", "damaged")
LINES.insert(2, Line(b"{", "cut off", "no JSON"))


def chained(records):
    previous, made = "0" * 64, []
    for record in records:
        content = {**record, "previous": previous}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        previous = hashlib.sha256(text.encode()).hexdigest()
        made.append({**content, "hash": previous})
    return made


def journal():
    """What a server writes that applies the deletions when both are there."""

    def fate(number, name, **fields):
        sha256 = hashlib.sha256(LINES[number - 1].content).hexdigest()
        return {"record": name, "line": number, "sha256": sha256, **fields}

    return [
        {"record": "begin"},
        fate(1, "accepted", request="a", delete=[4, 2]),
        fate(2, "answered", request="b", kind="status", answer=["waiting", "present"]),
        fate(3, "refused", why="this is no JSON; write some"),
        fate(4, "accepted", request="c", delete=[7]),
        {"record": "begun", "requests": ["a", "c"], "how": "exact"},
        {"record": "applied", "requests": ["a", "c"], "how": "exact", "model": "f00"},
        fate(5, "answered", request="d", kind="status", answer=["deleted", "deleted"]),
    ]


def wrong(records):
    """What all checks say together."""
    chain = stress_checks.check_chain(chained(records))
    rest = (stress_checks.check_lines, stress_checks.check_valid, stress_checks.check_answers)
    return chain + [text for check in rest for text in check(LINES, records)]


def test_a_good_journal_passes():
    assert wrong(journal()) == []
    assert stress_checks.refusals(LINES, journal()) == {
        "cut off": [(True, "this is no JSON; write some")]
    }
    assert stress_checks.removed_ids(LINES) == [2, 4, 7]
    assert stress_checks.last_model(journal()) == "f00"
    assert stress_checks.last_model(journal()[:6]) is None
    begun = [stress_checks.begun_only(journal()[:end]) for end in (5, 6, 7)]
    assert begun == [False, True, False]


def without(number):
    records = journal()
    del records[number]
    return records


def changed(number, **fields):
    records = journal()
    records[number] = {**records[number], **fields}
    return records


@pytest.mark.parametrize(
    "records, message",
    [
        (without(1), "a was lost"),
        (without(1), "4 fates of 5 lines"),
        (without(6), "a was applied 0 times exactly"),
        ([*journal(), journal()[6]], "a was applied 2 times exactly"),
        ([*journal(), journal()[4]], "6 fates of 5 lines"),
        ([*journal(), journal()[4]], "5 requests were taken, 4 are valid"),
        (changed(3, record="accepted", request="x", delete=[1]), "5 requests were taken"),
        (changed(6, requests=["a", "c", "x"]), "x was applied and never asked for"),
        (changed(1, delete=[4, 3]), "a was taken with other ids"),
        (changed(1, record="refused", why="no"), "a was lost"),
        (changed(2, answer=["present", "present"]), "b was answered"),
        (changed(7, answer=["waiting", "deleted"]), "d was answered"),
        (changed(4, sha256="0" * 64), "line 4 is another one"),
        (changed(4, line=9), "line 9 is no line"),
    ],
)
def test_what_is_wrong_is_found(records, message):
    found = wrong(records)
    assert any(text.startswith(message) for text in found), found


def test_a_broken_chain_is_found():
    records = chained(journal())
    assert stress_checks.check_chain(records[:2] + records[3:]) == [
        "record 3 does not follow the one before it"
    ]
    records[4] = {**records[4], "delete": [8]}
    assert stress_checks.check_chain(records) == ["record 5 does not have its hash"]


def test_predictions_of_the_final_model_are_compared():
    request = {"request": "e", "time": 4.0, "predict": [1, 0]}
    lines = [*LINES, Line(json.dumps(request).encode())]
    answered = {"record": "answered", "line": 6, "request": "e", "kind": "predict", "model": "f00"}
    records = [*journal(), {**answered, "answer": [5, 3]}]
    assert stress_checks.check_predictions(lines, records, "f00", [3, 5]) == (1, [])
    assert stress_checks.check_predictions(lines, records, "f01", [3, 5]) == (0, [])
    count, wrong = stress_checks.check_predictions(lines, records, "f00", [5, 3])
    assert count == 1 and wrong == ["e was answered [5, 3]"]


def test_a_refusal_for_another_reason_is_none():
    for records in (changed(3, why="the line is too long"), changed(3, record="answered")):
        ((good, _),) = stress_checks.refusals(LINES, records)["cut off"]
        assert not good
    assert stress_checks.refusals(LINES, journal()[:3])["cut off"] == [(False, "lost, not refused")]


def test_what_is_an_error_of_one_line():
    assert is_one_line_error(["a warning", "error: do this"])
    assert not is_one_line_error([])
    assert not is_one_line_error(["error: do this", "and more"])
    assert not is_one_line_error(["Traceback (most recent call last):", "error: do this"])
    assert not is_one_line_error(["error: one", "error: two"])


def test_a_file_that_grows_is_counted(tmp_path):
    tail = Tail(tmp_path / "journal")
    assert tail.update() == 0
    with open(tmp_path / "journal", "a") as file:
        for count in range(3):
            file.write("line\nha")
            file.flush()
            assert tail.update() == count + 1 == tail.update()


def test_locks_do_not_count_as_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "a.lock").write_text("1")
    before = contents(tmp_path)
    (tmp_path / "a.lock").write_text("2")
    assert contents(tmp_path) == before and list(before) == ["a"]
    (tmp_path / "a").write_text("2")
    assert contents(tmp_path) != before


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ("stress_digits_sisa", []),
        ("stress_digits_single", []),
        ("stress_cifar10", [IMAGES]),
    ],
)
@pytest.mark.slow
def test_smoke_run(tmp_path, config, arguments):
    arguments = [f"deletion/{config}.py:smoke", *arguments]
    result = run_script("stress_deletions.py", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    workdir = tmp_path / "runs" / f"{config}-smoke"
    found = json.loads((workdir / "stress.json").read_text())
    assert len(found["kills"]) == 2
    parts = {part: [r for r in found["rows"] if r["part"] == part] for part in PARTS}
    assert all(row["good"] == row["count"] for row in found["rows"])
    assert sum(row["count"] for row in parts["corrupted"]) == 60
    assert len(parts["corrupted"]) >= 40 and len(parts["damaged"]) == 3
    page = (workdir / "stress.md").read_text()
    assert "## Corrupted lines: 60 of 60" in page and "store: a truncated file | " in page


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.damages=('flood',)", "unknown damage 'flood'"),
        # Each takes a process of its own.
        pytest.param("--config.kills=0", "kills must be a whole number", marks=pytest.mark.slow),
        pytest.param("--config.request_key=x", "leave them out", marks=pytest.mark.slow),
    ],
)
def test_mistakes_are_one_line_and_cost_nothing(tmp_path, argument, message):
    config = "deletion/stress_digits_sisa.py:smoke"
    result = run_script("stress_deletions.py", config, argument, cwd=tmp_path)
    assert message in one_line_error(result)
