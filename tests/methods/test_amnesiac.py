"""Taking back recorded updates: against the recorded states themselves, and where it is exact."""

import dataclasses

import jax
import numpy as np
import pytest

import unroll
from unroll import tree

FORGET = np.array([3, 17, 40])


def make_run(blobs, epochs=2, every=3, batch=24, model=("mlp", dict(hidden=(16,))), **options):
    train, _ = blobs
    name, arguments = model
    spec = unroll.TrainSpec(unroll.models.build(name, num_classes=3, **arguments), **options)
    schedule = unroll.data.make_schedule(0, len(train), batch_size=batch, epochs=epochs)
    return unroll.train(spec, train, schedule, record=unroll.Record(every=every))


def affected_steps(run, forget=FORGET):
    return np.flatnonzero(unroll.data.schedule.uses(run.schedule, forget))


def test_batch_updates_are_the_differences_of_the_recorded_states(blobs):
    """The method as published: the sum of w_t - w_{t+1} over the affected steps, kept in full."""
    run = make_run(blobs, every=1)
    expected = run.state.params
    for step in affected_steps(run):
        expected = jax.tree.map(
            lambda w, before, after: w + (before - after),
            expected,
            run.snapshots[step].params,
            run.snapshots[step + 1].params,
        )
    result = unroll.unlearn("amnesiac", unroll.Problem(run, FORGET))
    moved = tree.distance(expected, run.state.params)
    # A difference of float32 weights of size 1 is good to 1e-7, the updates are some 1e-2.
    assert tree.distance(result.params, expected) < 1e-4 * moved
    assert result.info["example_gradients_if_recorded"] == 0
    lost = 24 * len(affected_steps(run)) - 2 * len(FORGET)
    assert result.info["retained_uses_lost"] == lost > 0


@pytest.mark.parametrize("only", ["batch", "forget"])
def test_the_result_does_not_depend_on_what_was_recorded_but_the_cost_does(blobs, only):
    runs = {every: make_run(blobs, every=every) for every in (0, 3, 1)}
    results = {
        every: unroll.unlearn(f"amnesiac(only={only!r})", unroll.Problem(run, FORGET))
        for every, run in runs.items()
    }
    moved = tree.distance(results[0].params, runs[0].state.params)
    for every in (3, 1):
        # Only the order of the sum over the stretches could differ; the replayed states do not.
        assert tree.distance(results[every].params, results[0].params) < 1e-6 * moved
    affected = affected_steps(runs[0])
    own = 24 * len(affected) if only == "batch" else 2 * len(FORGET)
    assert results[1].example_gradients == own
    assert results[0].example_gradients == own + 24 * affected[-1]
    replayed = sum(
        24 * (steps[-1] - begin)
        for begin in range(0, 10, 3)
        if len(steps := affected[(affected >= begin) & (affected < begin + 3)])
    )
    assert results[3].example_gradients == own + replayed


def test_the_forgotten_share_equals_checkpoints_at_every_step(blobs):
    """Two programs for one sum: re-evaluated in the replay, and at recorded states."""
    run = make_run(blobs, every=1, optimizer=unroll.optax_call("sgd", 0.1, momentum=0.9))
    problem = unroll.Problem(run, FORGET)
    one = unroll.unlearn("amnesiac(only='forget')", problem).params
    other = unroll.unlearn("checkpointed_gradient", problem).params
    assert tree.distance(one, other) < 1e-5 * tree.distance(one, run.state.params)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (("mlp", dict(hidden=(16,), dropout=0.3)), {}),
        (("cnn", dict(channels=(4,))), dict(augmentation=unroll.CropAndFlip(padding=1))),
        (
            ("mlp", dict(hidden=(16,))),
            dict(
                objective=unroll.Objective(sd_gamma=0.5, sd_decay=5.0, sd_decay_every=2, l2=0.05),
                optimizer=unroll.optax_call("sgd", 0.1, momentum=0.9, nesterov=True),
            ),
        ),
    ],
)
def test_exact_for_examples_of_the_last_step(images, model, options):
    """Nothing follows their use, and noise and penalties are those of the step."""
    run = make_run(images, epochs=1, batch=16, every=2, model=model, **options)
    problem = unroll.Problem(run, run.schedule[-1, :3])
    twin = unroll.unlearn("retrain", problem).params
    result = unroll.unlearn("amnesiac(only='forget')", problem).params
    # The removed update is some 1e-3 of weights in float32.
    assert unroll.relative_verification_error(result, twin, run.state.params) < 1e-3


@pytest.mark.parametrize("only", ["batch", "forget"])
def test_a_whole_last_batch_is_taken_back_by_either_form(blobs, only):
    """Then nothing retained is lost; the recorded difference itself would hold the trace too."""
    run = make_run(blobs, epochs=1, optimizer=unroll.optax_call("sgd", 0.1, momentum=0.9))
    problem = unroll.Problem(run, run.schedule[-1])
    result = unroll.unlearn(f"amnesiac(only={only!r})", problem)
    twin = unroll.unlearn("retrain", problem).params
    assert unroll.relative_verification_error(result.params, twin, run.state.params) < 1e-4
    if only == "batch":
        assert result.info["retained_uses_lost"] == 0


def test_taking_back_whole_batches_costs_the_retained_examples(blobs):
    run = make_run(blobs, epochs=3, optimizer=unroll.optax_call("sgd", 0.01))
    problem = unroll.Problem(run, FORGET)
    twin = unroll.unlearn("retrain", problem).params
    errors = {
        only: unroll.relative_verification_error(
            unroll.unlearn(f"amnesiac(only={only!r})", problem).params, twin, run.state.params
        )
        for only in ("batch", "forget")
    }
    assert errors["batch"] > 1 > errors["forget"]


def test_example_weights_count(blobs, mlp_spec):
    """An example of weight 2 is taken back twice, one of weight 0 not at all."""
    train, _ = blobs
    weights = np.ones(len(train))
    weights[3], weights[17] = 2.0, 0.0
    run = unroll.train(mlp_spec, train, np.arange(32).reshape(1, 32), weights=weights)
    problem = unroll.Problem(run, np.array([3, 5, 17]))
    twin = unroll.unlearn("retrain", problem).params
    result = unroll.unlearn("amnesiac(only='forget')", problem).params
    assert unroll.relative_verification_error(result, twin, run.state.params) < 1e-4


def test_progress_ends_at_the_total(recorded_run):
    run = recorded_run
    seen = []
    unroll.methods.amnesiac()(
        jax.random.key(0),
        unroll.Problem(run, FORGET),
        lambda done, total: seen.append((done, total)),
    )
    assert seen[-1][0] == seen[-1][1]
    assert seen == sorted(seen)


def test_divergence_is_an_error(recorded_run):
    run = recorded_run
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.inf), run.snapshots[0].params)

    snapshots = {step: run.snapshots[step]._replace(params=broken) for step in run.snapshots}
    problem = unroll.Problem(dataclasses.replace(run, snapshots=snapshots), FORGET)
    for method in ("amnesiac", "single_gradient", "checkpointed_gradient"):
        with pytest.raises(unroll.DivergenceError, match="not finite"):
            unroll.unlearn(method, problem)


def test_an_unknown_share_is_refused():
    with pytest.raises(unroll.InputError, match="choose 'batch' or 'forget'"):
        unroll.methods.method("amnesiac(only='half')")
