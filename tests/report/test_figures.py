"""Figures show every row once, exact zeros included, and say nothing when there is nothing."""

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from unroll.errors import InputError
from unroll.report import (
    accuracy_gaps,
    output_distributions,
    output_entropies,
    scoreboard,
    training_curves,
)
from unroll.report.axes import LogAxisWithZero
from unroll.report.curves import running_mean
from unroll.report.distributions import quantile_curves
from unroll.report.figures import CAPTIONS, FIGURES
from unroll.report.labels import Label, place_labels
from unroll.report.scoreboard import _only_difference, pareto_frontier


def points(axes):
    """Positions of the drawn points, by label."""
    lines = [line for line in axes.lines if (line.get_gid() or "").startswith("point ")]
    return {line.get_gid().removeprefix("point "): line.get_xydata()[0] for line in lines}


def test_scoreboard_draws_each_row_but_the_null(digits):
    axes = scoreboard(digits).axes[0]
    drawn = points(axes)
    assert len(drawn) == 9 and "retrain_vs_retrain" not in drawn
    assert drawn["taylor(order=1)"] == pytest.approx([2.0, 0.066], rel=0.1)
    families = [line for line in axes.lines if line.get_gid() == "family taylor"]
    assert [len(line.get_xydata()) for line in families] == [3]
    assert any(line.get_gid() == "frontier" for line in axes.lines)


def test_exact_zeros_lie_on_the_line_labelled_zero(digits):
    axes = scoreboard(digits).axes[0]
    drawn = points(axes)
    across, up = axes.get_xticks()[0], axes.get_yticks()[0]
    assert drawn["replay"][1] == drawn["retrain"][1] == up
    assert drawn["original"][0] == across
    assert axes.xaxis.get_major_formatter()(across) == axes.yaxis.get_major_formatter()(up) == "0"
    assert up < min(y for _, y in drawn.values() if y != up)
    assert "replay = 0 exactly" in [text.get_text() for text in axes.texts]


def test_many_methods_are_numbered(thirty):
    axes = scoreboard(thirty).axes[0]
    assert len(points(axes)) == 33
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("31") == 2  # at the point and in the list
    assert "scrub_plain" in texts


def test_methods_without_an_error_are_named(make_records):
    records = [
        dataclasses.replace(record, value=None, note="diverged")
        if record.method == "finetune" and record.metric == "relative_verification_error"
        else record
        for record in make_records(curves=False)
    ]
    figure = scoreboard(records)
    assert "finetune" not in points(figure.axes[0])
    assert any(
        "Not drawn" in text.get_text() and "finetune" in text.get_text() for text in figure.texts
    )


def with_one_failure(records):
    """One method without values for one of the seeds."""
    return [
        dataclasses.replace(record, value=None, note="diverged")
        if (record.method, record.train_seed) == ("gradient_ascent", 2)
        else record
        for record in records
    ]


def test_a_method_that_failed_for_some_seeds_is_not_drawn(make_records):
    records = with_one_failure(make_records(curves=False))
    figure = scoreboard(records)
    assert "gradient_ascent" not in points(figure.axes[0])
    assert "finetune" in points(figure.axes[0])
    omissions = [text.get_text() for text in figure.texts if "Not drawn" in text.get_text()]
    assert len(omissions) == 1 and omissions[0].endswith("every seed: gradient_ascent")


def test_frontier_keeps_what_nothing_beats():
    frontier = pareto_frontier([(1, 0), (0, 1), (0.5, 1.1), (0.5, 0.4), (0.7, 0.4), (2, 0)])
    assert frontier == [(0, 1), (0.5, 0.4), (1, 0)]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ([{"order": 1}, {"order": 2}], "order"),
        ([{"order": 1, "rate": 0.1}, {"order": 2, "rate": 0.1}], "order"),
        ([{"order": 1, "rate": 0.1}, {"order": 2, "rate": 0.2}], None),
        ([{"mask": "a"}, {"mask": "b"}], None),
        ([{"order": 1}, {}], None),
        ([{}], None),
    ],
)
def test_variants_are_joined_along_one_number(settings, name):
    assert _only_difference(settings) == name


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((0.01, 1.0, 20.0), ["0.01", "0.1", "1", "10"]),
        ((0.0, 1.0, 6.0), ["0", "1", "2", "5"]),
        ((1e-5, 1e-4, 1.0), ["$10^{-5}$", "$10^{-4}$", "0.001", "0.01", "0.1", "1"]),
    ],
)
def test_ticks_suit_the_range(values, ticks):
    axis = LogAxisWithZero.around(values)
    assert [axis.tick_text(tick) for tick in axis.ticks()] == ticks
    assert axis.start < axis.place(min(values)) < axis.highest


