"""The page of the difficulty study, from made-up records of six forget sets."""

import dataclasses

import pytest

import unroll
from unroll.evaluation.difficulty import AXES, LEVELS, DifficultySet
from unroll.report.difficulty import difficulty_figure, write_difficulty

SETS = [
    DifficultySet(axis, level, [1, 2, 3], 0.1 * number, 0.05, 10.0 * (number + 1))
    for axis in AXES
    for number, level in enumerate(LEVELS)
]


@pytest.fixture(scope="module")
def records(make_records):
    """ToW falls with the level of memorization by a tenth and does not with entanglement."""
    found = []
    for each in SETS:
        drop = 0.1 * LEVELS.index(each.level) if each.axis == "memorization" else 0.0
        for record in make_records(seeds=range(3), curves=False, forget=each.description):
            if record.metric == "tow":
                record = dataclasses.replace(record, value=record.value * (1 - drop))
            found.append(record)
    return found


def test_the_page_has_every_set_and_every_method(records, tmp_path):
    page = write_difficulty(records, SETS, tmp_path, "Difficulty").read_text()
    for each in SETS:
        assert f"| {each.description} | 3 | " in page
    lines = page.split("## ToW against the twin")[1].splitlines()
    (row,) = [line for line in lines[:20] if line.startswith("| `replay` |")]
    assert row.split(" | ")[1:] == ["1", "0.9", "0.8", "1", "1", "1 |"]
    assert "ToW-MIA" not in page
    assert (tmp_path / "difficulty.png").stat().st_size > 5000


def test_lines_follow_the_levels(records):
    figure = difficulty_figure(records, SETS)
    memorization, entanglement = figure.axes
    assert [each.get_title() for each in figure.axes] == list(AXES)
    assert [text.get_text() for text in memorization.get_xticklabels()] == list(LEVELS)
    handles, labels = memorization.get_legend_handles_labels()
    replay = handles[labels.index("replay")].lines[0]
    assert replay.get_ydata() == pytest.approx([1.0, 0.9, 0.8])
    low, high = memorization.get_ylim()
    assert low >= -0.1 and high <= 1.1


def test_a_set_without_records_is_refused(records, tmp_path):
    some = [record for record in records if record.forget != SETS[2].description]
    with pytest.raises(unroll.InputError, match="no records of the forget set 'high memorization'"):
        write_difficulty(some, SETS, tmp_path, "Difficulty")
