"""What a server of deletion requests did, from its journal: fates, accuracy, cost, waiting.

Design: everything is read from the journal, so the report of a server that was killed is that of
one that was not. Rejected: numbers that the server counts while it runs; a kill would lose them.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from unroll.deletion.queueing import Queue, queue
from unroll.errors import InputError
from unroll.report.files import write_atomically
from unroll.report.formatting import format_number
from unroll.report.rum import markdown_table, save_figure
from unroll.report.style import COLOURS, INK, MUTED, new_figure, plain_axes

EXACT, APPROXIMATE = "exact", "approximate"
_PARTICULAR = re.compile(r"""'[^']*'|"[^"]*"|-?\d[\w.+-]*""")
_GUIDE = """\
Retraining at each request: the single model's epochs over what was left, for every deletion that
was taken. Waits are those of a single server that takes requests at their own times and serves each
application for as long as it took here, compilation not counted. An approximation is no deletion:
its examples count as deleted from the exact application on."""


@dataclasses.dataclass(frozen=True)
class Served:
    """What was served.

    Attributes:
      name: of data and model.
      policy: when deletions were applied.
      requests: where they came from.
      examples: size of the training set.
      epochs: of the single model, whose retraining costs are compared with.
      gradient_seconds: seconds of a gradient in the queue; 0 takes the measured seconds.
      model: hash of the last model.
      scratch: hash of the model trained from scratch on what remains; `None` if none was.
    """

    name: str
    policy: str
    requests: str
    examples: int
    epochs: int
    gradient_seconds: float
    model: str
    scratch: str | None


def write_serving(
    records: Sequence[Mapping[str, Any]], served: Served, workdir: Path, title: str
) -> Path:
    """Writes `report.md`, `report.json` and `requests.png`; returns the page's path.

    Args:
      records: of a journal.
      served: what it is of.
      workdir: an existing directory.
      title: of the page.
    """
    facts = summarize_serving(records, served)
    text = json.dumps(facts, indent=1, allow_nan=False)
    write_atomically(workdir / "report.json", lambda file: file.write(text.encode()))
    save_figure(serving_figure(facts), workdir / "requests.png")
    path, page = workdir / "report.md", _page(facts, title)
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def summarize_serving(records: Sequence[Mapping[str, Any]], served: Served) -> dict[str, Any]:
    """All numbers of the report, JSON-able.

    Raises:
      InputError: if an application is of a request that was not taken.
    """
    fates = collections.Counter(each["record"] for each in records)
    deletions = [each for each in records if each["record"] == "accepted"]
    applied = [each for each in records if each["record"] == "applied"]
    place = {each["request"]: number for number, each in enumerate(deletions)}
    left, retraining = served.examples, 0
    for each in deletions:
        left -= len(each["delete"])
        retraining += served.epochs * left
    rows = [_row(each, deletions, place) for each in applied]
    drifts = [row["drift"] for row in rows if row["drift"] is not None]
    gradients = sum(row["example_gradients"] for row in rows)
    seconds = sum(row["seconds"] for row in rows)
    count = max(len(deletions), 1)
    return {
        **dataclasses.asdict(served),
        "exact": None if served.scratch is None else served.scratch == served.model,
        "lines": sum(fates[name] for name in ("accepted", "answered", "refused")),
        "taken": fates["accepted"] + fates["answered"],
        "accepted": fates["accepted"],
        "answered": fates["answered"],
        "refused": fates["refused"],
        "refusals": _refusals(records),
        "deleted_examples": served.examples - left,
        "applications": dict(collections.Counter(row["how"] for row in rows)),
        "example_gradients": gradients,
        "example_gradients_per_deletion": gradients / count,
        "seconds": seconds,
        "seconds_per_deletion": seconds / count,
        "retraining_gradients": retraining,
        "of_retraining": gradients / retraining if retraining else None,
        "accuracy": [row["test_accuracy"] for row in rows if row["test_accuracy"] is not None],
        "drift": {"measured": len(drifts), "largest": max(drifts, default=None)},
        "queues": _queues(deletions, rows, place, served.gradient_seconds),
        "rows": rows,
    }


def _row(record, deletions, place) -> dict[str, Any]:
    unknown = sorted(name for name in record["requests"] if name not in place)
    if unknown:
        raise InputError(f"request {unknown[0]!r} was applied and not taken; check the journal")
    metrics = record.get("metrics", {})
    last = max((place[name] for name in record["requests"]), default=-1)
    return {
        "deletions": last + 1,
        "how": record["how"],
        "requests": record["requests"],
        "time": record["time"],
        "example_gradients": record["example_gradients"],
        "seconds": record["seconds"],
        "test_accuracy": metrics.get("test_accuracy"),
        "drift": metrics.get("drift"),
        "estimates": record["estimates"],
    }


def _refusals(records) -> dict[str, int]:
    """How often each reason was given, without the names and numbers that it was about."""
    reasons = collections.Counter(
        _PARTICULAR.sub("...", each["why"]).split(";")[0][:80]
        for each in records
        if each["record"] == "refused"
    )
    return dict(reasons.most_common())


def _queues(deletions, rows, place, gradient_seconds: float) -> dict[str, dict[str, float]]:
    """Waits until requests are first acted on, and until they are deleted exactly."""
    arrivals = [each["time"] for each in deletions]

    def service(row) -> float:
        known = gradient_seconds * row["example_gradients"]
        return known if gradient_seconds else row["seconds"]

    seen: set[str] = set()
    acted: list[list[Any]] = []
    exact: list[list[Any]] = []
    pending = 0.0
    for row in rows:
        new = [name for name in row["requests"] if name not in seen]
        seen.update(new)
        if new:
            acted.append([[place[name] for name in new], service(row), row["time"]])
        elif acted:
            acted[-1][1] += service(row)  # the server is busy, with nobody new
        pending += service(row)
        if row["how"] == EXACT:
            # The approximations before it were work for these requests too.
            exact.append([[place[name] for name in row["requests"]], pending, row["time"]])
            pending = 0.0
    found = {"until acted on": acted, "until deleted": exact}
    return {name: _queue_facts(arrivals, groups) for name, groups in found.items() if groups}