def test_labels_of_near_points_do_not_overlap():
    figure = Figure()
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    place_labels(axes, [Label(f"method number {i}", 0.5, 0.5 + i / 200, "k") for i in range(8)])
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    boxes = [super(type(text), text).get_window_extent(renderer) for text in axes.texts]
    shared = [Bbox.intersection(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    areas = [box.width * box.height for box in shared if box is not None]
    assert max(areas, default=0) < 0.05 * boxes[0].width * boxes[0].height


def test_accuracy_gaps_has_a_point_per_row_and_a_null_band(digits):
    panels = accuracy_gaps(digits).axes
    assert len(panels) == 3
    for axes in panels:
        assert len(points(axes)) == 8  # neither the oracle nor the null row
        assert [patch.get_gid() for patch in axes.patches] == ["null"]
    names = [label.get_text() for label in panels[0].get_yticklabels()]
    assert names[0] == "original" and "retrain" not in names


def test_survivors_do_not_speak_for_the_seeds_that_failed(digits):
    records = with_one_failure(digits)
    for axes in accuracy_gaps(records).axes:
        assert len(points(axes)) == 7 and "gradient_ascent" not in points(axes)
        assert [text.get_text() for text in axes.texts] == ["n/a"]
    curves = quantile_curves(records)
    assert "gradient_ascent" not in curves and "finetune" in curves


@pytest.mark.parametrize("draw", [output_distributions, output_entropies])
@pytest.mark.parametrize(("methods", "panels"), [(3, 1), (7, 7)])
def test_distributions_use_small_multiples_when_many(digits, methods, panels, draw):
    names = ["replay", "finetune", "gradient_ascent", "single_gradient", "taylor"][
        : 3 if methods == 3 else 5
    ]
    kept = [r for r in digits if r.method in {"original", "retrain", *names}]
    visible = [axes for axes in draw(kept).axes if axes.get_visible()]
    assert len(visible) == panels
    lines = sum(len(axes.lines) for axes in visible)
    assert lines == (methods + 2 if panels == 1 else 3 * panels)


def test_quantiles_are_averaged_over_seeds(digits):
    probabilities, shares = quantile_curves(digits)["finetune"]
    at_half = [
        record.value
        for record in digits
        if (record.method, record.metric, record.at) == ("finetune", "true_class_probability", 0.5)
    ]
    assert len(at_half) == 5
    assert probabilities[list(shares).index(0.5)] == pytest.approx(np.mean(at_half))


def test_training_curves_draw_seeds_and_mean(digits):
    axes = training_curves(digits).axes[0]
    assert len(axes.lines) == 2 * (5 + 1)
    assert "running mean over 11 points" in axes.get_ylabel()


@pytest.mark.parametrize("window", [1, 2, 5])
def test_running_mean_keeps_length_and_constants(window):
    np.testing.assert_allclose(running_mean(np.full(12, 3.0), window), np.full(12, 3.0))


@pytest.mark.parametrize("draw", FIGURES.values())
def test_no_rows_no_figure(digits, draw):
    assert draw([record for record in digits if record.metric == "accuracy"]) is None


@pytest.mark.parametrize("draw", FIGURES.values())
def test_a_figure_never_mixes_sections(make_records, draw):
    records = make_records(seeds=[0]) + make_records(seeds=[0], dataset="other")
    with pytest.raises(InputError, match="one section"):
        draw(records)


@pytest.mark.parametrize("draw", FIGURES.values())
def test_one_seed_and_no_null_row_still_draw(make_records, draw):
    records = [r for r in make_records(seeds=[0]) if r.method != "retrain_vs_retrain"]
    assert isinstance(draw(records), Figure)


def test_every_figure_has_a_caption():
    assert FIGURES.keys() == CAPTIONS.keys()
