"""The ensemble experiment as a user runs it: alone, and as a job of two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(*arguments, cwd):
    return subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "experiments" / "ensemble.py"),
            f"--config={ROOT / 'configs' / 'ensemble.py'}:smoke",
            *arguments,
        ],
        cwd=cwd,
        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def rows(folder):
    return (folder / "runs" / "ensemble-smoke" / "ensemble.jsonl").read_text()


def test_alone_and_as_a_job_of_two_processes(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder in (alone, together):
        folder.mkdir()
    code, output, errors = end(start(cwd=alone))
    assert code == 0, errors
    assert "report: runs/ensemble-smoke/ensemble.md" in output
    page = (alone / "runs" / "ensemble-smoke" / "ensemble.md").read_text()
    assert "6 models" in page and page.count("| the retain set |") == 3

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"--coordinator=127.0.0.1:{probe.getsockname()[1]}"
    job = [
        start(coordinator, "--processes=2", f"--process_id={number}", cwd=together)
        for number in range(2)
    ]
    for process in job:
        code, _, errors = end(process)
        assert code == 0, errors
    # Shards of 3 models instead of one of 6 round differently, but no prediction changes here.
    assert [line.split('"loss"')[0] for line in rows(together).splitlines()] == [
        line.split('"loss"')[0] for line in rows(alone).splitlines()
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=2", "--process_id=0"], "need a --coordinator"),
        (["--coordinator=localhost:1"], "all of coordinator, processes and process id"),
        (["--coordinator=x", "--processes=2", "--process_id=0"], "must be host:port"),
    ],
)
def test_half_a_job_is_refused(tmp_path, arguments, message):
    code, _, errors = end(start(*arguments, cwd=tmp_path))
    assert code == 1
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not (tmp_path / "runs" / "ensemble-smoke").exists()
