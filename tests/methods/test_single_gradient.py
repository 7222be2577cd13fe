"""Gradients taken back at one or a few recorded states: where the answer is known."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unroll
from unroll import tree
from unroll.unrolling.step_response import response_per_example, step_responses

METHODS = ["single_gradient", "checkpointed_gradient", "amnesiac(only='forget')"]


@dataclasses.dataclass(frozen=True)
class LinearLoss(unroll.Objective):
    """Minus the label's logit: no curvature but that of the l2 penalty."""

    def example_losses(self, logits, labels):
        return -jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]


def make_run(blobs, epochs=2, every=2, model=("mlp", dict(hidden=(16,))), batch=24, **options):
    train, _ = blobs
    name, arguments = model
    spec = unroll.TrainSpec(unroll.models.build(name, num_classes=3, **arguments), **options)
    schedule = unroll.data.make_schedule(0, len(train), batch_size=batch, epochs=epochs)
    return unroll.train(spec, train, schedule, record=unroll.Record(every=every))


def relative_error(method, problem):
    twin = unroll.unlearn("retrain", problem).params
    result = unroll.unlearn(method, problem).params
    return unroll.relative_verification_error(result, twin, problem.run.state.params)


OPTIMIZERS = {
    "plain": unroll.optax_call("sgd", 0.3),
    "momentum": unroll.optax_call("sgd", 0.2, momentum=0.8),
    "nesterov": unroll.optax_call("sgd", 0.2, momentum=0.8, nesterov=True),
    "cosine": unroll.optax_call(
        "sgd", unroll.optax_call("cosine_decay_schedule", 0.3, 12), momentum=0.5
    ),
}


def respecified(run, **options):
    """The run as if it had been trained with other options; its states are not touched."""
    return dataclasses.replace(run, spec=dataclasses.replace(run.spec, **options))


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_responses_are_derivatives_through_the_optimiser(recorded_run, optimizer, l2):
    """Differentiates optax itself by a gradient added at each step."""
    run = respecified(
        recorded_run, optimizer=OPTIMIZERS[optimizer], objective=unroll.Objective(l2=l2)
    )
    responses = step_responses(run)
    with jax.enable_x64(True):
        sgd = OPTIMIZERS[optimizer].build()

        def step(carry, gradient):
            weight, state = carry
            update, state = sgd.update(gradient + l2 * weight, state, weight)
            return (optax.apply_updates(weight, update), state), None

        def final(added):
            weight = jnp.ones(())
            return jax.lax.scan(step, (weight, sgd.init(weight)), added)[0][0]

        expected = -jax.grad(final)(jnp.zeros(run.steps))
    # The rates of a schedule come in float32, good to 1e-7 of the largest.
    np.testing.assert_allclose(responses, expected, rtol=1e-6, atol=1e-7)


def test_without_momentum_the_response_is_shrunk_by_the_later_steps(recorded_run):
    run = respecified(
        recorded_run, optimizer=OPTIMIZERS["plain"], objective=unroll.Objective(l2=0.3)
    )
    expected = 0.3 * (1 - 0.3 * 0.3) ** np.arange(run.steps)[::-1]
    np.testing.assert_allclose(step_responses(run), expected)


def test_a_run_from_a_trained_state_goes_on_in_its_schedule(blobs):
    whole = make_run(blobs, epochs=2, every=5, optimizer=OPTIMIZERS["cosine"])
    second = unroll.train(whole.spec, whole.dataset, whole.schedule[5:], initial=whole.snapshots[5])
    np.testing.assert_allclose(step_responses(second), step_responses(whole)[5:])


def test_response_per_example_adds_up_over_stretches(recorded_run):
    run = respecified(recorded_run, optimizer=OPTIMIZERS["momentum"])
    parts = [response_per_example(run, *bounds) for bounds in ((0, 3), (3, 4), (4, None))]
    np.testing.assert_allclose(sum(parts), response_per_example(run))
    with pytest.raises(unroll.InputError, match="outside the run"):
        response_per_example(run, 3, 99)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", ["plain", "nesterov"])
def test_exact_when_only_the_penalty_has_curvature(blobs, optimizer, method):
    """Momentum and weight decay are both undone; with a factor eta alone the error is not small."""
    run = make_run(
        blobs,
        epochs=3,
        model=("linear", {}),
        optimizer=OPTIMIZERS[optimizer],
        objective=LinearLoss(l2=0.1),
    )
    problem = unroll.Problem(run, np.array([3, 17, 40]))
    # float32 weights: the distance to the twin is some 1e-3 of their norm.
    assert relative_error(method, problem) < 1e-4
    rate = run.spec.optimizer.bound()["learning_rate"]
    alone = rate * np.isin(run.schedule, problem.forget).sum() / run.schedule.shape[1]
    total = response_per_example(run)[problem.forget].sum()
    assert abs(total / alone - 1) > 0.05


