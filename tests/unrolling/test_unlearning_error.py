"""Unlearning errors: hand-computed values, a quadratic with known sigma, a recorded run."""

import dataclasses

import jax
import numpy as np
import pytest

import unroll
from unroll.unrolling.curvature import CurvatureBatch, first_examples
from unroll.unrolling.expansion import single_gradient_at
from unroll.unrolling.unlearning_error import (
    eta1,
    gradnorm,
    named_proxies,
    paper,
    unlearning_errors,
)

FORGET = np.array([3, 17, 40])


def test_hand_computed():
    assert paper(eta=0.1, t=10, displacement=2.0, sigma=3.0) == pytest.approx(0.3)
    assert eta1(eta=0.1, t=11, displacement=2.0, sigma=3.0) == pytest.approx(3.0)
    assert gradnorm(eta=0.1, t=10, gradient_norm=0.5, sigma=3.0) == pytest.approx(0.15)
    named = named_proxies(0.1, 11, 2.0, 3.0, gradient_norm=0.5)
    assert named == {
        "paper": paper(0.1, 11, 2.0, 3.0),
        "eta1": eta1(0.1, 11, 2.0, 3.0),
        "gradnorm": gradnorm(0.1, 11, 0.5, 3.0),
    }
    assert list(named_proxies(0.1, 11, 2.0, 3.0)) == ["paper", "eta1"]


def test_nothing_before_the_second_step():
    """One step of single-gradient unlearning is exact, which `eta1` alone says."""
    assert named_proxies(0.1, 0, 0.0, 3.0, 0.5) == {"paper": 0, "eta1": 0, "gradnorm": 0}
    assert eta1(0.1, 1, 2.0, 3.0) == 0
    assert paper(0.1, 1, 2.0, 3.0) > 0


def quadratic(eta, steps=12, momentum=None, **options):
    """Least squares on blobs: the forget set is the first batch, then the rest over and over."""
    train, _ = unroll.data.load("blobs", num_train=40, num_features=4, num_classes=3)
    rest = np.arange(8, 40, dtype=np.int32)
    schedule = np.tile(rest, (steps, 1))
    schedule[0] = -1
    schedule[0, :8] = np.arange(8)
    spec = unroll.TrainSpec(
        unroll.models.build("linear", num_classes=3),
        objective=unroll.Objective(loss="squared_error"),
        optimizer=unroll.optax_call("sgd", learning_rate=eta, momentum=momentum),
    )
    options = {"record": unroll.Record(every=1), **options}
    return unroll.train(spec, train, schedule, **options), rest


def known_sigma(run, ids):
    """The Hessian of least squares is the Gram matrix of the inputs, once per class."""
    inputs = np.asarray(run.dataset.inputs[ids], np.float64)
    inputs = np.concatenate([inputs, np.ones([len(ids), 1])], axis=1)
    return np.linalg.norm(inputs, 2) ** 2 / len(ids)


def test_rows_of_a_quadratic():
    """sigma is constant and known; everything else follows from the recorded weights."""
    run, rest = quadratic(eta=0.02)
    sigma = known_sigma(run, rest)
    result = unlearning_errors(run, np.arange(8), CurvatureBatch(run.dataset, rest), steps=[4, 9])
    assert [row.step for row in result.rows] == [4, 9] and result.notes == ()
    # The default tolerance of 1e-3 bounds the residual; the value is good to its square.
    assert result.start_eigenvalue == pytest.approx(sigma, rel=1e-4)
    start = run.snapshots[0].params
    gradient = (unroll.tree.flatten(start) - unroll.tree.flatten(run.snapshots[1].params)) / 0.02
    for row in result.rows:
        assert row.sigma == pytest.approx(sigma, rel=1e-4)
        assert row.sigma_average == pytest.approx(sigma, rel=1e-4)
        assert row.residual <= 1e-3 * row.sigma
        assert row.displacement == unroll.tree.distance(run.snapshots[row.step].params, start)
        assert row.t == row.step and row.learning_rate == pytest.approx(0.02)
        # The first step of the run is one use of the forget set.
        assert row.gradient_norm == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
        arguments = 0.02, row.t, row.displacement, sigma, row.gradient_norm
        expected = named_proxies(*arguments)
        expected["leading"] = 0.02**2 * (row.t - 1) * sigma * row.gradient_norm
        assert row.proxies == pytest.approx(expected, rel=1e-4)
        assert row.current == pytest.approx(expected, rel=1e-4)
        assert row.eta_t_sigma == pytest.approx(0.02 * row.t * sigma, rel=1e-4)
        assert row.accumulated == {}


