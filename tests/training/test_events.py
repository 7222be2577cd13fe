"""Learning events: the bits of the run, a loop over the step, hand-made sequences, resumption."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.training.events import QUANTITIES, collect, train_with_events, visit_outputs
from unroll.training.loop import device_examples
from unroll.training.spec import apply_model
from unroll.training.step import gather, initial_state, train_step

CASES = {
    "mlp": dict(model=("mlp", dict(hidden=(16,)))),
    "mlp_momentum_dropout": dict(
        model=("mlp", dict(hidden=(16,), dropout=0.3)),
        optimizer=unroll.optax_call("sgd", learning_rate=0.1, momentum=0.9),
    ),
    "mlp_with_a_memory": dict(
        model=("mlp", dict(hidden=(16,))),
        objective=unroll.Objective(singular_gamma=0.01, l2=1e-3),
    ),
    "cnn_augmented": dict(
        model=("cnn", dict(channels=(4, 4))), augmentation=unroll.CropAndFlip(padding=1)
    ),
    "cnn_batch_norm_adam": dict(
        model=("cnn", dict(channels=(4, 4), normalization="batch")),
        optimizer=unroll.optax_call("adamw", 1e-2),
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, blobs, images):
    options = dict(CASES[request.param])
    name, arguments = options.pop("model")
    dataset = images[0] if name == "cnn" else blobs[0]
    spec = unroll.TrainSpec(unroll.models.build(name, num_classes=3, **arguments), **options)
    # 24 does not divide 64: the last batch of an epoch has empty slots.
    schedule = unroll.data.make_schedule(1, len(dataset), batch_size=24, epochs=3)
    weights = np.ones(len(dataset), np.float32)
    weights[:5] = 0.0
    return spec, dataset, schedule, weights


def test_the_run_is_the_run_without_events(case):
    spec, dataset, schedule, weights = case
    settings = dict(seed=5, weights=weights, record=unroll.Record(every=4))
    plain = unroll.train(spec, dataset, schedule, **settings)
    run, _ = train_with_events(spec, dataset, schedule, **settings)
    assert tree.same_bits(run.state, plain.state)
    np.testing.assert_array_equal(run.losses, plain.losses)
    assert list(run.snapshots) == list(plain.snapshots) and run.address == plain.address
    assert all(tree.same_bits(run.snapshots[step], plain.snapshots[step]) for step in run.snapshots)


def test_events_are_those_of_a_loop_over_the_step(case):
    """Softmax in float64 of the logits before each step, and a dictionary of visits."""
    spec, dataset, schedule, weights = case
    _, events = train_with_events(spec, dataset, schedule, seed=5, weights=weights)
    key, examples = jax.random.key(5), device_examples(dataset)
    weights = jnp.asarray(weights)

    @jax.jit
    def one(state, step, slots):
        batch = gather(spec, examples, weights, key, step, slots)
        logits, _ = apply_model(
            spec,
            state.params,
            state.model_state,
            batch.inputs,
            train=True,
            example_keys=jax.vmap(jax.random.fold_in, in_axes=(0, None))(batch.keys, 1),
            example_weights=batch.weights,
        )
        return train_step(spec, state, examples, weights, key, step, slots)[0], logits

    visits = {n: [] for n in range(len(dataset))}
    state = initial_state(spec, key, dataset.inputs)
    for step, slots in enumerate(schedule):
        state, logits = one(state, jnp.asarray(step), jnp.asarray(slots))
        logits = np.asarray(logits, np.float64)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        for n, row in zip(slots, p, strict=True):
            if n >= 0:
                right = float(row.argmax() == dataset.labels[n])
                entropy = -(row * np.log(row)).sum()
                visits[n].append((row[dataset.labels[n]], row.max(), entropy, right))
    table = np.array([visits[n] for n in range(len(dataset))])
    columns = (events.confidence, events.max_confidence, events.entropy, events.accuracy)
    # Logits in float32, whose rounding the softmax passes on.
    np.testing.assert_allclose(np.stack(columns, 1), table.mean(axis=1), rtol=1e-4, atol=1e-5)
    lost = ((table[:, :-1, 3] == 1) & (table[:, 1:, 3] == 0)).sum(axis=1)
    np.testing.assert_array_equal(events.forgetting, lost)
    np.testing.assert_array_equal(events.visits, 3)
    for column, quantity in enumerate(QUANTITIES):
        per_visit = events.per_visit(quantity)
        np.testing.assert_allclose(per_visit, table[:, :, column], rtol=1e-4, atol=1e-5)


def test_outputs_are_bounded_and_finite_at_probability_zero():
    logits = jnp.array([[0.0, 0.0, 0.0], [2000.0, 0.0, -2000.0], [0.0, 500.0, 0.0], [1, 2, 3.0]])
    labels = jnp.array([2, 0, 0, 1])
    outputs = np.asarray(visit_outputs(logits, labels))
    assert np.isfinite(outputs).all()
    confidence, most, entropy, correct = outputs.T
    np.testing.assert_allclose(confidence[:3], [1 / 3, 1, 0], atol=1e-7)
    np.testing.assert_allclose(most[:3], [1 / 3, 1, 1], atol=1e-7)
    np.testing.assert_allclose(entropy[:3], [np.log(3), 0, 0], atol=1e-6)
    np.testing.assert_array_equal(correct, [0, 1, 0, 0])
    assert (entropy >= 0).all() and (entropy <= np.log(3) + 1e-6).all()


def test_a_class_that_is_ruled_out_adds_nothing_to_the_entropy():
    outputs = visit_outputs(jnp.array([[0.0, 0.0, -jnp.inf]]), jnp.array([2]))
    np.testing.assert_allclose(outputs[0], [0, 0.5, np.log(2), 0], atol=1e-7)


def by_hand(sequences, empty=()):
    """Schedule and outputs in which example n is correct as its string of 0 and 1 says."""
    visits = max(map(len, sequences))
    schedule = np.full((visits, len(sequences)), -1, np.int32)
    outputs = np.full((visits, len(sequences), 4), np.nan, np.float32)  # what empty slots hold
    for n, sequence in enumerate(sequences):
        for t, correct in enumerate(sequence):
            schedule[t, n] = n
            outputs[t, n] = [0.5, 0.5, 0.5, float(correct)]
    return schedule, outputs


def test_forgetting_events_by_hand():
    sequences = ["0101010", "1111", "0000", "10", "01", "1", "1100110"]
    events = collect(*by_hand(sequences), len(sequences))
    np.testing.assert_array_equal(events.forgetting, [3, 0, 0, 1, 0, 0, 2])
    np.testing.assert_array_equal(events.visits, [len(each) for each in sequences])
    np.testing.assert_allclose(events.accuracy, [3 / 7, 1, 0, 0.5, 0.5, 1, 4 / 7])
    with pytest.raises(unroll.InputError, match="1 to 7 visits"):
        events.per_visit("correct")
    with pytest.raises(unroll.InputError, match="unknown quantity"):
        events.per_visit("loss")


def test_an_example_twice_in_a_batch_has_two_visits():
    schedule = np.array([[0, 1], [1, 1]], np.int32)
    outputs = np.zeros((2, 2, 4), np.float32)
    outputs[..., 3] = [[1, 1], [0, 1]]
    events = collect(schedule, outputs, 2)
    np.testing.assert_array_equal(events.visits, [1, 3])
    np.testing.assert_array_equal(events.forgetting, [0, 1])


def test_a_killed_run_goes_on_with_the_same_bits(blobs, mlp_spec, tmp_path):
    schedule = unroll.data.make_schedule(0, 120, batch_size=16, epochs=3)
    settings = dict(seed=2, record=unroll.Record(every=7))
    plain, expected = train_with_events(mlp_spec, blobs[0], schedule, **settings)
    store = unroll.Store(tmp_path)
    run, _ = train_with_events(mlp_spec, blobs[0], schedule, store=store, **settings)
    (folder,) = [path.name for path in tmp_path.iterdir()]
    assert folder != run.address  # not read back as a run without events
    store.discard(folder, len(schedule))
    store.discard(folder, 21)
    seen = []
    again, events = train_with_events(
        mlp_spec, blobs[0], schedule, store=store, progress=lambda *p: seen.append(p), **settings
    )
    assert min(done for done, _ in seen) > 14 and seen[-1] == (24, 24)
    assert tree.same_bits(again.state, plain.state)
    np.testing.assert_array_equal(again.losses, plain.losses)
    for field in dataclasses.fields(events):
        first, second = getattr(events, field.name), getattr(expected, field.name)
        np.testing.assert_array_equal(first, second)
    seconds = again.seconds
    finished, events = train_with_events(mlp_spec, blobs[0], schedule, store=store, **settings)
    assert finished.seconds == seconds and tree.same_bits(finished.state, plain.state)
    np.testing.assert_array_equal(events.history, expected.history)


def test_what_cannot_work_is_refused(blobs, mlp_spec):
    schedule = unroll.data.make_schedule(0, 119, batch_size=17, epochs=1)
    with pytest.raises(unroll.InputError, match="example 119 is never used"):
        train_with_events(mlp_spec, blobs[0], schedule)
    diverging = dataclasses.replace(
        mlp_spec,
        objective=unroll.Objective(loss="squared_error"),
        optimizer=unroll.optax_call("sgd", learning_rate=1e4),
    )
    schedule = unroll.data.make_schedule(0, 120, batch_size=40, epochs=40)
    with pytest.raises(unroll.DivergenceError, match=r"loss of step \d+ is not finite"):
        train_with_events(diverging, blobs[0], schedule)