@pytest.mark.parametrize("method", METHODS)
def test_linear_regression_errs_by_the_product_of_the_later_steps(blobs, method):
    """VE = ||(I - prod_{t>0} (I - eta H_t)) eta g|| for examples used once, in the first step.

    The logits are linear in the weights, so the Hessian of a batch is the second moment of its
    inputs, the same for each class; the forgotten examples are in none of these batches.
    """
    train, _ = blobs
    rate, batch = 0.3, 24
    run = make_run(
        blobs,
        epochs=1,
        every=1,
        batch=batch,
        model=("linear", {}),
        optimizer=unroll.optax_call("sgd", rate),
        objective=unroll.Objective(loss="squared_error"),
    )
    forget = np.sort(run.schedule[0, :4])
    inputs = np.concatenate([train.inputs, np.ones((len(train), 1))], axis=1).astype(np.float64)

    dense = run.snapshots[0].params["head"]["dense"]
    weights = np.concatenate([dense["kernel"], dense["bias"][None]]).astype(np.float64)
    errors = inputs[forget] @ weights - np.eye(3)[train.labels[forget]]
    taken_out = rate / batch * inputs[forget].T @ errors
    kept = taken_out
    for slots in run.schedule[1:]:
        slots = slots[slots >= 0]
        kept = kept - rate / batch * inputs[slots].T @ (inputs[slots] @ kept)
    expected = np.linalg.norm(taken_out - kept)

    problem = unroll.Problem(run, forget)
    twin = unroll.unlearn("retrain", problem).params
    result = unroll.unlearn(method, problem)
    error = unroll.verification_error(result.params, twin)
    # The run is in float32, where weights of norm 1 carry 1e-7; the error itself is some 1e-2.
    assert error == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-2 * np.linalg.norm(taken_out)


@pytest.mark.parametrize("method", METHODS)
def test_exact_for_a_run_of_one_step(blobs, mlp_spec, method):
    train, _ = blobs
    run = unroll.train(mlp_spec, train, np.arange(32).reshape(1, 32))
    # Rounding only: the sum over the batch is taken in another order.
    assert relative_error(method, unroll.Problem(run, np.array([1, 5, 30]))) < 1e-5


def test_a_later_start_takes_the_gradient_there(blobs):
    """For a forget set of the last step, exact from its own snapshot and from no earlier one."""
    run = make_run(blobs, epochs=1, every=1)
    problem = unroll.Problem(run, run.schedule[-1, :3])
    assert relative_error(f"single_gradient(start={run.steps - 1})", problem) < 1e-5
    assert relative_error("single_gradient(start=0)", problem) > 1e-3


def test_a_start_after_the_first_use_or_not_recorded_is_refused(recorded_run):
    problem = unroll.Problem(recorded_run, recorded_run.schedule[1, :2])
    with pytest.raises(unroll.InputError, match="used before step 5.*initial="):
        unroll.unlearn("single_gradient(start=5)", problem)
    with pytest.raises(unroll.InputError, match="step 3 is not recorded; train with"):
        unroll.unlearn("single_gradient(start=3)", problem)
    with pytest.raises(unroll.InputError, match="start must be"):
        unroll.unlearn("single_gradient(start=-1)", problem)


def test_momentum_needs_the_total_step_size(blobs):
    """Forgetting eta g alone leaves most of what the trace applied; a defect of the reference."""
    rate, momentum = 0.001, 0.9
    run = make_run(blobs, epochs=4, optimizer=unroll.optax_call("sgd", rate, momentum=momentum))
    problem = unroll.Problem(run, np.array([3, 17, 40]))
    twin = unroll.unlearn("retrain", problem).params
    result = unroll.unlearn("single_gradient", problem).params
    ours = unroll.relative_verification_error(result, twin, run.state.params)
    # All three are used equally often, so eta g is ours scaled by the mean of the ratios.
    share = rate * 4 / run.schedule.shape[1] / response_per_example(run)[problem.forget].mean()
    scaled = jax.tree.map(lambda w, r: w + share * (r - w), run.state.params, result)
    theirs = unroll.relative_verification_error(scaled, twin, run.state.params)
    assert ours < 0.2 and theirs > 0.7


def test_checkpoints_at_every_step_give_the_gradients_that_were_taken_out(blobs):
    """Against the sum of jax.grad at every recorded state."""
    run = make_run(blobs, epochs=2, every=1, optimizer=OPTIMIZERS["momentum"])
    forget = np.array([3, 17, 40, 41])
    responses = step_responses(run) / run.schedule.shape[1]
    data = run.dataset

    @jax.jit
    @jax.grad
    def gradient(params, chosen):
        logits = run.spec.model.apply({"params": params}, data.inputs)
        return chosen @ run.spec.objective.example_losses(logits, jnp.asarray(data.labels))

    expected = run.state.params
    for step, slots in enumerate(run.schedule):
        chosen = np.zeros(len(data), np.float32)
        chosen[slots[np.isin(slots, forget)]] = responses[step]
        taken_out = gradient(run.snapshots[step].params, chosen)
        expected = jax.tree.map(jnp.add, expected, taken_out)
    result = unroll.unlearn("checkpointed_gradient", unroll.Problem(run, forget))
    moved = tree.distance(result.params, run.state.params)
    # Sums in float32, in another order.
    assert tree.distance(result.params, expected) < 1e-5 * moved
    assert result.example_gradients == 2 * len(forget)