def test_the_leading_term_bounds_the_verification_error_of_a_quadratic():
    """`||(I - (I - eta H)^(t-1)) eta g||` is below `eta^2 (t-1) sigma ||g||`, less so at small eta.

    The forget set is used once, at the first step, so its gradient at w_0 is what was taken out.
    """
    ratios = []
    for eta in (0.02, 0.005):
        run, rest = quadratic(eta)
        weights = np.ones(len(run.dataset), np.float32)
        weights[:8] = 0
        twin, _ = quadratic(eta, weights=weights)
        result = unlearning_errors(run, np.arange(8), CurvatureBatch(run.dataset, rest))
        unlearned = dict(single_gradient_at(run, np.arange(8)))
        for row in result.rows[1:]:
            error = unroll.tree.distance(unlearned[row.step], twin.snapshots[row.step].params)
            assert error < row.proxies["leading"] < row.proxies["gradnorm"]
        ratios.append(error / row.proxies["leading"])
    # How far below depends on where g lies in the spectrum; curvature of higher order shrinks it.
    assert 0.1 < ratios[0] < ratios[1]


def test_exponents_in_the_learning_rate():
    """D carries one eta: `paper` goes as eta^3 over runs, `eta1` and `gradnorm` as eta^2."""
    rows = {}
    for eta in (2e-4, 1e-4):
        run, rest = quadratic(eta)
        batch = CurvatureBatch(run.dataset, rest)
        (rows[eta],) = unlearning_errors(run, np.arange(8), batch, steps=[12]).rows
    for name, exponent in [("paper", 3), ("eta1", 2), ("gradnorm", 2), ("leading", 2)]:
        slope = np.log2(rows[2e-4].proxies[name] / rows[1e-4].proxies[name])
        # eta t sigma is 0.01 here, and D bends by about as much.
        assert slope == pytest.approx(exponent, abs=0.02), name


def test_uses_and_positions_enter_the_leading_term(recorded_run):
    """Against the double sum over steps, written out with gradients of single examples."""
    run = recorded_run
    (row,) = unlearning_errors(
        run, FORGET, first_examples(run.dataset, 30), start=5, steps=[20]
    ).rows
    at, batch_size = run.snapshots[5].params, run.schedule.shape[1]
    total = 0.0
    for step in range(5, 20):
        for example in np.intersect1d(run.schedule[step], FORGET):

            def loss(params, example=example):
                logits = run.spec.model.apply({"params": params}, run.dataset.inputs[[example]])
                return unroll.objectives.cross_entropy(logits, run.dataset.labels[[example]])[0]

            later = 0.1 * (20 - 1 - step)
            total = total + 0.1 * later / batch_size * unroll.tree.flatten(jax.grad(loss)(at))
    expected = row.sigma_average * np.linalg.norm(total)
    # float32 gradients.
    assert row.proxies["leading"] == pytest.approx(expected, rel=1e-4)


def test_cadence_and_averages(recorded_run):
    """sigma is measured where it was asked for, and its mean counts the start."""
    batch = first_examples(recorded_run.dataset, 30)
    every = unlearning_errors(recorded_run, FORGET, batch)
    assert [row.step for row in every.rows] == [5, 10, 15, 20, 24]
    sigmas = [abs(every.start_eigenvalue), *(row.sigma for row in every.rows)]
    for index, row in enumerate(every.rows, start=1):
        assert row.sigma_average == pytest.approx(np.mean(sigmas[: index + 1]), rel=1e-12)
        assert row.current["eta1"] == eta1(row.learning_rate, row.t, row.displacement, row.sigma)
    rare = unlearning_errors(recorded_run, FORGET, batch, sigma_every=2)
    # Measured at 0, 10, 20. A warm start after another history agrees to the tolerance.
    expected = [sigmas[0], sigmas[2], sigmas[2], sigmas[4], sigmas[4]]
    assert [row.sigma for row in rare.rows] == pytest.approx(expected, rel=2e-3)
    assert rare.products < every.products
    assert every.batch == str(batch)


def test_accumulated_over_segments(recorded_run):
    """Each segment has its own displacement, steps, sigma and gradient."""
    run = recorded_run
    batch = first_examples(run.dataset, 30)
    whole = unlearning_errors(run, FORGET, batch, segments=[10, 20])
    assert [row.step for row in whole.rows] == [5, 10, 15, 20, 24]
    parts = [
        unlearning_errors(run, FORGET, batch, start=start, steps=steps).rows
        for start, steps in [(0, [5, 10]), (10, [15, 20]), (20, [24])]
    ]
    for name in ("paper", "eta1", "gradnorm"):
        first, second, third = ([row.proxies[name] for row in rows] for rows in parts)
        expected = [
            first[0],
            first[1],
            first[1] + second[0],
            first[1] + second[1],
            first[1] + second[1] + third[0],
        ]
        found = [row.accumulated[name] for row in whole.rows]
        # Warm starts differ, so sigma agrees to the tolerance only.
        assert found == pytest.approx(expected, rel=2e-3), name
    plain = unlearning_errors(run, FORGET, batch)
    assert plain.rows[-1].proxies == pytest.approx(whole.rows[-1].proxies, rel=2e-3)


