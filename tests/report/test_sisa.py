"""The page on SISA: what its numbers are, and what it refuses."""

import pytest

from unroll.deletion.tradeoff import SisaRow, measure_cost
from unroll.errors import InputError
from unroll.report.sisa import write_sisa

NAMES = dict(dataset="blobs", model="mlp", forget="some")


def row(shards, seed, test, **changes):
    accuracies = dict(forget=1.0, retain=1.0, test=test)
    numbers = dict(
        before=accuracies,
        after=accuracies,
        scratch=accuracies,
        exact=True,
        state_bytes=shards * 2**20,
        request_gradients=100 // shards,
        single_gradients=100,
    )
    place = dict(shards=shards, slices=1, seed=seed, aggregation="vote")
    return SisaRow(**NAMES, **place, **{**numbers, **changes})


@pytest.fixture(scope="module")
def costs():
    return [
        measure_cost(
            40, shards, (2,), single_epochs=2, stream=stream, assignment=assignment, draws=2
        )
        for shards in (1, 4)
        for stream, assignment in (
            ("uniform", "random"),
            ("exponential", "random"),
            ("exponential", "aware_cost"),
            ("adversarial", "random"),
        )
    ]


def test_the_page_has_shares_of_the_single_model(tmp_path, costs):
    rows = [row(1, 0, 0.9), row(1, 1, 0.9), row(4, 0, 0.7), row(4, 1, 0.7)]
    page = write_sisa(rows, costs, tmp_path, "title").read_text()
    four = next(line for line in page.splitlines() if line.startswith("| 4 | 1 | vote"))
    cells = [cell.strip() for cell in four.split("|")[1:-1]]
    assert cells[8:] == ["2/2", cells[9], cells[10], "4", cells[12]]
    # Equal in both seeds. ToW against the single model of the same seed: 1 - |0.7 - 0.9|.
    assert [float(cells[n].split()[0]) for n in (9, 10, 12)] == [1, 0.8, 0.25]
    # 9 of 10 remain in a shard of 40 / 4, 39 of 40 in the single model: 9 / 39.
    assert "| adversarial | random | 4 | 1 | 1 | 1 | 0.2308 (s.e. 0) | 0.2308 |" in page
    assert (tmp_path / "sisa.png").stat().st_size > 1000


def test_a_system_that_diverged_has_no_numbers(tmp_path, costs):
    broken = SisaRow(**NAMES, shards=4, slices=1, seed=0, aggregation="vote", note="diverged")
    page = write_sisa([row(1, 0, 0.9), broken], costs, tmp_path, "title").read_text()
    assert "S=4, R=1, seed 0: diverged" in page and "| 4 | 1 | vote | n/a |" in page


def test_nothing_to_show_is_refused(tmp_path, costs):
    with pytest.raises(InputError, match="run the experiment first"):
        write_sisa([], costs, tmp_path, "title")