def test_checkpointed_cost_counts_forgotten_examples_per_segment(blobs):
    run = make_run(blobs, epochs=3, every=5)  # 5 steps an epoch: one segment each
    problem = unroll.Problem(run, np.array([3, 17, 40]))
    result = unroll.unlearn("checkpointed_gradient", problem)
    assert result.example_gradients == 3 * 3 and result.info["segments"] == 3
    halved = make_run(blobs, epochs=3, every=10)
    problem = dataclasses.replace(problem, run=halved)
    assert unroll.unlearn("checkpointed_gradient", problem).example_gradients == 2 * 3


def test_one_segment_is_the_single_gradient(blobs):
    run = make_run(blobs, epochs=1, every=4)
    problem = unroll.Problem(run, run.schedule[:4].ravel()[::9])
    one = unroll.unlearn("single_gradient", problem).params
    other = unroll.unlearn("checkpointed_gradient", problem).params
    assert tree.same_bits(one, other)


def test_a_run_without_snapshots_is_refused_by_the_checkpointed_form(blobs):
    run = make_run(blobs, every=0)
    with pytest.raises(unroll.InputError, match=r"record=Record\(every=.*single_gradient"):
        unroll.unlearn("checkpointed_gradient", unroll.Problem(run, np.array([1])))


def test_many_forgotten_examples_are_evaluated_in_parts(blobs, monkeypatch):
    """Padding with weight 0 and several parts of a batch change nothing but the rounding."""
    run = make_run(blobs, epochs=2, every=3)
    problem = unroll.Problem(run, np.arange(0, 120, 4))
    whole = unroll.unlearn("checkpointed_gradient", problem)
    # The package's attribute of that name is the factory, not the module.
    monkeypatch.setattr(sys.modules["unroll.methods.checkpointed_gradient"], "_BATCH", 8)
    parts = unroll.unlearn("checkpointed_gradient", problem)
    assert parts.example_gradients == whole.example_gradients
    moved = tree.distance(whole.params, run.state.params)
    assert tree.distance(parts.params, whole.params) < 1e-5 * moved


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(optimizer=unroll.optax_call("adam", 0.01)), "plain sgd"),
        (
            # Decoupled weight decay goes by another optimiser; in the objective it is covered.
            dict(
                optimizer=unroll.optax_call(
                    "chain",
                    unroll.optax_call("add_decayed_weights", 0.1),
                    unroll.optax_call("sgd", 0.1),
                )
            ),
            "plain sgd",
        ),
        (dict(denominator="renormalise"), "denominator"),
    ],
)
def test_what_no_sum_of_gradients_can_express_is_refused(problem, method, options, message):
    run = respecified(problem.run, **options)
    with pytest.raises(unroll.InputError, match=message):
        unroll.unlearn(method, dataclasses.replace(problem, run=run))


@pytest.mark.parametrize("method", METHODS)
def test_running_statistics_are_refused(problem, method):
    state = problem.run.state._replace(model_state={"batch_stats": {"mean": np.zeros(3)}})
    run = dataclasses.replace(problem.run, state=state)
    with pytest.raises(unroll.InputError, match="batch normalisation"):
        unroll.unlearn(method, dataclasses.replace(problem, run=run))


@pytest.mark.parametrize("method", METHODS[:2])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(model=unroll.models.build("mlp", num_classes=3, dropout=0.5)), "dropout"),
        (dict(augmentation=unroll.CropAndFlip(padding=1)), "augmentation"),
    ],
)
def test_gradients_that_differ_from_use_to_use_are_refused(problem, method, options, message):
    """The amnesiac form takes them: it evaluates each use with the noise that it had."""
    run = respecified(problem.run, **options)
    with pytest.raises(unroll.InputError, match=message):
        unroll.unlearn(method, dataclasses.replace(problem, run=run))


@pytest.mark.parametrize("method", METHODS)
def test_what_is_left_out_of_a_singular_value_penalty_is_said(blobs, method):
    run = make_run(blobs, epochs=1, objective=unroll.Objective(singular_gamma=0.01))
    result = unroll.unlearn(method, unroll.Problem(run, np.array([3, 17])))
    assert "singular-value penalty" in result.info["warning"]


def test_nothing_is_said_without_one(problem):
    assert "warning" not in unroll.unlearn("single_gradient", problem).info


@pytest.mark.parametrize("method", [*METHODS, "amnesiac"])
def test_examples_that_were_never_used_change_nothing(recorded_run, method):
    schedule = recorded_run.schedule.copy()
    schedule[np.isin(schedule, [110, 119])] = -1
    run = dataclasses.replace(recorded_run, schedule=schedule)
    result = unroll.unlearn(method, unroll.Problem(run, np.array([110, 119])))
    assert tree.same_bits(result.params, run.state.params)