def test_momentum_and_varying_rates_are_said():
    rate = unroll.optax_call("linear_schedule", 0.02, 0.01, 10)
    run, rest = quadratic(rate, momentum=0.5)
    result = unlearning_errors(run, None, CurvatureBatch(run.dataset, rest), start=2, steps=[6])
    (row,) = result.rows
    # Rates 0.018, 0.017, 0.016, 0.015, twice as effective with momentum 1/2.
    assert row.learning_rate == pytest.approx(2 * 0.0165)
    assert "momentum 0.5" in result.notes[0] and "varies" in result.notes[1]
    assert row.gradient_norm is None and list(row.proxies) == ["paper", "eta1"]


def test_sigma_that_is_not_converged_is_said(recorded_run):
    batch = first_examples(recorded_run.dataset, 30)
    result = unlearning_errors(recorded_run, None, batch, steps=[5], iterations=1)
    assert "not converged at steps [0, 5]" in result.notes[0]


def test_nothing_to_forget_has_no_gradient(recorded_run):
    batch = first_examples(recorded_run.dataset, 30)
    (row,) = unlearning_errors(recorded_run, np.array([], int), batch, steps=[5]).rows
    assert row.gradient_norm == 0 and row.proxies["gradnorm"] == row.proxies["leading"] == 0


def test_a_model_with_batch_normalisation_has_proxies_without_a_gradient(images):
    train, _ = images
    spec = unroll.TrainSpec(
        unroll.models.build("cnn", num_classes=3, channels=(4,), normalization="batch")
    )
    run = unroll.train(spec, train, np.arange(32).reshape(4, 8), record=unroll.Record(every=2))
    batch = first_examples(train, 8)
    result = unlearning_errors(run, None, batch, iterations=8)
    assert [row.step for row in result.rows] == [2, 4]
    assert all(np.isfinite(list(row.proxies.values())).all() for row in result.rows)
    with pytest.raises(unroll.InputError, match="batch normalisation"):
        unlearning_errors(run, np.array([1]), batch)


def test_what_is_left_out_of_a_singular_value_penalty_is_said(blobs):
    train, _ = blobs
    spec = unroll.TrainSpec(
        unroll.models.build("linear", num_classes=3),
        objective=unroll.Objective(singular_gamma=0.01),
    )
    run = unroll.train(spec, train, np.arange(32).reshape(4, 8), record=unroll.Record(every=2))
    batch = first_examples(train, 10)
    assert any("singular-value" in note for note in unlearning_errors(run, FORGET, batch).notes)
    assert unlearning_errors(run, None, batch).notes == ()


def test_a_run_without_snapshots_is_refused(blobs, mlp_spec):
    train, _ = blobs
    run = unroll.train(mlp_spec, train, np.arange(32).reshape(4, 8))
    with pytest.raises(unroll.InputError, match=r"record=Record\(every"):
        unlearning_errors(run, FORGET, first_examples(train, 10))


def test_curvature_that_is_not_finite_names_the_step(recorded_run):
    run = recorded_run
    huge = jax.tree.map(lambda leaf: np.full_like(leaf, 1e30), run.snapshots[10].params)
    states = {step: run.snapshots[step] for step in run.snapshots}
    states[10] = states[10]._replace(params=huge)
    broken = dataclasses.replace(run, snapshots=states)
    with pytest.raises(unroll.DivergenceError, match="step 10.*not finite"):
        unlearning_errors(broken, None, first_examples(run.dataset, 10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(steps=[7]), "step 7 of the run is not recorded"),
        (dict(segments=[7]), "step 7 of the run is not recorded"),
        (dict(start=3), "step 3 of the run is not recorded"),
        (dict(start=24), "after the start"),
        (dict(sigma_every=0), "sigma_every"),
        (dict(forget=[500]), "out of range"),
    ],
)
def test_bad_requests_are_refused(recorded_run, options, message):
    arguments = {"forget": FORGET, **options}
    with pytest.raises(unroll.InputError, match=message):
        unlearning_errors(recorded_run, batch=first_examples(recorded_run.dataset, 10), **arguments)


def test_other_optimisers_are_refused(blobs):
    train, _ = blobs
    spec = unroll.TrainSpec(
        unroll.models.build("linear", num_classes=3), optimizer=unroll.optax_call("adam", 0.01)
    )
    run = unroll.train(spec, train, np.arange(32).reshape(4, 8), record=unroll.Record(every=1))
    with pytest.raises(unroll.InputError, match="plain sgd"):
        unlearning_errors(run, None, first_examples(train, 10))
