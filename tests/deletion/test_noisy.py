"""Noisy fine-tuning: its accounting against closed forms and against whole distributions."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

import unroll
from unroll import tree
from unroll.deletion.noisy import (
    NoisySteps,
    delta_of,
    epsilon_of,
    epsilons,
    noisy_fine_tune,
    renyi_divergence,
    sigma_for,
)
from unroll.errors import InputError

GRADIENT = NoisySteps("gradient", radius=2.0, learning_rate=0.1, steps=1, gradient_norm=3.0)
MODEL = NoisySteps("model", radius=2.0, learning_rate=0.1, steps=1)


def test_one_step_of_gradient_clipping_is_a_gaussian_mechanism():
    assert GRADIENT.sensitivity == pytest.approx(2 * (2.0 + 0.1 * 3.0), rel=1e-14)
    expected = 5.0 * 4.6**2 / (2 * 1.7**2)
    assert renyi_divergence(GRADIENT, 1.7, 5.0) == pytest.approx(expected, rel=1e-14)


def test_many_steps_without_decay():
    """(2 C0 + 2 eta C1 T)^2 / T: first less with every step, and more beyond T = C0 / (eta C1)."""
    for steps in (1, 5, 7, 40):
        noisy = dataclasses.replace(GRADIENT, steps=steps)
        expected = (2 * 2.0 + 2 * 0.1 * 3.0 * steps) / math.sqrt(steps)
        assert noisy.sensitivity == pytest.approx(expected, rel=1e-13)
    lengths = [dataclasses.replace(GRADIENT, steps=steps).sensitivity for steps in range(1, 41)]
    # 2.0 / 0.3 = 6.7
    assert np.argmin(lengths) + 1 == 7


def test_full_decay_forgets_the_start():
    """rho = 0: the start is multiplied by 0, and only the last step's gradients differ."""
    noisy = dataclasses.replace(GRADIENT, decay=10.0, steps=6)
    assert noisy.sensitivity == pytest.approx(2 * 0.1 * 3.0, rel=1e-14)


def test_renyi_divergences_of_separate_runs_add_up():
    """Composition is linear in the order of the accountant: k runs cost k times one."""
    import dp_accounting

    multiplier = 2.0
    each = dp_accounting.GaussianDpEvent(multiplier)
    accountant = dp_accounting.rdp.RdpAccountant()
    accountant.compose(each, 4)
    orders = np.asarray(accountant.orders)
    np.testing.assert_allclose(accountant.rdp, 4 * orders / (2 * multiplier**2), rtol=1e-12)
    # The same total in one event, as `epsilon_of` gives it to the accountant.
    sigma = GRADIENT.sensitivity * multiplier / math.sqrt(4)
    assert epsilon_of(GRADIENT, sigma, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5))


def test_epsilon_by_hand():
    """min over orders of the conversion of arXiv 2004.00010, Proposition 12."""
    sigma, delta = 9.0, 1e-5
    orders = np.linspace(1.1, 200, 200_000)
    divergences = renyi_divergence(GRADIENT, sigma, orders)
    by_hand = divergences + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    # The accountant's orders are a coarse grid; its minimum is a little above.
    found = epsilon_of(GRADIENT, sigma, delta)
    assert by_hand.min() - 1e-9 <= found <= by_hand.min() * 1.01


def test_model_clipping_in_closed_form():
    delta = ndtr(0.5 * 2 - 1 / 2) - math.e * ndtr(-0.5 * 2 - 1 / 2)  # ratio 2 C0 / sigma = 2
    for steps in (1, 3):
        noisy = dataclasses.replace(MODEL, steps=steps)
        assert delta_of(noisy, 2.0, 1.0) == pytest.approx(delta**steps, rel=1e-12)
        assert epsilon_of(noisy, 2.0, delta**steps) == pytest.approx(1.0, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    clipping=st.sampled_from(["gradient", "model"]),
    radius=st.floats(0.01, 100),
    rate=st.floats(1e-3, 1.0),
    norm=st.floats(0.01, 10),
    steps=st.integers(1, 300),
    shrink=st.floats(0, 1),
    epsilon=st.floats(0.05, 20),
    delta=st.sampled_from([1e-8, 1e-5, 1e-2]),
)
def test_sigma_is_what_reaches_epsilon(clipping, radius, rate, norm, steps, shrink, epsilon, delta):
    noisy = NoisySteps(clipping, radius, rate, steps, norm, shrink / rate * (1 - 1e-12))
    sigma = sigma_for(noisy, epsilon, delta)
    assume(sigma > 0)
    found = epsilon_of(noisy, sigma, delta)
    assert found <= epsilon * (1 + 1e-6)
    # A thousandth less noise is not enough.
    assert epsilon_of(noisy, sigma * 0.999, delta) > epsilon * (1 - 1e-6)


