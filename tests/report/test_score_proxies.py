"""The page and the figures of proxies against exact scores: what is drawn is what the rows say."""

import dataclasses

import numpy as np
import pytest

import unroll
from unroll.evaluation.score_proxies import ScoreProxyRow
from unroll.report.score_proxies import agreement_figure, scatter_figure, write_score_proxies

MEANS = {"confidence": 0.8, "holdout_retraining(epochs=5)": 0.6, "loss_curvature": -0.1}
COSTS = {"confidence": 0.0, "holdout_retraining(epochs=5)": 0.004, "loss_curvature": 0.02}


def row(proxy, seed, augmented=False, **changes):
    value = MEANS[proxy] + 0.02 * seed - 0.1 * augmented
    fields = dict(
        dataset="digits[200/50]",
        model="mlp",
        augmented=augmented,
        proxy=proxy,
        direction=1,
        seed=seed,
        examples=200,
        models=400,
        spearman=value,
        spearman_low=value - 0.1,
        spearman_high=value + 0.1,
        ceiling=0.9,
        precision={"0.05": 0.5, "0.1": 0.25},
        precision_low={"0.05": 0.4, "0.1": 0.2},
        precision_high={"0.05": 0.6, "0.1": 0.3},
        example_gradients=10.0,
        seconds=1.0,
        cost_gradients=COSTS[proxy],
        # The collection of events is measured as less than nothing now and then.
        cost_seconds=COSTS[proxy] or -1e-6,
        training_cost_gradients=0.0036,
        training_cost_seconds=0.003,
        test_accuracy=0.9,
    )
    return ScoreProxyRow(**{**fields, **changes})


ROWS = [row(proxy, seed, way) for way in (False, True) for proxy in MEANS for seed in (0, 1, 2)]
BROKEN = dataclasses.replace(
    row("loss_curvature", 3), spearman=None, spearman_low=None, spearman_high=None, note="too fast"
)


def test_the_page_has_means_ends_costs_and_notes(tmp_path):
    values = {proxy: np.random.default_rng(0).normal(size=200) for proxy in MEANS}
    exact = np.random.default_rng(1).uniform(size=200)
    path = write_score_proxies([*ROWS, BROKEN], values, exact, tmp_path, "proxies")
    text = path.read_text()
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert [line.split(" | ")[0] for line in lines[:2]] == ["| `confidence`"] * 2  # best first
    # 0.80, 0.82, 0.84: mean 0.82, standard deviation 0.02, half width 4.303 * 0.02 / sqrt 3.
    assert "| no | 0.82 ± 0.05 [0.72, 0.92] | 0.5 [0.40, 0.60] |" in lines[0].replace(
        "0.500", "0.5"
    )
    assert "| yes | 0.72 ± 0.05" in lines[1] and lines[2].endswith("| 0.4 % | 0.4 % |")
    assert "Ceiling of the rank correlation: 0.90." in text
    # 0.1 less in every seed; the seed without a number has no partner.
    differences = text.partition("minus without")[2]
    assert all(f"| `{proxy}` | -0.1" in differences for proxy in MEANS)
    assert "Originals with augmentation, test accuracy 0.9; " in text
    assert "`loss_curvature`, seed 3, without augmentation: too fast" in text
    assert (tmp_path / "agreement.png").stat().st_size > 10_000
    assert (tmp_path / "scatter.png").stat().st_size > 10_000


def test_agreement_and_cost_share_their_lines():
    left, right = agreement_figure(ROWS).axes
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == ["loss curvature", "holdout retraining", "confidence"]  # the best on top
    dots = [line.get_xydata()[0] for line in left.lines if len(line.get_xdata()) == 1]
    assert len(dots) == 6
    means = {round(x, 6) for x, _ in dots}
    assert means == {0.82, 0.72, 0.62, 0.52, -0.08, -0.18}
    heights = sorted({round(y) for _, y in dots})
    assert heights == [0, 1, 2]
    squares = [line for line in right.lines if line.get_marker() == "s" and len(line.get_xdata())]
    zero = [line for line in squares if line.get_xdata()[0] < 0.003 / 1.6]  # below the axis
    assert len(squares) == 6 and len(zero) == 2  # nothing, for the learning events


def test_one_seed_has_no_interval_and_no_ceiling_is_said():
    rows = [dataclasses.replace(each, ceiling=None) for each in ROWS if each.seed == 0]
    left, _ = agreement_figure(rows).axes
    assert not [line for line in left.lines if line.get_label() == "ceiling"]
    with pytest.raises(unroll.InputError, match="nothing to draw"):
        agreement_figure([BROKEN])


def test_the_scatter_has_a_panel_for_each_proxy():
    exact = np.linspace(0, 1, 50)
    figure = scatter_figure({"confidence": exact, "el2n(epochs=2)": -exact}, exact)
    assert [axes.get_title() for axes in figure.axes] == ["confidence", "el2n"]
    first = figure.axes[0].collections[0].get_offsets()
    assert np.corrcoef(first.T)[0, 1] > 0.9
