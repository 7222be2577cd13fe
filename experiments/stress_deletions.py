"""Puts the server of deletion requests under stress: kills, corrupted lines, damaged files.

  python experiments/stress_deletions.py --config=configs/deletion/stress_digits_sisa.py
  python experiments/stress_deletions.py --config=configs/deletion/stress_digits_sisa.py:smoke

A stream of valid requests with corrupted ones in between is served by `serve_deletions.py`, with a
request key and a ledger. That process is killed again and again, at numbers of records and delays
from a seed, and started again. Then the journal is checked against the requests, without the
server's code, and the model against one that is trained from scratch on what remains. At last,
copies of what the server keeps are damaged, and the server is started on them.

Results go to the workdir: config.json, stress.md and stress.json; `served` is the server's. A run
that was killed starts from the beginning.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import launch
import numpy as np
import serve_deletions
import stress_checks as checks
import stress_damages as damages
import workdir as workdirs
from absl import flags
from ml_collections import config_flags
from stress_process import Serving, kill_at

from unroll.checks import whole_number
from unroll.deletion.corruption import KINDS, Line, mix_in
from unroll.deletion.streams import make_stream
from unroll.errors import InputError
from unroll.evaluation.progress import ProgressDisplay
from unroll.report.files import write_atomically
from unroll.report.rum import markdown_table

_LONGEST_MESSAGE = 160


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
      part: `served`, `corrupted` or `damaged`.
      kind: what was tried or checked.
      count: how often.
      good: how often it was as it should be.
      message: what the server said, or what is wrong.
    """

    part: str
    kind: str
    count: int
    good: int
    message: str


def run(config, workdir, store):
    """Serves under stress, checks, damages, and returns the path of the report."""
    del store  # the server's is its own, since it is damaged
    _check(config)
    setting = serve_deletions.build_setting(config)
    launch.announce([dataclasses.replace(setting.work, count=1, at_most=False)])
    workdirs.prepare(workdir, config)
    for name in ("served", "half", "store", "keys"):
        shutil.rmtree(workdir / name, ignore_errors=True)
    (workdir / "served").mkdir()
    lines = _lines(config, setting, workdir)
    serving = _serving(config, workdir)
    display = ProgressDisplay()
    with display.task("serve and kill") as report:
        kills = _kill(config, serving, len(lines), report)
    with display.task("serve the rest") as report:
        report(0, 1)
        code, errors = serving.run()
        report(1, 1)
    if code:
        raise InputError(f"the server ended with exit code {code}: {errors[-1:]}")
    records = checks.read_journal(serving.journal)
    with display.task("train from scratch") as report:
        report(0, 1)
        scratch = setting.make(checks.removed_ids(lines), None)
        report(1, 1)
    rows = [
        _kills_row(config.kills, kills),
        *_served(lines, records),
        *_model(lines, records, scratch, setting.test),
    ]
    refused = checks.refusals(lines, records)
    rows += [_row("corrupted", kind, refused[kind]) for kind in KINDS if kind in refused]
    half = serving.changed(workdir=workdir / "half")
    with display.task("damage") as report:
        for number, kind in enumerate(config.damages):
            report(number, len(config.damages))
            on = half if kind in damages.ON_THE_WAY else serving
            repeats = config.repeats if kind in damages.REPEATED else 1
            tried = [damages.attempt(kind, on, [config.stream_seed, n]) for n in range(repeats)]
            rows.append(_row("damaged", kind, [(each.good, each.message) for each in tried]))
        report(len(config.damages), len(config.damages))
    return _write(workdir, config.experiment, rows, kills)


def _check(config) -> None:
    whole_number("kills", config.kills)
    whole_number("corrupted", config.corrupted)
    whole_number("repeats", config.repeats)
    if config.requests or config.request_key or config.key_folder:
        raise InputError("requests and keys are made here; leave them out of the config")
    unknown = sorted(set(config.damages) - set(damages.KINDS))
    if unknown:
        raise InputError(f"unknown damage {unknown[0]!r}; choose from {list(damages.KINDS)}")


def _lines(config, setting, workdir: Path) -> list[Line]:
    """Makes the request key and the file of requests, valid and corrupted."""
    # From the seed, so that the lines are too; it is a secret of nobody.
    key = hashlib.sha256(f"stress {config.stream_seed}".encode()).hexdigest().encode()
    (workdir / "request.key").write_bytes(key)
    sizes = dict(examples=len(setting.train), test_examples=len(setting.test))
    stream = make_stream(config.stream, **sizes, seed=config.stream_seed, key=key)
    if stream.adaptive:
        raise InputError("an adaptive stream knows the model; give one that is drawn in advance")
    valid = [stream.line(number, None) for number in range(stream.length)]
    lines = mix_in(valid, config.corrupted, **sizes, seed=config.stream_seed, key=key)
    content = b"".join(line.content + b"\n" for line in lines)
    (workdir / "served" / "requests.jsonl").write_bytes(content)
    return lines


def _serving(config, workdir: Path) -> Serving:
    """The server of this very config, with its changes from the command line."""
    flag = flags.FLAGS["config"]
    changes = config_flags.get_override_values(flag)
    arguments = [f"--config={config_flags.get_config_filename(flag)}"]
    arguments += [f"--config.{name}={value}" for name, value in changes.items()]
    arguments += [
        f"--config.requests={workdir / 'served' / 'requests.jsonl'}",
        f"--config.request_key={workdir / 'request.key'}",
        f"--config.key_folder={workdir / 'keys'}",
        f"--compilation_cache={flags.FLAGS.compilation_cache}",
    ]
    return Serving(tuple(arguments), workdir / "served", workdir / "store")


