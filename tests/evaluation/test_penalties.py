"""Penalties compared: known curvature, exact unlearning, exact interpolation, known risk."""

import dataclasses

import jax
import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.evaluation.penalties import (
    FINE_TUNING,
    TRAINING,
    Outcome,
    match_accuracy,
    measure,
    penalty_of,
    step_cost,
    train_stage,
)
from unroll.evaluation.privacy import (
    ORIGINAL,
    RETRAINED,
    RiskRow,
    gap_correlations,
    score,
    shadow_histograms,
)
from unroll.report.penalties import write_penalties, write_privacy
from unroll.unrolling.curvature import first_examples

FORGET = np.array([3, 17, 40])
METHODS = ("single_gradient", "taylor(order=1)")


def linear(**objective):
    return unroll.TrainSpec(
        unroll.models.build("linear", num_classes=3),
        objective=unroll.Objective(**objective),
        optimizer=unroll.optax_call("sgd", learning_rate=0.05),
    )


@pytest.fixture(scope="module")
def schedule(blobs):
    return unroll.data.make_schedule(0, len(blobs[0]), batch_size=20, epochs=2)


@pytest.fixture(scope="module")
def stage(blobs, schedule):
    return train_stage(TRAINING, linear(l2=0.5), blobs[0], schedule, FORGET, seed=0)


def test_one_penalty_has_a_name_and_two_are_refused():
    assert penalty_of(unroll.Objective()) == ("none", 0.0)
    assert penalty_of(unroll.Objective(hessian_gamma=0.3)) == ("softmax Hessian", 0.3)
    assert penalty_of(unroll.Objective(l2=0.1, singular_gamma=0.0)) == ("weight decay", 0.1)
    with pytest.raises(unroll.InputError, match="one at a time.*SD, weight decay"):
        penalty_of(unroll.Objective(l2=0.1, sd_gamma=0.1))


def test_fine_tuning_starts_where_the_forget_set_was_never_seen(blobs, schedule, stage):
    again = train_stage(FINE_TUNING, linear(), blobs[0], schedule, FORGET, seed=0, start=stage.twin)
    for run in (again.run, again.twin):
        assert tree.same_bits(run.snapshots[0].params, stage.twin.state.params)
    # What the forget set says can no longer change anything before the second horizon.
    labels = blobs[0].labels.copy()
    labels[FORGET] = (labels[FORGET] + 1) % 3
    other = dataclasses.replace(blobs[0], labels=labels)
    twin = train_stage(TRAINING, linear(l2=0.5), other, schedule, FORGET, seed=0).twin
    assert tree.same_bits(twin.state.params, stage.twin.state.params)


def test_sigma_is_that_of_the_bare_loss_and_l2_adds_lambda(blobs, stage):
    train, test = blobs
    found = measure(stage, test, (), first_examples(train, 30), proxies=False)
    flat, unravel = jax.flatten_util.ravel_pytree(stage.run.state.params)
    model = stage.run.spec.model

    def loss(vector):
        logits = model.apply({"params": unravel(vector)}, train.inputs[:30])
        return unroll.objectives.cross_entropy(logits, train.labels[:30]).mean()

    dense = np.linalg.eigvalsh(np.asarray(jax.hessian(loss)(flat), np.float64))
    # Lanczos stops at a residual of 1e-3 of the eigenvalue; the error of the value is smaller.
    assert found["sigma"] == pytest.approx(np.abs(dense).max(), rel=1e-3)
    assert found["training_sigma"] - found["sigma"] == pytest.approx(0.5, rel=2e-3)


def test_after_one_step_the_single_gradient_is_exact(blobs, schedule):
    train, test = blobs
    forget = schedule[0, :3].astype(np.int64)
    one = train_stage(TRAINING, linear(l2=0.5), train, schedule[:1], forget, seed=0)
    found = measure(one, test, METHODS, first_examples(train, 20), proxies=False)
    # Sums of float32 numbers of order 1 in another order.
    for method in METHODS:
        assert found["errors"][method] < 1e-6 < 1e-3 < found["no_unlearning"]
    assert found["steps"] == 1 and found["learning_rate"] == pytest.approx(0.05)
    assert found["displacement"] == tree.distance(one.run.state.params, one.run.snapshots[0].params)


def test_a_method_that_fails_is_missing_and_says_why(blobs, stage):
    found = measure(
        stage, blobs[1], ("single_gradient(start=1)",), first_examples(blobs[0], 20), proxies=True
    )
    assert found["errors"] == {"single_gradient(start=1)": None}
    assert "step 1 is not recorded" in found["note"]
    assert set(found["proxies"]) == {"paper", "eta1", "gradnorm", "leading"}


