"""The files of a report: complete, the same every time, and never half written."""

import os

import pytest

from unroll.errors import InputError
from unroll.report import save_figures, write_report
from unroll.report.files import write_atomically

NAMES = {
    "scoreboard",
    "accuracy_gaps",
    "output_distributions",
    "output_entropies",
    "training_curves",
}


def contents(directory):
    """Bytes of every file below a directory, by relative path."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_write_report_is_complete_and_idempotent(digits, tmp_path):
    page = write_report(digits, tmp_path / "run", "Digits", {"seed": 0}, ["A note."])
    first = contents(tmp_path / "run")
    assert page == tmp_path / "run" / "report.html"
    assert set(first) == {"report.html", "report.md", *(f"figures/{name}.png" for name in NAMES)}
    for name in NAMES:
        assert f"](figures/{name}.png)".encode() in first["report.md"]
    assert first["report.html"].count(b"data:image/png;base64,") == len(NAMES)
    write_report(digits, tmp_path / "run", "Digits", {"seed": 0}, ["A note."])
    assert contents(tmp_path / "run") == first


def test_figure_names_tell_sections_apart(make_records, tmp_path):
    records = make_records(seeds=[0, 1]) + make_records(seeds=[0, 1], curves=False, dataset="b")
    paths = save_figures(records, tmp_path)
    expected = {f"1_{name}" for name in NAMES} | {"2_scoreboard", "2_accuracy_gaps"}
    assert set(paths) == expected
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths.values())


def test_bad_records_leave_nothing_behind(digits, tmp_path):
    no_oracle = [record for record in digits if record.method != "retrain"]
    with pytest.raises(InputError):
        write_report(no_oracle, tmp_path / "run", "Digits")
    assert not (tmp_path / "run").exists()


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "report.md"
    path.write_text("old")

    def fail(file):
        file.write(b"half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.md"]