def two_runs(noisy, sigma, step_without_noise):
    """Densities on a grid after the noisy steps from both ends of the ball, in one dimension."""
    grid = np.linspace(-30, 30, 1501)
    width = grid[1] - grid[0]

    def kernel(means):
        return np.exp(-0.5 * ((grid[None] - means[:, None]) / sigma) ** 2) / (
            sigma * math.sqrt(2 * math.pi)
        )

    onward = kernel(step_without_noise(grid)) * width
    found = []
    for start in (-noisy.radius, noisy.radius):
        density = kernel(step_without_noise(np.array([start])))[0]
        for _ in range(noisy.steps - 1):
            density = density @ onward
        found.append(density)
    return found, width


@pytest.mark.parametrize("decay", [0.0, 2.0])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_gradient_clipping_covers_gradients_that_drive_the_runs_apart(steps, decay):
    noisy = NoisySteps("gradient", 1.0, 0.1, steps, 3.0, decay)
    sigma, order = 2.0, 3.0
    (one, other), width = two_runs(
        noisy, sigma, lambda x: x - 0.1 * (-3.0 * np.sign(x) + decay * x)
    )
    exact = math.log(np.sum((one / other) ** order * other) * width) / (order - 1)
    bound = renyi_divergence(noisy, sigma, order)
    # A grid of 0.04 at a standard deviation of 2 integrates to ten digits.
    assert exact <= bound * (1 + 1e-9)
    if steps == 1:
        assert exact == pytest.approx(bound, rel=1e-9)
    epsilon = epsilon_of(noisy, sigma, 1e-3)
    assert np.maximum(one - math.exp(epsilon) * other, 0).sum() * width <= 1e-3
    # Without the term of the start, or that of the gradients, the bound would not hold.
    if decay == 0:
        assert exact > order * (2 * 1.0) ** 2 / steps / (2 * sigma**2)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_model_clipping_covers_updates_that_drive_the_runs_apart(steps):
    noisy = NoisySteps("model", 1.0, 0.1, steps)
    sigma, epsilon = 1.5, 0.7
    (one, other), width = two_runs(noisy, sigma, lambda x: np.clip(100 * x, -1, 1))
    exact = np.maximum(one - math.exp(epsilon) * other, 0).sum() * width
    bound = delta_of(noisy, sigma, epsilon)
    # The positive part has a kink, which a grid of 0.04 integrates to four digits.
    assert exact <= bound * (1 + 1e-3)
    if steps == 1:
        assert exact == pytest.approx(bound, rel=1e-3)


def test_more_steps_of_model_clipping_take_less_noise():
    found = [sigma_for(dataclasses.replace(MODEL, steps=t), 1.0, 1e-5) for t in (1, 4, 16)]
    assert found[0] > found[1] > found[2]
    by_steps = epsilons(MODEL, 5.0, 1e-5, (1, 4, 16))
    assert list(by_steps) == [1, 4, 16] and by_steps[1] > by_steps[4] > by_steps[16]


@pytest.mark.parametrize("clipping", ["gradient", "model"])
def test_fine_tuning(problem, clipping):
    noisy = NoisySteps(clipping, 1.0, 0.1, 4, 1.0)
    options = dict(epsilon=2.0, delta=1e-5, batch_size=32)
    result = noisy_fine_tune(jax.random.key(0), problem, noisy, **options)
    assert result.epsilon <= 2.0 * (1 + 1e-6) and result.delta == 1e-5
    assert result.sigma == sigma_for(noisy, 2.0, 1e-5)
    assert result.example_gradients == 117  # an epoch of batches 32, 32, 32 and 21
    again = noisy_fine_tune(jax.random.key(0), problem, noisy, **options)
    other = noisy_fine_tune(jax.random.key(1), problem, noisy, **options)
    assert tree.same_bits(result.params, again.params)
    # 163 entries with noise of this size: the norm of a difference of two draws.
    scale = result.sigma * math.sqrt(2 * 163)
    assert scale / 2 < tree.distance(result.params, other.params) < 6 * scale
    quiet = noisy_fine_tune(jax.random.key(0), problem, noisy, quiet_steps=4, **options)
    assert tree.distance(result.params, quiet.params) > 0
    assert quiet.example_gradients == 2 * 117 and quiet.epsilon == result.epsilon