def test_nothing_to_forget_is_refused(blobs, schedule):
    unused = np.setdiff1d(np.arange(120), schedule[:1])[:2]
    same = train_stage(TRAINING, linear(), blobs[0], schedule[:1], unused, seed=0)
    with pytest.raises(unroll.InputError, match="nothing was forgotten"):
        measure(same, blobs[1], (), first_examples(blobs[0], 20), proxies=False)


def test_cost_of_a_step(blobs, schedule, stage):
    plain = train_stage(TRAINING, linear(), blobs[0], schedule, FORGET, seed=0)
    assert step_cost(linear(), plain.run) == 1.0
    assert step_cost(linear(l2=0.5), stage.run, steps=5, repetitions=2) > 0.1


def outcome(penalty, strength, seed, accuracy, error, **fields):
    values = dict(
        dataset="d",
        model="m",
        forget="f",
        horizon=TRAINING,
        forget_size=3,
        steps=10,
        learning_rate=0.1,
        retrained_accuracy=accuracy,
        sigma=error,
        training_sigma=error,
        displacement=1.0,
        no_unlearning=2.0,
        errors={"single_gradient": error},
        step_cost=1.0,
    )
    return Outcome(
        penalty=penalty, strength=strength, seed=seed, accuracy=accuracy, **{**values, **fields}
    )


def grid():
    """SD costs 0.1 of accuracy for each unit of strength and takes 0.2 off the error of 1."""
    rows = [outcome("none", 0.0, seed, 0.9 + 0.01 * seed, 1.0) for seed in range(3)]
    for strength in (1.0, 2.0, 4.0):
        for seed in range(3):
            accuracy = 0.9 + 0.01 * seed - 0.1 * strength
            rows.append(outcome("SD", strength, seed, accuracy, 1.0 - 0.2 * strength))
    rows += [outcome("weight decay", 1.0, seed, 0.89 + 0.01 * seed, 0.5) for seed in range(3)]
    return rows


def test_penalties_are_compared_at_equal_accuracy():
    sd, decay = match_accuracy(grid(), tolerance=0.15)
    assert (sd.penalty, sd.reached) == ("SD", True)
    assert sd.strength == pytest.approx(1.5)
    assert sd.accuracy_loss == pytest.approx((0.15,) * 3)
    assert sd.ratios["single_gradient"] == pytest.approx((0.7,) * 3)
    assert sd.ratios["relative single_gradient"] == pytest.approx((0.7,) * 3)
    assert (decay.penalty, decay.reached, decay.strength) == ("weight decay", False, 1.0)
    assert decay.ratios["sigma"] == pytest.approx((0.5,) * 3)


def test_a_diverged_strength_ends_the_walk():
    rows = [
        dataclasses.replace(row, errors={"single_gradient": None}) if row.strength == 2.0 else row
        for row in grid()
    ]
    sd, _ = match_accuracy(rows, tolerance=0.15)
    assert (sd.strength, sd.reached) == (1.0, False)
    with pytest.raises(unroll.InputError, match="without penalty"):
        match_accuracy([row for row in rows if row.penalty != "none"], tolerance=0.1)


def test_a_method_that_always_fails_is_left_out():
    rows = [dataclasses.replace(row, errors={"taylor(order=1)": None}) for row in grid()]
    sd, _ = match_accuracy(rows, tolerance=0.15)
    assert sd.strength == pytest.approx(1.5)
    assert set(sd.ratios) == {"sigma", "displacement", "no_unlearning"}


def test_page_of_penalties(tmp_path):
    diverged = Outcome("d", "m", "f", "SD", 8.0, 0, TRAINING, note="training diverged")
    page = write_penalties([*grid(), diverged], tmp_path, "Title").read_text()
    # Half the width of Student's interval of 0.90, 0.91, 0.92: 4.303 * 0.01 / sqrt(3).
    assert "costs 0.025" in page and "missing in 1 of 1" in page and "training diverged" in page
    assert (tmp_path / "absolute.png").stat().st_size > 5000


