"""Proxies beside the verification error: a quadratic with a known error, and hand-made rows."""

import dataclasses

import numpy as np
import pytest

import unroll
from unroll.evaluation.proxies import (
    ProxyRow,
    across_runs,
    fixed_order_schedule,
    measure,
    slope,
    slopes,
    until,
    within_runs,
)
from unroll.metrics.correlation import pearson, spearman
from unroll.report.proxies import write_proxies
from unroll.unrolling.curvature import first_examples

RATE = 0.02


def test_the_forgotten_batch_stands_at_its_position_in_every_epoch():
    plain, _ = fixed_order_schedule(3, 50, 8, 6, forget_batch=0, position=0)
    schedule, forget = fixed_order_schedule(3, 50, 8, 14, forget_batch=4, position=1)
    assert schedule.shape == (14, 8)
    for step in (1, 7, 13):
        assert sorted(schedule[step]) == sorted(plain[4]) == forget.tolist()
    kept = np.delete(schedule[:6], 1, axis=0)
    np.testing.assert_array_equal(kept, np.delete(plain, 4, axis=0))
    np.testing.assert_array_equal(schedule[6:12], schedule[:6])
    assert not np.isin(kept, forget).any()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(forget_batch=6, position=0), "forget_batch=6: an epoch has the batches 0 to 5"),
        (dict(forget_batch=0, position=6), "position=6"),
        (dict(forget_batch=0, position=-1), "position"),
        (dict(forget_batch=0, position=5), "never uses its batch 5"),
    ],
)
def test_bad_schedules_are_refused(options, message):
    with pytest.raises(unroll.InputError, match=message):
        fixed_order_schedule(3, 50, 8, 5, **options)


def least_squares(position=0, steps=6, every=1, seed=0):
    """A quadratic run and its twin, and the ids of the forgotten batch."""
    train, _ = unroll.data.load("blobs", num_train=48, num_features=4, num_classes=3)
    spec = unroll.TrainSpec(
        unroll.models.build("linear", num_classes=3),
        objective=unroll.Objective(loss="squared_error"),
        optimizer=unroll.optax_call("sgd", learning_rate=RATE),
    )
    schedule, forget = fixed_order_schedule(seed, 48, 8, steps, forget_batch=2, position=position)
    weights = np.ones(48, np.float32)
    weights[forget] = 0
    record = unroll.Record(every=every)
    run = unroll.train(spec, train, schedule, record=record)
    return run, unroll.train(spec, train, schedule, record=record, weights=weights), forget


def test_errors_of_a_quadratic_are_the_known_ones():
    """|| (I - prod_i (I - eta H_i)) eta g_f || over the steps after the forgotten one."""
    run, twin, forget = least_squares()
    rows = measure(run, twin, forget, first_examples(run.dataset, 48))
    start = run.snapshots[0].params

    def matrix(params):
        head = params["head"]["dense"]
        return np.concatenate([head["kernel"], head["bias"][None]]).astype(np.float64)

    step = matrix(start) - matrix(run.snapshots[1].params)
    left = step
    for row in rows:
        if row["t"] > 1:
            inputs = np.asarray(run.dataset.inputs[run.schedule[row["t"] - 1]], np.float64)
            inputs = np.concatenate([inputs, np.ones([8, 1])], axis=1)
            left = left - RATE * inputs.T @ (inputs @ left) / 8
        # Float32 weights of order 1 round at 1e-7, these errors are about 1e-2.
        assert row["verification_error"] == pytest.approx(np.linalg.norm(step - left), abs=1e-6)
        assert row["no_unlearning"] == pytest.approx(np.linalg.norm(left), abs=1e-6)
        assert row["gradient_norm"] == pytest.approx(np.linalg.norm(step) / RATE, rel=1e-5)
        assert row["uses"] == 1 and row["learning_rate"] == pytest.approx(RATE)
    assert rows[-1]["verification_error"] > 1e-2
    assert rows[-1]["verification_error"] < rows[-1]["gradnorm"]


def test_positions_and_checkpoints():
    run, twin, forget = least_squares(position=3)
    rows = {row["t"]: row for row in measure(run, twin, forget, first_examples(run.dataset, 48))}
    for t in (1, 2, 3):  # not used yet: the same models, nothing to unlearn
        assert rows[t]["uses"] == rows[t]["verification_error"] == rows[t]["no_unlearning"] == 0
    # With a snapshot before every step, what the last step took out is known exactly.
    assert rows[4]["checkpointed_error"] < 1e-6 < 1e-3 < rows[4]["verification_error"]
    assert rows[6]["checkpointed_error"] < rows[6]["verification_error"]
    coarse, coarse_twin, _ = least_squares(position=3, every=6)
    assert list(coarse.snapshots) == [0, 6]
    assert np.array_equal(coarse.losses, run.losses) and coarse_twin.steps == 6


def test_a_run_that_ends_earlier():
    run, _, _ = least_squares()
    shorter = until(run, 4)
    assert shorter.steps == len(shorter.losses) == 4 and list(shorter.snapshots) == [0, 1, 2, 3, 4]
    assert unroll.tree.same_bits(shorter.state, run.snapshots[4])