def _kill(config, serving: Serving, lines: int, report) -> list[dict]:
    """Kills the server at random moments; one dictionary per kill. A copy is kept of one of them.

    The last lines are left to a server that is not killed any more, so that none of them has ended
    before its kill.
    """
    generator = np.random.default_rng([config.stream_seed, 2])
    marks = np.sort(generator.integers(0, max(1, int(0.9 * lines)), config.kills))
    delays = generator.uniform(0, config.kill_delay, config.kills)
    last, kills = int(0.95 * lines), []

    def seen(found: int) -> None:
        report(min(found, lines), lines)

    for mark, delay in zip(marks.tolist(), delays.tolist(), strict=True):
        killed, errors = kill_at(serving, mark, delay, last, seen)
        if not killed:
            raise InputError(f"the server ended before its kill: {errors[-1:]}")
        there = serving.journal.exists()
        content = serving.journal.read_bytes() if there else b""
        records = checks.read_journal(serving.journal) if there else []
        kills.append(
            {
                "wanted_records": mark,
                "delay_seconds": delay,
                "records": len(records),
                "during_application": checks.begun_only(records),
                "half_written": not content.endswith(b"\n") and there and len(content) > 0,
            }
        )
        if len(kills) == (config.kills + 1) // 2:
            shutil.copytree(serving.workdir, serving.workdir.with_name("half"))
    return kills


def _kills_row(planned: int, kills: Sequence[dict]) -> Row:
    """Kills that fell while the server ran, of those that were to fall."""
    during = sum(kill["during_application"] for kill in kills)
    torn = sum(kill["half_written"] for kill in kills)
    message = f"{during} during an application, {torn} left a half-written record"
    return Row("served", "kills", planned, len(kills), message)


def _served(lines: Sequence[Line], records) -> list[Row]:
    """What the journal says of the requests."""
    valid = [json.loads(line.content) for line in lines if not line.kind]
    deletions = sum("delete" in request for request in valid)
    questions = sum("status" in request for request in valid)
    found = [
        ("records in an unbroken chain", len(records), checks.check_chain(records)),
        ("lines with exactly one fate", len(lines), checks.check_lines(lines, records)),
        (
            f"valid requests taken once, {deletions} deletions applied once",
            len(valid),
            checks.check_valid(lines, records),
        ),
        ("right answers to `status`", questions, checks.check_answers(lines, records)),
    ]
    return [_check_row(*each) for each in found]


def _model(lines, records, scratch, test) -> list[Row]:
    """Whether the model has the bits of one from scratch, and answers as it does."""
    hash, classes = checks.last_model(records), scratch.predict(test).argmax(axis=-1)
    same = hash == scratch.hash
    message = f"hash {scratch.hash[:12]}" + ("" if same else f", served {str(hash)[:12]}")
    asked, wrong = checks.check_predictions(lines, records, hash, classes.tolist())
    rows = [
        Row("served", "final model bit-equal to training on what remains", 1, int(same), message)
    ]
    # The last deletion may come after the last question.
    return [*rows, _check_row("predictions of the final model", asked, wrong)] if asked else rows


def _check_row(kind: str, count: int, wrong: Sequence[str]) -> Row:
    return Row("served", kind, count, count - min(len(wrong), count), wrong[0] if wrong else "")


def _row(part: str, kind: str, tried: Sequence[tuple[bool, str]]) -> Row:
    """Several attempts as one line, with the message of the first that failed, if any did."""
    failed = [message for good, message in tried if not good]
    message = failed[0] if failed else tried[0][1]
    return Row(part, kind, len(tried), len(tried) - len(failed), message)


def _write(workdir: Path, title: str, rows: Sequence[Row], kills: Sequence[dict]) -> Path:
    """Writes `stress.md` and `stress.json`; the path of the page.

    Raises:
      InputError: if anything was not as it should be, after both are written.
    """
    value = {"rows": [dataclasses.asdict(row) for row in rows], "kills": list(kills)}
    text = json.dumps(value, indent=1)
    write_atomically(workdir / "stress.json", lambda file: file.write(text.encode()))
    page = _page(title, rows)
    path = workdir / "stress.md"
    write_atomically(path, lambda file: file.write(page.encode()))
    failed = [row for row in rows if row.good < row.count]
    if failed:
        raise InputError(
            f"{len(failed)} of {len(rows)} kinds were not met as they should be, the first "
            f"{failed[0].kind!r}: {failed[0].message}; see {path}"
        )
    return path


_PARTS = {
    "served": ("What was served, through the kills", "what was checked", "good"),
    "corrupted": ("Corrupted lines", "kind", "refused for its reason"),
    "damaged": ("Damaged files and misuse", "kind", "named, nothing changed"),
}


def _page(title: str, rows: Sequence[Row]) -> str:
    blocks = [f"# {title}"]
    for part, (heading, kind, good) in _PARTS.items():
        own = [row for row in rows if row.part == part]
        count, fine = sum(row.count for row in own), sum(row.good for row in own)
        # The parts of `served` are checks of the same lines, whose sum says nothing.
        total = "" if part == "served" else f": {fine} of {count}"
        body = [[row.kind, _cell(row.message), str(row.count), str(row.good)] for row in own]
        table = markdown_table([kind, "message", "count", good], body, left=2)
        blocks += [f"## {heading}{total}", "\n".join(table)]
    return "\n\n".join(blocks) + "\n"


def _cell(message: str) -> str:
    short = message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}..."
    return short.replace("|", "\\|")


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)
    launch.launch(run)
