"""The page and figure of side channels, from made-up deletions."""

import pytest

from unroll.errors import InputError
from unroll.report.side_channels import (
    SECRETS,
    Counted,
    Observation,
    secret_of,
    side_channel_figure,
    write_side_channels,
)


def observation(way, kind, number, part):
    constant = way == "constant work"
    seconds = 1.0 + (0.01 * number if constant else 4.0 - (part or 0) + 0.001 * number)
    return Observation(
        dataset="digits[9/9]",
        model="mlp",
        way=way,
        seed=0,
        kind=kind,
        slice=part,
        shards={"one": 1, "two": 1 + number % 2, "none": 0}[kind],
        example_gradients=100 if constant else 100 - 10 * (part or 0),
        states=4,
        bytes=1000,
        seconds=seconds,
        seconds_with_compilation=seconds,
    )


@pytest.fixture
def rows():
    found = []
    for way in ("plain", "constant work"):
        found += [observation(way, "one", number, number % 4) for number in range(40)]
        found += [observation(way, "two", number, number % 4) for number in range(12)]
        found += [observation(way, "none", number, None) for number in range(10)]
    return found


def test_the_page(rows, tmp_path):
    counted = [
        Counted(way, 0, secret, "gradients", 0.25, 1.0, None, 2.0, 2.0, 85.0)
        for way in ("plain", "constant work")
        for secret in SECRETS
    ]
    page = write_side_channels(rows, counted, tmp_path, "a title").read_text()
    measured = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.split("## What is measured")[1].splitlines()
        if line.startswith("| slice of the example |")
    ]
    plain, _, constant, _ = measured
    assert plain[1:6] == ["plain", "seconds", "40", "0.25 (1 seed)", "1 (1 seed)"]
    assert constant[1] == "constant work" and float(constant[5].split()[0]) < 0.5
    assert float(plain[7].split()[0]) > 1 > float(constant[7].split()[0])
    assert "| plain | 40 | 85 (1 seed) | 4 (1 seed) |" in page
    assert (tmp_path / "side_channels.png").stat().st_size > 5000


def test_secrets_have_the_larger_value_where_they_are_true(rows):
    kinds = {row.kind: row for row in rows}
    assert secret_of("an example was there", kinds["none"]) == 0
    assert secret_of("an example was there", kinds["one"]) == 1
    assert secret_of("two examples, not one", kinds["two"]) == 1
    assert secret_of("two examples of different shards", kinds["two"]) == 1
    assert secret_of("slice of the example", rows[3]) == 3


def test_there_must_be_something_to_draw():
    with pytest.raises(InputError, match="run the experiment first"):
        side_channel_figure([])