def _queue_facts(arrivals, groups) -> dict[str, Any]:
    indices, seconds, ready = zip(*groups, strict=True)
    found: Queue = queue(arrivals, indices, seconds, ready=ready)
    return {
        "mean_wait": found.mean_wait,
        "longest_wait": found.longest_wait,
        "longest_queue": found.longest,
        "busy": found.busy,
        "waits": [float(each) for each in found.waits if each == each],
    }


def serving_figure(facts: Mapping[str, Any]) -> Figure:
    """Over the deletions that were taken: accuracy, cost, waits, and drift where measured."""
    rows = facts["rows"]
    drifts = [(row["deletions"], row["drift"]) for row in rows if row["drift"] is not None]
    figure = new_figure(13 if drifts else 9.8, 3.4)
    panels = figure.subplots(1, 4 if drifts else 3)
    for axes in panels:
        plain_axes(axes)
        axes.set_xlabel("deletion requests")
    styles = {EXACT: (COLOURS[0], "o"), APPROXIMATE: (COLOURS[1], "x")}
    for how, (colour, marker) in styles.items():
        own = [row for row in rows if row["how"] == how and row["test_accuracy"] is not None]
        if own:
            places = [row["deletions"] for row in own]
            found = [row["test_accuracy"] for row in own]
            panels[0].plot(places, found, marker, color=colour, markersize=3, label=how)
            panels[0].legend(frameon=False, fontsize=8)
    panels[0].set_title("test accuracy", fontsize=10, color=INK)
    total, costs = 0.0, []
    for row in rows:
        total += row["example_gradients"]
        costs.append(total)
    panels[1].step([row["deletions"] for row in rows], costs, where="post", color=COLOURS[0])
    ends = [0, facts["accepted"]], [0, facts["retraining_gradients"]]
    panels[1].plot(*ends, "--", color=MUTED, label="retraining at each")
    panels[1].legend(frameon=False, fontsize=8)
    panels[1].set_title("example gradients so far", fontsize=10, color=INK)
    queues = facts["queues"]
    if not any(row["how"] == APPROXIMATE for row in rows):  # one wait, and not two of them
        queues = dict(list(queues.items())[-1:])
    for colour, (name, found) in zip(COLOURS, queues.items(), strict=False):
        places = range(1, 1 + len(found["waits"]))
        panels[2].plot(places, found["waits"], ".", color=colour, markersize=3, label=name)
        panels[2].legend(frameon=False, fontsize=8)
    panels[2].set_title("wait, seconds", fontsize=10, color=INK)
    if drifts:
        panels[3].plot(*zip(*drifts, strict=True), "x", color=COLOURS[1], markersize=4)
        panels[3].set_title("relative verification error", fontsize=10, color=INK)
    figure.tight_layout()
    return figure


def _page(facts: Mapping[str, Any], title: str) -> str:
    number = format_number
    counts = [f"{facts[name]} {name}" for name in ("accepted", "answered", "refused")]
    lines = [f"# {title}", "", f"- Model: {facts['name']}", f"- Policy: `{facts['policy']}`"]
    lines += [f"- Requests: `{facts['requests']}`, {facts['lines']} lines: {', '.join(counts)}"]
    lines += [f"- Deleted: {facts['deleted_examples']} of {facts['examples']} examples"]
    made = [f"{count} {how}" for how, count in facts["applications"].items()] or ["none"]
    lines += [f"- Applications: {', '.join(made)}"]
    verdicts = {True: "yes, bit for bit", False: "NO", None: "not compared"}
    lines += [f"- Equal to training from scratch on what remains: {verdicts[facts['exact']]}"]
    lines += ["", _GUIDE, "", "![requests](requests.png)", ""]
    share = "n/a" if facts["of_retraining"] is None else number(facts["of_retraining"])
    accuracy = facts["accuracy"]
    body = [
        ["example gradients per deletion", number(facts["example_gradients_per_deletion"])],
        ["of retraining at each", share],
        ["seconds per deletion", number(facts["seconds_per_deletion"])],
        ["test accuracy, first", number(accuracy[0]) if accuracy else "n/a"],
        ["test accuracy, lowest", number(min(accuracy)) if accuracy else "n/a"],
        ["test accuracy, last", number(accuracy[-1]) if accuracy else "n/a"],
    ]
    if facts["drift"]["measured"]:
        text = f"{number(facts['drift']['largest'])} of {facts['drift']['measured']} measured"
        body.append(["relative verification error, largest", text])
    for name, found in facts["queues"].items():
        body += [
            [f"mean wait {name}, seconds", number(found["mean_wait"])],
            [f"longest wait {name}, seconds", number(found["longest_wait"])],
            [f"longest queue {name}", str(found["longest_queue"])],
            [f"share of time busy {name}", number(found["busy"])],
        ]
    lines += [*markdown_table(["", "value"], body), ""]
    if facts["refusals"]:
        table = [[reason.replace("|", "/"), str(n)] for reason, n in facts["refusals"].items()]
        lines += ["## Refused", "", *markdown_table(["reason", "lines"], table), ""]
    return "\n".join(lines)