def test_another_runs_twin_is_refused():
    run, _, forget = least_squares()
    _, stranger, _ = least_squares(seed=1)
    with pytest.raises(unroll.InputError, match="the twin must have the run's schedule"):
        measure(run, stranger, forget, first_examples(run.dataset, 48))


def made_rows():
    """VE = scale t^2, paper = VE^1.5: 5 runs of 4 steps, and one that diverged."""
    common = dict(dataset="d", model="m", forget_batch=0, position=0, curvature_batch="b")
    rows = []
    for seed, scale in enumerate((1.0, 2.0, 4.0, 8.0, 16.0)):
        for t in (1, 2, 3, 4):
            error = scale * t**2
            numbers = dict.fromkeys(
                (
                    "learning_rate sigma sigma_average sigma_residual displacement gradient_norm "
                    "eta_t_sigma eta1 gradnorm leading accumulated_paper accumulated_eta1 "
                    "accumulated_gradnorm retrain_distance test_accuracy"
                ).split(),
                0.5,
            )
            numbers.update(paper=error**1.5, verification_error=error, checkpointed_error=error / 2)
            numbers.update(no_unlearning=error / 4)
            rows.append(ProxyRow(**common, gamma=0.0, seed=seed, t=t, uses=1, **numbers))
    broken = dict(gamma=9.0, seed=0, t=4, uses=0, note="training diverged: step 3")
    return [*rows, ProxyRow(**common, **broken)]


def test_correlations_of_made_rows():
    rows = made_rows()
    # Each run is the same up to its scale, so all have the same correlation.
    t = np.arange(1.0, 5.0)
    expected = np.corrcoef(t**2, t)[0, 1]
    assert within_runs(rows, "t") == pytest.approx([expected] * 5)
    assert within_runs(rows, "t", spearman) == pytest.approx([1.0] * 5)
    assert within_runs(rows, "eta1") == []  # constant
    scales = 16 * 2.0 ** np.arange(5)
    across = across_runs(rows, "paper", 4, pearson)
    assert across.value == pytest.approx(np.corrcoef(scales, scales**1.5)[0, 1])
    assert across.count == 5
    assert across_runs(rows, "t", 4).value is None  # t alone says nothing at a fixed t
    assert slopes(rows, "paper") == pytest.approx([1.5] * 5)
    assert slopes(rows, "t") == pytest.approx([0.5] * 5)
    assert slope(rows, "eta1") is None


def test_copies_of_one_run_have_no_interval():
    """Five positions of two seeds: what does not know the position has two distinct values."""
    last = made_rows()[3]
    rows = [
        dataclasses.replace(
            last,
            seed=seed,
            position=position,
            paper=1.0 + seed,
            gradnorm=float((3 * position + seed) % 7),
            verification_error=1.0 + position + seed / 2,
        )
        for position in range(5)
        for seed in range(2)
    ]
    errors = [row.verification_error for row in rows]
    for correlate in (pearson, spearman):
        copied = across_runs(rows, "paper", 4, correlate)
        assert (copied.low, copied.high, copied.count) == (None, None, 10)
        assert copied.note == "no interval: only 2 distinct values"
        assert copied.value == correlate([row.paper for row in rows], errors).value
        assert across_runs(rows, "gradnorm", 4, correlate).low is not None


def test_page_prints_no_interval_over_copies(tmp_path):
    rows = [dataclasses.replace(row, eta1=float(row.seed % 3)) for row in made_rows()[:-1]]
    page = write_proxies(rows, tmp_path, "title").read_text()
    assert "Runs: n = 5 at t = 3, n = 5 at t = 4." in page
    assert "(only 3 distinct values)" in page


def test_page_counts_the_steps_at_which_unlearning_did_harm(tmp_path):
    values = [(1.9, 0.5), (2.0, 2.0), (4.0, 1.0), (30.0, 3.0), (40.0, 0.1), (50.0, 7.0)]
    rows = [
        dataclasses.replace(made_rows()[0], eta_t_sigma=x, verification_error=r, no_unlearning=1.0)
        for x, r in values
    ]
    page = write_proxies(rows, tmp_path, "title").read_text()
    assert "| 0 to 2 | 0 | 1 | 0% |" in page and "| 2 to 5 | 1 | 2 | 50% |" in page
    assert "| 5 to 8 | 0 | 0 | - |" in page and "| 20 and more | 2 | 3 | 67% |" in page


def test_page(tmp_path):
    path = write_proxies(made_rows(), tmp_path, "title")
    page = path.read_text()
    assert "Left out, ('d', 'm', 9.0, 0, 0, 0): training diverged: step 3" in page
    assert "| paper | 0.99" in page and "| t | 0.98" in page and "| t | - | - | - |" in page
    assert "| 0 | 0 | 5 |" in page and "| 4 | 2 |" in page  # ratios: worse than doing nothing
    for name in ("proxies.png", "scatter.png", "ratio.png"):
        assert (tmp_path / name).stat().st_size > 1000
