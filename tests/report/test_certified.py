"""Figures and pages of certified removals and of the pipeline, from made-up rows."""

import dataclasses

import pytest

from unroll.errors import InputError
from unroll.report.certified import (
    Removal,
    Served,
    pipeline_figure,
    removal_figure,
    write_certified,
    write_pipeline,
)


def removal(seed, count, bound="paper", last=False):
    return Removal(
        dataset="digits[9/3]",
        classes="classes 3, 8",
        bound=bound,
        l2=0.01,
        sigma=1.0,
        seed=seed,
        removals=count,
        budget=0.5,
        residual_bound=0.1 * count,
        residual=0.02 * count,
        distance_bound=0.4 * count,
        distance=0.1 * count,
        accuracy=0.9,
        retrained_accuracy=0.91,
        plain_accuracy=0.95,
        seconds=0.01,
        retrain_seconds=0.2,
        last=last,
    )


def removals():
    rows = [removal(0, count, last=count == 5) for count in range(6)]
    rows += [removal(1, count, last=count == 3) for count in range(4)]
    return rows + [removal(seed, count, "integral") for seed in (0, 1) for count in range(3)]


def test_certified_page(tmp_path):
    page = write_certified(removals(), tmp_path, "a title").read_text()
    lines = [line for line in page.splitlines() if line.startswith(("| paper", "| integral"))]
    paper, integral = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    # Budgets ended after 5 and 3 removals; the others never did.
    assert paper[4].startswith("4 ±") and integral[4] == "2 +"
    assert paper[5] == "0.2" and paper[6] == "0.25"
    assert (tmp_path / "certified.png").stat().st_size > 5000


def test_each_seed_is_a_line_that_ends_with_its_budget():
    left, right = removal_figure(removals()).axes
    labels = [line.get_label() for line in left.lines if not line.get_label().startswith("_")]
    assert labels == ["paper bound, l2 0.01, sigma 1", "integral bound, l2 0.01, sigma 1"]
    first, _, second, *_ = left.lines
    # Nothing is drawn at 0 removals, where the residual is rounding.
    assert list(first.get_xdata()) == [1, 2, 3, 4, 5] and list(second.get_xdata()) == [1, 2, 3]
    assert list(second.get_ydata()) == pytest.approx([0.1, 0.2, 0.3])
    assert list(right.lines[0].get_xdata()) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(InputError, match="no removals"):
        removal_figure([])


def served(influence, noise, seed, accepted=True, **changes):
    row = Served(
        dataset="digits[9/3]",
        model="mlp",
        influence=influence,
        noise=noise,
        seed=seed,
        error=0.2,
        accuracy=0.9,
        original_accuracy=0.92,
        accepted=accepted,
        example_gradients=0.3,
        statement=f"statement of {noise}",
    )
    return dataclasses.replace(row, **changes)


def test_pipeline_page(tmp_path):
    missing = dict(error=None, accuracy=None, example_gradients=None, statement="", note="diverges")
    rows = [served("cg", "none", seed) for seed in (0, 1)]
    rows += [served("cg", "measured", seed, seed == 0) for seed in (0, 1)]
    rows += [served("LiSSA", "none", seed, False, **missing) for seed in (0, 1)]
    page = write_pipeline(rows, tmp_path, "a title").read_text()
    assert "| cg | none | 0.2 | 0.9 | 1 | 0.3 |" in page
    assert "| cg | measured | 0.2 | 0.9 | 0.5 | 0.3 |" in page
    assert "| LiSSA | none | - | - | 0 | - |" in page
    assert "- LiSSA, none, seed 1: diverges" in page
    assert page.count("statement of none") == 1
    assert (tmp_path / "pipeline.png").stat().st_size > 5000
    points = {line.get_label(): line for line in pipeline_figure(rows).axes[0].lines}
    assert points["cg, measured"].get_markerfacecolor() == "white"
    assert points["cg, none"].get_markerfacecolor() != "white"
    with pytest.raises(InputError, match="no update has numbers"):
        pipeline_figure(rows[4:])
