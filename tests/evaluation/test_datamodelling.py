"""Datamodelling: known predictions, known scores, and deletions that are real retrainings."""

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure

import unroll
from unroll.evaluation.datamodelling import (
    METAGRADIENTS,
    Deletions,
    changes_of,
    datamodelling_score,
    delete_and_retrain,
    effects,
    predicted_changes,
    price,
    random_deletions,
)
from unroll.report.datamodelling import datamodelling_figure, point_score, write_datamodelling
from unroll.unrolling.metagradients import metagradients
from unroll.unrolling.outcomes import mean_loss, point_losses
from unroll.unrolling.smoothness import Smoothness
from unroll.unrolling.tracin import tracin


def test_random_deletions_are_stable_and_differ(blobs):
    train, _ = blobs
    few, many = (random_deletions(train, count, fraction=0.05, seed=3) for count in (4, 9))
    assert all((a == b).all() for a, b in zip(few, many[:4], strict=True))
    assert len({tuple(ids) for ids in many}) == 9
    assert all(len(ids) == 6 for ids in many)
    other = random_deletions(train, 4, fraction=0.05, seed=4)
    assert not any((a == b).all() for a, b in zip(few, other, strict=True))


def test_predictions_are_minus_weighted_sums(recorded_run):
    weights = np.linspace(0.5, 1.5, len(recorded_run.weights)).astype(np.float32)
    run = dataclasses.replace(recorded_run, weights=weights)
    attribution = np.random.default_rng(0).normal(size=(2, len(weights)))
    found = predicted_changes(run, attribution, [np.array([3]), np.array([1, 7])])
    assert found.shape == (2, 2)
    assert found[0, 1] == pytest.approx(-weights[3] * attribution[1, 3])
    expected = -weights[1] * attribution[0, 1] - weights[7] * attribution[0, 7]
    assert found[1, 0] == pytest.approx(expected)
    with pytest.raises(unroll.InputError, match="give \\[metrics, 120\\]"):
        predicted_changes(run, attribution[:, :5], [np.array([3])])


def test_score_of_known_rankings():
    actual = np.random.default_rng(0).normal(size=(60, 3))
    # Any increasing map keeps the ranks; the last metric is ranked the wrong way round.
    predicted = np.stack([np.exp(actual[:, 0]), 5 * actual[:, 1] - 2, -actual[:, 2]], axis=1)
    score = datamodelling_score(predicted, actual)
    assert [correlation.value for correlation in score.metrics] == pytest.approx([1, 1, -1])
    assert score.value == pytest.approx(1 / 3)
    assert (score.low, score.high) == pytest.approx((1 / 3, 1 / 3))


def test_score_interval_covers_the_truth_and_shrinks():
    """Gaussian pairs with correlation 0.8, whose Spearman correlation is 6/pi asin(0.4) = 0.786."""
    truth, covered, widths = 6 / np.pi * np.arcsin(0.4), 0, []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        first = rng.normal(size=(60, 1))
        second = 0.8 * first + 0.6 * rng.normal(size=(60, 1))
        score = datamodelling_score(first, second, resamples=300)
        covered += score.low <= truth <= score.high
        widths.append(score.high - score.low)
    # 95% of 40 is 38; fewer than 33 would happen once in 10,000 with right intervals.
    assert covered >= 33
    long = rng.normal(size=(600, 1))
    score = datamodelling_score(long, 0.8 * long + 0.6 * rng.normal(size=(600, 1)), resamples=300)
    assert score.high - score.low < np.mean(widths) / 2


def test_a_metric_that_nothing_changes_has_no_score():
    values = np.random.default_rng(0).normal(size=(10, 2))
    constant = values.copy()
    constant[:, 1] = 0.0
    score = datamodelling_score(values, constant)
    assert score.value is None and "constant" in score.metrics[1].note
    assert score.metrics[0].value == pytest.approx(1.0)


def test_bad_changes():
    with pytest.raises(unroll.InputError, match="at least 3 deletions"):
        datamodelling_score(np.zeros((2, 1)), np.zeros((2, 1)))
    with pytest.raises(unroll.InputError, match="not finite"):
        datamodelling_score(np.full((4, 1), np.nan), np.zeros((4, 1)))


@pytest.fixture(scope="module")
def metrics(blobs, mlp_spec):
    _, test = blobs
    return [mean_loss(mlp_spec, test, "mean"), point_losses(mlp_spec, test, [1, 5, 9], "point")]


