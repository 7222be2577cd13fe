"""Whether a server did what it should, from the requests and the journal alone.

Nothing here uses the server's own code: the journal is read as lines of JSON, its chain of hashes
is computed again, and every request is followed through it by its name.

Each check gives a list of what is wrong, one line for each finding; an empty list is a pass.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unroll.deletion.corruption import Line

FATES = ("accepted", "answered", "refused")


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The records of a journal; a half-written last line, as of a kill, is none."""
    *lines, _ = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines]


def check_chain(records: Sequence[dict[str, Any]]) -> list[str]:
    """Whether each record has the hash of the one before and its own."""
    wrong, previous = [], records[0]["previous"] if records else ""
    for number, record in enumerate(records, start=1):
        content = {name: value for name, value in record.items() if name != "hash"}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        if record["previous"] != previous:
            wrong.append(f"record {number} does not follow the one before it")
        if record["hash"] != hashlib.sha256(text.encode()).hexdigest():
            wrong.append(f"record {number} does not have its hash")
        previous = record["hash"]
    return wrong


def fates(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records that say what became of a line of input."""
    return [record for record in records if record["record"] in FATES]


def check_lines(lines: Sequence[Line], records: Sequence[dict[str, Any]]) -> list[str]:
    """Whether every line has exactly one record, in the order of the lines, and of these bytes."""
    found = fates(records)
    wrong = []
    if [record["line"] for record in found] != list(range(1, len(lines) + 1)):
        wrong.append(f"{len(found)} fates of {len(lines)} lines, or not in their order")
    for record in found:
        number = record["line"]
        if not 1 <= number <= len(lines):
            wrong.append(f"line {number} is no line of the requests")
        elif record["sha256"] != hashlib.sha256(lines[number - 1].content).hexdigest():
            wrong.append(f"line {number} is another one in the journal")
    return wrong


def check_valid(lines: Sequence[Line], records: Sequence[dict[str, Any]]) -> list[str]:
    """Whether every valid request was taken once, with its own ids, and applied exactly once."""
    wrong = []
    requests = [json.loads(line.content) for line in lines if not line.kind]
    taken = [record for record in fates(records) if record["record"] != "refused"]
    by_name = {record["request"]: record for record in taken}
    names = [request["request"] for request in requests]
    if [record["request"] for record in taken] != names:
        wrong.append(f"{len(taken)} requests were taken, {len(requests)} are valid")
    applied = {how: _applied(records, how) for how in ("exact", "approximate")}
    deletions = {request["request"] for request in requests if "delete" in request}
    for request in requests:
        name = request["request"]
        record = by_name.get(name)
        if record is None:
            wrong.append(f"{name} was lost")
        elif (record["record"] == "accepted") != (name in deletions):
            wrong.append(f"{name} was {record['record']}")
        elif name in deletions and record["delete"] != request["delete"]:
            wrong.append(f"{name} was taken with other ids")
    for name in sorted(deletions):
        exact, approximate = applied["exact"][name], applied["approximate"][name]
        if exact != 1 or approximate > 1:
            wrong.append(f"{name} was applied {exact} times exactly, {approximate} approximately")
    strangers = set().union(*applied.values()) - deletions
    return wrong + [f"{name} was applied and never asked for" for name in sorted(strangers)]


def _applied(records: Sequence[dict[str, Any]], how: str) -> Counter:
    own = [each for each in records if each["record"] == "applied" and each["how"] == how]
    return Counter(name for record in own for name in record["requests"])


def check_answers(lines: Sequence[Line], records: Sequence[dict[str, Any]]) -> list[str]:
    """Whether each `status` was answered with where the examples stood, by the journal itself."""
    content = [b"", *(line.content for line in lines)]
    ids_of: dict[str, list[int]] = {}
    state: dict[int, str] = {}
    wrong = []
    for record in records:
        if record["record"] == "accepted":
            ids_of[record["request"]] = record["delete"]
            state.update(dict.fromkeys(record["delete"], "waiting"))
        elif record["record"] == "applied":
            now = "deleted" if record["how"] == "exact" else "approximated"
            for name in record["requests"]:
                state.update(dict.fromkeys(ids_of.get(name, ()), now))
        elif record["record"] == "answered" and record["kind"] == "status":
            asked = json.loads(content[record["line"]])["status"]
            if record["answer"] != [state.get(id, "present") for id in asked]:
                wrong.append(f"{record['request']} was answered {record['answer']}")
    return wrong


def check_predictions(
    lines: Sequence[Line],
    records: Sequence[dict[str, Any]],
    model: str | None,
    classes: Sequence[int],
) -> tuple[int, list[str]]:
    """Number of `predict` requests that a model answered, and those that were answered wrongly.

    Args:
      lines: all that was read.
      records: of the journal.
      model: hash of the model.
      classes: what it predicts for each example of the test set.
    """
    asked, wrong = 0, []
    for record in fates(records):
        if record.get("kind") == "predict" and record["model"] == model:
            asked += 1
            ids = json.loads(lines[record["line"] - 1].content)["predict"]
            if record["answer"] != [classes[id] for id in ids]:
                wrong.append(f"{record['request']} was answered {record['answer']}")
    return asked, wrong


def refusals(
    lines: Sequence[Line], records: Sequence[dict[str, Any]]
) -> dict[str, list[tuple[bool, str]]]:
    """For each kind of corrupted line: whether it was refused for its reason, and the message."""
    by_line = {record["line"]: record for record in fates(records)}
    found: dict[str, list[tuple[bool, str]]] = {}
    for number, line in enumerate(lines, start=1):
        if line.kind:
            record = by_line.get(number, {"record": "lost"})
            message = record.get("why", f"{record['record']}, not refused")
            good = record["record"] == "refused" and re.search(line.reason, message) is not None
            found.setdefault(line.kind, []).append((good, message))
    return found


def removed_ids(lines: Sequence[Line]) -> list[int]:
    """Ids that the valid deletions name, ascending."""
    requests = [json.loads(line.content) for line in lines if not line.kind]
    return sorted(id for request in requests for id in request.get("delete", ()))


def begun_only(records: Sequence[dict[str, Any]]) -> bool:
    """Whether an application was begun and not ended."""
    count = Counter(record["record"] for record in records)
    return count["begun"] > count["applied"]


def last_model(records: Sequence[dict[str, Any]]) -> str | None:
    """Hash of the model after the last application; `None` before the first."""
    applied = [record["model"] for record in records if record["record"] == "applied"]
    return applied[-1] if applied else None
