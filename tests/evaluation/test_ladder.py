"""The ladder: calibration counted by hand, and cells without numbers."""

import pytest
from matplotlib.collections import PathCollection

from unroll.errors import InputError
from unroll.evaluation.ladder import (
    Calibration,
    Rung,
    calibration,
    calibrations,
    climb,
    judged,
    without_numbers,
)
from unroll.report.ladder import calibration_figure, write_ladder


def rung(order, error=None, estimate=None, next_term=0.1, floor=0.0, optimizer="sgd()", **fields):
    place = dict(dataset="d", model="m", epochs=3, forget="f", forget_size=7, seed=0)
    numbers = dict(
        relative_error=error,
        estimate=estimate,
        next_term=None if estimate is None else next_term,
        floor=None if estimate is None else floor,
        no_unlearning=1.0,
        retrain_distance=30.0,
    )
    return Rung(**{**place, **numbers, "optimizer": optimizer, "order": order, **fields})


RUNGS = [
    rung(0, 1.0, 0.9),  # doing nothing is not judged
    rung(1, 0.1, 0.2),  # exactly the factor: good
    rung(1, 0.1, 0.21),  # too high
    rung(1, 0.1, 0.049),  # too low
    rung(1, 0.5, 0.5),  # not below 0.5
    rung(2, 0.01, 0.01, next_term=0.001, floor=0.009),  # good thanks to the floor
    rung(2, 0.01, 0.03, next_term=0.02, floor=0.01),  # too high
    rung(2, 0.02),  # no estimate: the highest order, or relu
    rung(2, None, 0.3),  # diverged
    rung(1, 0.0, 0.1),  # nothing to be relative to
    rung(1, 0.1, 0.1, optimizer="adam()"),
]


def test_calibration_counts_what_is_within_a_factor_of_two():
    assert len(judged(RUNGS)) == 6
    assert calibration(RUNGS) == Calibration(judged=6, good=3, high=2, low=1)
    assert calibration([]) == Calibration(0, 0, 0, 0)


def test_calibration_by_optimiser_and_order_with_and_without_the_floor():
    one, two = Calibration(3, 1, 1, 1), Calibration(1, 1, 0, 0)
    assert calibrations(RUNGS) == {
        ("sgd()", 1): (one, one),
        ("sgd()", 2): (Calibration(2, 1, 1, 0), Calibration(1, 0, 1, 0)),
        ("adam()", 1): (two, two),
    }


def test_page_tells_where_the_estimate_fails(tmp_path):
    page = write_ladder(RUNGS, tmp_path, "Title").read_text()
    assert "3 of 6 (50%) rungs" in page and "2 are higher than that, 1 lower" in page
    assert "| sgd() | 2 | 1 of 2 (50%) | 1 | 0 | 0 of 1 (0%) | 1 | 0 |" in page


def test_estimates_that_are_mostly_floor_are_hollow():
    figure = calibration_figure(RUNGS)
    (axes,) = figure.axes
    drawn = [c for c in axes.collections if isinstance(c, PathCollection)]
    hollow = [len(c.get_offsets()) for c in drawn if not len(c.get_facecolors())]
    assert hollow == [0, 1] and sum(len(c.get_offsets()) for c in drawn) == 7
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["order 1", "order 2", "mostly the rounding floor"]
    assert len(calibration_figure([rung(0, 1.0, 0.9)]).axes) == 1  # nothing to draw


def test_a_cell_without_numbers_is_on_the_page(tmp_path):
    nothing = dict(no_unlearning=None, retrain_distance=None, epochs=5)
    broken = [rung(**fields, **nothing) for fields in without_numbers(1, "training diverged")]
    page = write_ladder([*RUNGS[:2], *broken], tmp_path, "Title").read_text()
    assert "| 5 | 7 | missing in 1 of 1 | missing in 1 of 1 |" in page
    assert "Missing, f, 5 epochs: training diverged" in page
    assert write_ladder(broken, tmp_path, "Title").exists()  # nothing else to draw


def test_order_one_has_no_resummed_column(tmp_path):
    page = write_ladder(RUNGS[:2], tmp_path, "Title").read_text()
    assert "r1" not in page and "resummed" not in page
    assert (
        "| epochs | forgotten | retrains | 1 | 2 | r2 |"
        in write_ladder(RUNGS, tmp_path, "Title").read_text()
    )


def test_equal_models_are_refused(recorded_run):
    with pytest.raises(InputError, match="nothing was forgotten"):
        climb(recorded_run, recorded_run, [3], 1)