@pytest.mark.parametrize("mode", ["sequential", "batched"])
def test_deletions_are_twins(recorded_run, metrics, mode):
    """The change of a metric is that of a run with the same key, schedule, and weights 0."""
    run = recorded_run
    sets = [np.array([3, 17]), np.array([50])]
    found = delete_and_retrain(run, metrics, sets, mode=mode)
    assert found.changes.shape == (2, 4) and found.seconds > 0
    twin = unroll.unlearn("retrain", unroll.Problem(run, sets[0]))
    test = metrics[0]
    state = run.state._replace(params=twin.params)
    change = np.asarray(test(state) - test(run.state))
    # Batched runs round differently, by about 1e-7 of a loss of 1.
    assert found.changes[0, :1] == pytest.approx(change, abs=1e-6)
    assert np.abs(found.changes[:, 0]).min() > 1e-5


def test_deletions_start_where_the_run_did(recorded_run, metrics, tmp_path):
    run = unroll.train(
        recorded_run.spec,
        recorded_run.dataset,
        recorded_run.schedule[:4],
        initial=recorded_run.state,
        seed=5,
    )
    ids, seen = run.schedule[1, :3], []
    found = delete_and_retrain(
        run,
        metrics,
        [ids],
        store=unroll.Store(tmp_path),
        progress=lambda done, total: seen.append((done, total)),
    )
    twin = unroll.unlearn("retrain", unroll.Problem(run, ids))
    test = metrics[0]
    change = np.asarray(test(run.state._replace(params=twin.params)) - test(run.state))
    # The same program trains both, so the only rounding is that of the metric.
    assert found.changes[0, :1] == pytest.approx(change, abs=1e-6)
    assert abs(change) > 1e-5
    assert seen[-1] == (8, 8)
    with pytest.raises(unroll.InputError, match="one by one"):
        delete_and_retrain(run, metrics, [ids], mode="batched")


def test_retraining_goes_on_from_the_store(recorded_run, metrics, tmp_path):
    store, seen = unroll.Store(tmp_path), []
    sets = [np.array([3, 17]), np.array([50])]
    first = delete_and_retrain(recorded_run, metrics, sets, mode="sequential", store=store)
    again = delete_and_retrain(
        recorded_run,
        metrics,
        sets,
        mode="sequential",
        store=store,
        progress=lambda done, total: seen.append(done),
    )
    np.testing.assert_array_equal(first.changes, again.changes)
    assert len(seen) == 3  # each model was there at once


@pytest.mark.parametrize(
    ("ids", "message"), [([4, 4], "twice"), ([], "none"), ([500], "500")], ids=str
)
def test_bad_deletions(recorded_run, metrics, ids, message):
    with pytest.raises(unroll.InputError, match=message):
        delete_and_retrain(recorded_run, metrics, [np.array(ids, np.int64)])


def test_tracin_is_the_metagradient_of_one_step(blobs, mlp_spec, metrics):
    """With one step there is nothing to leave out, but the metric's gradient is at w_0, not w_1.

    A small step makes the two points equal.
    """
    train, _ = blobs
    spec = dataclasses.replace(mlp_spec, optimizer=unroll.optax_call("sgd", 1e-4))
    run = unroll.train(spec, train, np.arange(16)[None])
    exact, estimate = metagradients(run, metrics), tracin(run, metrics)
    # Relative to the largest: the two points differ by 1e-4.
    scale = np.abs(exact.gradients).max()
    np.testing.assert_allclose(estimate.gradients, exact.gradients, atol=1e-3 * scale)
    assert estimate.names == exact.names == ("mean", "point[1]", "point[5]", "point[9]")
    assert np.count_nonzero(estimate.gradients[0]) == 16


def test_tracin_sums_over_snapshots_and_uses(blobs, mlp_spec, metrics):
    """Where nothing moves, and with momentum, it is the metagradient, whatever was recorded."""
    train, _ = blobs
    optimizer = unroll.optax_call("sgd", 1e-5, momentum=0.5)
    spec = dataclasses.replace(mlp_spec, optimizer=optimizer)
    schedule = np.array([[0, 1, 2, -1], [3, 4, 5, -1], [3, 4, 5, -1], [0, 1, 2, -1]])
    run = unroll.train(spec, train, schedule, record=unroll.Record(every=1))
    exact = metagradients(run, metrics).gradients
    sparse = unroll.train(spec, train, schedule)
    for recorded in (run, sparse):
        found = tracin(recorded, metrics).gradients
        # Relative to the largest: the weights move by 1e-5.
        np.testing.assert_allclose(found, exact, atol=1e-3 * np.abs(exact).max())