def test_page_prints_geometric_means_and_marks_what_is_not_at_equal_accuracy(tmp_path):
    rows = [row for row in grid() if row.penalty != "SD"]
    errors = iter((0.1, 1.0, 10.0))
    rows = [
        row
        if row.penalty == "none"
        else dataclasses.replace(row, errors={"single_gradient": next(errors)})
        for row in rows
    ]
    page = write_penalties(rows, tmp_path, "Title").read_text()
    # Student's interval of -1, 0, 1 decades: 0 -+ 4.303 / sqrt(3) = 2.484 of them.
    assert "| weight decay | 1 (strongest)* | +0.01 |" in page
    assert (
        "| 1.0 [0.0033, 300] |" in page
        and "37 ±" not in page
        and "3.7 ±" not in page.split("At")[1]
    )


@pytest.mark.parametrize(
    "rows",
    [
        [row for row in grid() if row.penalty == "none"],
        [Outcome("d", "m", "f", "SD", 8.0, 0, TRAINING, note="training diverged")],
    ],
    ids=["no penalty", "every run diverged"],
)
def test_page_with_nothing_to_compare(tmp_path, rows):
    write_penalties(rows, tmp_path, "Title")
    assert (tmp_path / "relative.png").exists()


def test_privacy_page_where_every_run_diverged(tmp_path):
    place = dict(dataset="d", model="m", forget="f", penalty="none", strength=0.0, seed=0)
    rows = [RiskRow(**place, horizon=TRAINING, method=m) for m in (ORIGINAL, RETRAINED)]
    assert "missing in 1 of 1" in write_privacy(rows, tmp_path, "Title").read_text()


def test_shadows_that_cannot_tell_give_one_half(blobs, schedule):
    histograms = shadow_histograms(linear(), blobs[0], blobs[0], schedule, seed=9)
    logits = np.random.default_rng(0).normal(size=(6, 3))
    assert (histograms.scores(logits, np.arange(6) % 3) == 0.5).all()


def test_scores_of_a_stage(blobs, schedule, stage):
    histograms = shadow_histograms(linear(), blobs[0], blobs[1], schedule, seed=9)
    rows = {row["method"]: row for row in score(stage, blobs[1], histograms, METHODS)}
    assert list(rows) == [ORIGINAL, RETRAINED, *METHODS]
    assert rows[RETRAINED]["gap"] == 0 and rows[RETRAINED]["verification_error"] == 0
    assert rows[ORIGINAL]["verification_error"] == rows[ORIGINAL]["no_unlearning"] > 0
    assert rows[ORIGINAL]["gap"] == rows[ORIGINAL]["risk"] - rows[RETRAINED]["risk"]


def risk_rows():
    """The size of the gap is a tenth of the verification error, whatever its sign."""
    place = dict(dataset="d", model="m", forget="f", penalty="none", strength=0.0, accuracy=0.5)
    return [
        RiskRow(
            **place,
            seed=seed,
            horizon=TRAINING,
            method=method,
            displacement=float((seed * 7) % 5),
            no_unlearning=1.0,
            verification_error=0.0 if method == RETRAINED else 1.0 + seed,
            risk=0.5,
            gap=0.0 if method == RETRAINED else 0.1 * (-1) ** seed * (1.0 + seed),
        )
        for seed in range(5)
        for method in (ORIGINAL, RETRAINED)
    ]


def test_correlation_of_the_gap():
    rows = [row for row in risk_rows() if row.method == ORIGINAL]
    found = gap_correlations(rows)
    assert [c.value for c in found["verification_error"]] == pytest.approx([1.0, 1.0])
    assert found["no_unlearning"][0].value is None  # it is constant here
    assert abs(found["displacement"][0].value) < 0.9


def test_page_of_privacy(tmp_path):
    page = write_privacy(risk_rows(), tmp_path, "Title").read_text()
    assert "| original | verification error | 5 | 1.00 | 1.00 |" in page
    assert (tmp_path / "privacy.png").stat().st_size > 5000


def test_models_of_one_run_are_no_repetitions(tmp_path):
    gaps = iter((0.1, 0.3, 0.2, 0.4, 0.6))
    rows = [
        dataclasses.replace(row, gap=next(gaps)) if row.method == ORIGINAL else row
        for row in risk_rows()
    ]
    rows += [
        dataclasses.replace(row, method="taylor(order=1)") for row in rows if row.method == ORIGINAL
    ]
    page = write_privacy(rows, tmp_path, "Title").read_text()
    lines = {tuple(line.split(" | ")[:2]): line for line in page.splitlines()}
    assert "| 5 | 0.90 [" in lines["| original", "verification error"]
    pooled = lines["| all models", "verification error"]
    assert "| 10 | 0.90 |" in pooled and "[" not in pooled
    assert "5 runs" in page
