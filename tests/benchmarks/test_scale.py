"""The benchmark of scale: its arithmetic, its table and figure, and its command on tiny work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import growth  # noqa: E402
from growth import Point  # noqa: E402

from unroll.evaluation.rows import read_rows  # noqa: E402

MACHINE = {
    "cores": 2,
    "cpu": "a processor",
    "device": "cpu",
    "device_kind": "cpu",
    "devices": 1,
    "python": "3",
    "jax": "0",
    "torch": None,
    "load": 0.5,
}


def point(size, seconds, work="models", series="a series", **changes):
    machine = {**MACHINE, **changes}
    return Point(work, series, size, list(seconds), 1.0, False, machine)


def test_exponent_of_a_power_is_that_power():
    squares = [point(n, [n * n / 2, n * n, n * n * 2]) for n in (1, 2, 8)]
    assert growth.exponent(squares) == pytest.approx(2)
    assert growth.exponent(squares[:1]) is None


def test_the_last_point_of_this_machine_counts():
    points = [
        point(4, [9.0]),
        point(4, [1.0], load=3.0),
        point(2, [0.5], devices=2),  # virtual devices of the same machine
        point(8, [7.0], cpu="another"),
    ]
    found = growth.latest(points, MACHINE, smoke=False)
    assert [(each.size, each.seconds) for each in found] == [(2, [0.5]), (4, [1.0])]
    assert growth.latest(points, MACHINE, smoke=True) == []


def test_table_and_figure(tmp_path):
    points = [
        *(point(n, [0.9 * n, n, 1.1 * n]) for n in (1, 4)),
        *(point(n, [1 / n] * 3, work="devices") for n in (1, 2)),
    ]
    growth.write(tmp_path, growth.latest(points, MACHINE, smoke=False), MACHINE)
    text = (tmp_path / "scale.md").read_text()
    assert "| models | a series | 1, 4 | 1 [0.9, 1.1], 4 [3.6, 4.4] | 1e+03 | 1.00 |" in text
    assert "| devices | a series | 1, 2 | 1 [1, 1], 0.5 [0.5, 0.5] |  | -1.00 |" in text
    assert "share 2 cores" in text
    assert (tmp_path / "scale.png").stat().st_size > 1000


def scale(*arguments):
    return subprocess.run(
        [sys.executable, str(FOLDER / "scale.py"), "--smoke", "--repetitions", "1", *arguments],
        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow  # a process for each number of devices
def test_command(tmp_path):
    result = scale("--rows", "steps,requests,devices", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    points = read_rows(tmp_path / "points.jsonl", Point)
    assert {each.work for each in points} == {"steps", "requests", "devices"}
    assert {each.size for each in points if each.work == "devices"} == {1, 2}
    assert all(min(each.seconds) > 0 and each.smoke for each in points)
    assert "registered cohorts" in (tmp_path / "scale.md").read_text()


@pytest.mark.slow  # compiles two networks in two modes and their tangents
def test_the_other_rows(tmp_path):
    result = scale("--rows", "models,cohorts", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    series = {each.series for each in read_rows(tmp_path / "points.jsonl", Point)}
    assert len(series) == 7


def test_an_unknown_row_is_named():
    result = scale("--rows", "seeds")
    assert result.returncode == 2 and "unknown row 'seeds'" in result.stderr
