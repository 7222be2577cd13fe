"""Figures and the page of memorization scores: what is drawn is what the scores say."""

import dataclasses
import json

import numpy as np
import pytest

import unroll
from unroll.errors import InputError
from unroll.memorization.scores import MemorizationScores, Pair
from unroll.report.memorization import (
    expected_by_chance,
    influence_pairs,
    most_memorized,
    score_distribution,
    summarize_scores,
    write_memorization,
)

PAIRS = [Pair(3, 5, 0.8), Pair(0, 9, 0.4)]


@pytest.fixture(scope="module")
def digits():
    return unroll.data.load("digits", num_train=200, num_test=50)


@pytest.fixture(scope="module")
def scores(digits):
    """A tenth of the examples memorized, example 17 most of all, the rest at zero but for noise."""
    train, _ = digits
    generator = np.random.default_rng(0)
    errors = np.full(len(train), 0.03)
    values = generator.normal(scale=errors)
    values[:20] = generator.uniform(0.3, 0.9, 20)
    values[17], errors[17] = 0.95, 0.0
    info = dict(
        dataset=train.name,
        measure="accuracy",
        models=400,
        share=0.7,
        epochs=20,
        accuracy_included=0.99,
        accuracy_excluded=0.9,
        accuracy_test=0.91,
        seconds=12.5,
        example_gradients=1000,
        source="exact",
    )
    counts = np.full(len(train), 280)
    return MemorizationScores(values, errors, counts, 400 - counts, train.labels, info)


def test_a_summary_counts(scores):
    row = summarize_scores(scores, "mlp")
    assert row.model == "mlp" and row.models == 400 and row.examples == 200
    assert row.mean == pytest.approx(scores.values.mean())
    assert row.above == pytest.approx((scores.values > 0.5).mean()) and 0.05 < row.above < 0.1
    assert row.below == pytest.approx((scores.values < 0.01).mean())
    # A tenth is memorized; of the others 0.023 is expected beyond two errors.
    assert 0.1 <= row.beyond_errors < 0.16


def test_chance_is_the_normal_distribution_of_the_errors():
    edges = np.array([-np.inf, -0.1, 0.1, np.inf])
    found = expected_by_chance(np.array([0.1, 0.0]), edges)
    # One example within one standard error (0.6827), the other at exactly 0.
    np.testing.assert_allclose(found, [0.1587 / 2, (0.6827 + 1) / 2, 0.1587 / 2], atol=1e-4)


def test_the_histogram_holds_every_example_and_scores_of_zero_share_a_bin(scores):
    axes = score_distribution(scores).axes[0]
    bars = [patch for patch in axes.patches if patch.get_height() > 0]
    assert sum(bar.get_height() for bar in bars) == pytest.approx(1)
    left, right = axes.get_xlim()
    assert all(left < bar.get_x() and bar.get_x() + bar.get_width() < right for bar in bars)
    zero = dataclasses.replace(scores, values=np.where(scores.values > 0.2, 1.0, 0.0))
    zero = score_distribution(zero).axes[0]
    heights = sorted(patch.get_height() for patch in zero.patches)[-2:]
    assert heights == pytest.approx([0.1, 0.9])


def texts(figure):
    return [axes.get_title() for axes in figure.axes if axes.images]


def test_the_most_memorized_come_first_with_label_score_and_error(scores, digits):
    train, _ = digits
    figure = most_memorized(scores, train, count=10)
    titles = texts(figure)
    assert len(titles) == 10 and titles[0] == f"{train.labels[17]}\n0.95 ± 0.00"
    np.testing.assert_allclose(
        np.asarray(figure.axes[0].images[0].get_array()), train.inputs[17][..., 0]
    )
    with pytest.raises(InputError, match="its labels are others"):
        most_memorized(scores, train.take(np.arange(len(train))[::-1]))


def test_a_pair_is_a_test_image_above_a_training_image(digits):
    train, test = digits
    figure = influence_pairs(PAIRS, train, test)
    assert texts(figure) == [
        f"{test.labels[3]}\ntest",
        f"{test.labels[0]}\ntest",
        f"{train.labels[5]}\ninfl. 0.80",
        f"{train.labels[9]}\ninfl. 0.40",
    ]
    with pytest.raises(InputError, match="no pairs"):
        influence_pairs([], train, test)


def test_colour_images_are_drawn_as_they_are(images, scores):
    train, _ = images
    some = np.arange(len(train))
    few = MemorizationScores(some / 100, some * 0, some, some, train.labels, {})
    drawn = np.asarray(most_memorized(few, train, 3).axes[0].images[0].get_array())
    assert drawn.shape == (8, 8, 3) and 0 <= drawn.min() < drawn.max() <= 1


def test_the_page(scores, digits, tmp_path):
    rows = [summarize_scores(scores, "mlp")]
    page = write_memorization(tmp_path, "digits", rows, scores, *digits, PAIRS).read_text()
    assert "400 models, each trained for 20 epochs on 0.7" in page
    assert f"| accuracy | {rows[0].mean:.3f} |" in page
    assert page.count("![") == 3 and len(list(tmp_path.glob("*.png"))) == 3
    (line,) = (tmp_path / "scores.jsonl").read_text().splitlines()
    assert json.loads(line) == dataclasses.asdict(rows[0])


def test_what_is_no_image_is_not_drawn(scores, blobs, tmp_path):
    train, test = blobs
    few = MemorizationScores(
        scores.values[:120],
        scores.standard_errors[:120],
        scores.included[:120],
        scores.excluded[:120],
        train.labels,
        scores.info,
    )
    rows = [summarize_scores(few, "mlp")]
    page = write_memorization(tmp_path, "blobs", rows, few, train, test, PAIRS).read_text()
    assert page.count("![") == 1
    with pytest.raises(InputError, match="no images"):
        most_memorized(few, train)


def test_released_scores_have_no_errors_to_draw(scores):
    bare = dataclasses.replace(scores, standard_errors=None)
    for draw in (score_distribution, lambda given: summarize_scores(given, "mlp")):
        with pytest.raises(InputError, match="no standard errors"):
            draw(bare)