def test_tracin_goes_on_in_the_learning_rate_schedule(blobs, mlp_spec, metrics):
    """The second half of a run, as a run of its own, has the same scales."""
    train, _ = blobs
    rate = unroll.optax_call("linear_schedule", 0.1, 0.0, 4)
    spec = dataclasses.replace(mlp_spec, optimizer=unroll.optax_call("sgd", rate))
    schedule = np.arange(32, dtype=np.int32).reshape(4, 8)
    whole = unroll.train(spec, train, schedule, record=unroll.Record(every=2))
    half = unroll.train(spec, train, schedule[2:], initial=whole.snapshots[2])
    late = schedule[2:].ravel()
    expected = tracin(whole, metrics).gradients[:, late]
    # The same numbers from the same states: rounding only.
    np.testing.assert_allclose(tracin(half, metrics).gradients[:, late], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(optimizer=unroll.optax_call("adam", 0.01)), "needs plain sgd"),
        (
            dict(objective=unroll.Objective(sd_gamma=1.0, sd_decay=2.0, sd_decay_every=5)),
            "set sd_decay=1.0",
        ),
        (dict(denominator="renormalise"), "needs denominator='batch'"),
    ],
)
def test_tracin_refuses_what_it_cannot_express(blobs, mlp_spec, metrics, settings, message):
    train, _ = blobs
    run = unroll.train(dataclasses.replace(mlp_spec, **settings), train, np.arange(16)[None])
    with pytest.raises(unroll.InputError, match=message):
        tracin(run, metrics)


@pytest.fixture(scope="module")
def rows(recorded_run, metrics):
    """Metagradients and a prediction by chance, against ten real deletions."""
    found = metagradients(recorded_run, metrics)
    random = np.random.default_rng(0).normal(size=found.gradients.shape)
    attributions = {"chance": dataclasses.replace(found, gradients=random), METAGRADIENTS: found}
    sets = random_deletions(recorded_run.dataset, 10, fraction=0.02)
    real = delete_and_retrain(recorded_run, metrics, sets)
    place = dict(dataset="blobs", model="mlp", optimizer="sgd", seed=0, fraction=0.02)
    return effects(recorded_run, attributions, real, **place), price(METAGRADIENTS, found)


def test_metagradients_predict_deletions_and_chance_does_not(rows):
    members = {row.method: [] for row in rows[0]}
    for row in rows[0]:
        members[row.method].append(row)
    assert point_score(members[METAGRADIENTS]).value > 0.9
    assert abs(point_score(members["chance"]).value) < 0.7


def test_rows_are_put_back_in_order(rows):
    members = [row for row in rows[0] if row.method == METAGRADIENTS]
    names, predicted, actual = changes_of(members)
    assert names == ["mean", "point[1]", "point[5]", "point[9]"]
    assert predicted.shape == actual.shape == (10, 4)
    assert predicted[7, 2] == members[7 * 4 + 2].predicted
    with pytest.raises(unroll.InputError, match="missing or repeated"):
        changes_of(members[:-1])
    with pytest.raises(unroll.InputError, match="one method"):
        changes_of(rows[0])


def test_page_and_figure_show_score_interval_and_cost(rows, tmp_path):
    members, cost = rows
    smooth = Smoothness(0.99, 0.9, 0.98, 0.1, None, 3, 1.0)
    page = write_datamodelling(members, [cost], smooth, tmp_path, "title").read_text()
    assert "10 deletions of 0.02" in page and "| chance |" in page and "score 0.99" in page
    assert "| metagradients | 4 |" in page
    assert (tmp_path / "datamodelling_0.02.png").stat().st_size > 1000
    figure = datamodelling_figure(members)
    assert isinstance(figure, Figure)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0].startswith("metagradients: LDS 0.9") and titles[1].startswith("chance")
    drawn = [len(line.get_xdata()) for line in figure.axes[0].lines if line.get_gid()]
    assert drawn == [10, 30]
    with pytest.raises(unroll.InputError, match="no effects"):
        write_datamodelling([], [cost], smooth, tmp_path, "title")


def test_undefined_scores_are_said(rows, recorded_run, metrics):
    found = metagradients(recorded_run, metrics)
    sets = random_deletions(recorded_run.dataset, 4, fraction=0.02)
    still = Deletions(sets, np.zeros((4, 4)), 1.0)
    place = dict(dataset="blobs", model="mlp", optimizer="sgd", seed=0, fraction=0.02)
    members = effects(recorded_run, {METAGRADIENTS: found}, still, **place)
    assert "not defined" in datamodelling_figure(members).axes[0].get_title()