def shrunk(vector, length):
    factor = min(1.0, length / tree.norm(vector))
    return jax.tree.map(lambda leaf: leaf * np.float32(factor), vector)


def test_without_noise_it_is_clipped_descent(problem, monkeypatch):
    """Two steps from the clipped original, once more with jax.grad outside the loop."""
    from unroll.deletion import noisy as module
    from unroll.training.loop import device_examples
    from unroll.training.step import batch_loss, gather, initial_state

    monkeypatch.setattr(module, "sigma_for", lambda *_: 0.0)
    monkeypatch.setattr(module, "epsilon_of", lambda *_: math.inf)
    noisy = NoisySteps("gradient", 0.5, 0.1, 2, 0.2, decay=0.5)
    result = noisy_fine_tune(
        jax.random.key(0), problem, noisy, epsilon=1.0, delta=1e-5, batch_size=117
    )
    retain = problem.retain_data
    centre = initial_state(problem.run.spec, jax.random.key(0), retain.inputs).params
    moved = jax.tree.map(lambda a, b: a - b, problem.run.state.params, centre)
    assert tree.norm(moved) > 0.5
    assert result.info["distance_from_reference"] == pytest.approx(tree.norm(moved), rel=1e-5)
    at = shrunk(moved, 0.5)
    spec, everything = problem.run.spec, np.arange(117, dtype=np.int32)
    batch = gather(
        spec, device_examples(retain), np.ones(117, np.float32), jax.random.key(9), 0, everything
    )
    for _ in range(2):
        params = jax.tree.map(np.add, centre, at)
        slope = jax.grad(lambda params: batch_loss(spec, params, {}, batch)[0])(params)
        at = jax.tree.map(lambda a, g: a - 0.1 * (g + 0.5 * a), at, shrunk(slope, 0.2))
    # Float32.
    assert tree.distance(result.params, jax.tree.map(np.add, centre, at)) < 1e-5


def test_the_start_has_no_part_in_it_where_the_model_is_clipped_to_nothing(problem):
    """A ball of radius nearly 0: two originals end at the same parameters, bit by bit or nearly."""
    noisy = NoisySteps("model", 1e-6, 0.1, 2)
    run = problem.run
    far = jax.tree.map(lambda leaf: leaf + 1.0, run.state.params)
    moved = dataclasses.replace(run, state=run.state._replace(params=far))
    results = [
        noisy_fine_tune(
            jax.random.key(0), dataclasses.replace(problem, run=run), noisy, epsilon=1.0, delta=1e-5
        )
        for run in (run, moved)
    ]
    assert tree.distance(results[0].params, results[1].params) < 4e-6


def test_refusals(problem, normalized):
    options = dict(epsilon=1.0, delta=1e-5)
    with pytest.raises(InputError, match="running averages"):
        noisy_fine_tune(jax.random.key(0), normalized, MODEL, **options)
    spec = dataclasses.replace(problem.run.spec, objective=unroll.Objective(singular_gamma=0.1))
    run = dataclasses.replace(problem.run, spec=spec)
    with pytest.raises(InputError, match="singular"):
        noisy_fine_tune(jax.random.key(0), dataclasses.replace(problem, run=run), MODEL, **options)
    with pytest.raises(InputError, match="gradient clipping|model clipping"):
        delta_of(GRADIENT, 1.0, 1.0)
    with pytest.raises(InputError, match="no sensitivity"):
        _ = MODEL.sensitivity


@pytest.fixture(name="normalized")
def normalized_problem(problem):
    state = problem.run.state._replace(model_state={"batch_stats": {"mean": np.zeros(3)}})
    return dataclasses.replace(problem, run=dataclasses.replace(problem.run, state=state))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(clipping="none"), "unknown clipping"),
        (dict(radius=0.0), "radius must be"),
        (dict(learning_rate=-1.0), "learning_rate must be"),
        (dict(gradient_norm=0.0), "gradient_norm must be"),
        (dict(steps=0), "steps must be"),
        (dict(decay=11.0), "decay=11.0 must be"),
        (dict(decay=-1.0), "decay=-1.0 must be"),
    ],
)
def test_bad_steps(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(GRADIENT, **changes)


def test_bad_guarantees():
    for function in (sigma_for, epsilon_of):
        with pytest.raises(InputError, match="delta"):
            function(GRADIENT, 1.0, 0.0)
        with pytest.raises(InputError, match="epsilon|sigma"):
            function(GRADIENT, 0.0, 1e-5)
