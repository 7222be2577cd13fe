"""Files of rows: what is refused, and what a kill leaves behind."""

import dataclasses
from collections.abc import Mapping

import pytest

from unroll.errors import InputError
from unroll.evaluation.rows import append_rows, read_rows, resume_rows


@dataclasses.dataclass(frozen=True)
class Example:
    cell: str
    value: float | None = None
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    "row, name",
    [
        (Example("a", float("nan")), "value=nan"),
        (Example("a", 1.0, {"taylor": float("inf")}), "errors.taylor=inf"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(tmp_path, row, name):
    with pytest.raises(InputError, match=name):
        append_rows(tmp_path / "rows.jsonl", [Example("b"), row])
    assert not (tmp_path / "rows.jsonl").exists()


def test_rows_come_back_and_incomplete_groups_do_not(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [Example("a", 1.0), Example("a", 2.0), Example("b", None, {"x": 0.5})]
    append_rows(path, rows)
    assert read_rows(path, Example) == rows
    assert resume_rows(path, Example, lambda row: row.cell, 2) == rows[:2]
    assert read_rows(path, Example) == rows[:2]


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_a_line_cut_off_by_a_kill_is_not_joined_to_the_next(tmp_path, whole):
    path = tmp_path / "rows.jsonl"
    rows = [Example("a", 1.0), Example("b", 2.0), Example("c", 3.0)]
    append_rows(path, rows[: whole + 1])
    path.write_text(path.read_text()[:-10])
    assert resume_rows(path, Example, lambda row: row.cell, 1) == rows[:whole]
    append_rows(path, rows[whole:])
    assert read_rows(path, Example) == rows


def test_a_broken_line_inside_a_file_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"cell": "a"}\n{"cel\n{"cell": "b"}\n')
    with pytest.raises(InputError, match=r"rows.jsonl:2 is not a row"):
        read_rows(path, Example)


def test_no_file_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert resume_rows(path, Example, lambda row: row.cell, 1) == [] and not path.exists()
