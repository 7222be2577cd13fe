"""What random labels, NegGrad+ and SalUn share: projection, data in reach, normalisation."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.training.joint import Parts

NAMES = ("random_label", "neggrad_plus", "salun")
OPTIONS = "epochs=2, batch_size=16"


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_the_parts_are_the_training_set_again(blobs):
    """In any order of the ids, and an example keeps its id."""
    train, _ = blobs
    weights = np.arange(120, dtype=np.float32)
    for ids in (np.array([40, 3, 117]), np.array([0, 119])):
        retained = np.setdiff1d(np.arange(120), ids)
        parts = Parts(train.take(ids), ids, train.take(retained), weights)
        examples, joined, rows = parts.joined()
        np.testing.assert_array_equal(examples.inputs, train.inputs)
        np.testing.assert_array_equal(examples.labels, train.labels)
        np.testing.assert_array_equal(joined[retained], weights[retained])
        assert (joined[ids] == 1).all() and rows.tolist() == ids.tolist()
        assert parts.count == 120
        alone, counted, rows = dataclasses.replace(parts, retain=None).joined()
        np.testing.assert_array_equal(alone.inputs, train.inputs[ids])
        assert counted.tolist() == [1] * len(ids) and rows.tolist() == list(range(len(ids)))


def test_needs_are_honest():
    def needs(text):
        return unroll.methods.method(text).needs

    both = {"original", "forget", "retain"}
    projection = "projection='energy(threshold=0.9)'"
    for name in NAMES:
        assert needs(name) == both
        assert needs(f"{name}({projection})") == both | {"statistics"}
    for name in ("random_label", "salun"):
        assert needs(f"{name}(retain=False)") == both - {"retain"}


def test_full_rank_moves_nothing(problem, name):
    """At threshold 1 every layer is frozen."""
    text = f"{name}({OPTIONS}, projection='energy(threshold=1)')"
    assert tree.same_bits(unroll.unlearn(text, problem).params, problem.run.state.params)


def test_rank_zero_is_no_projection(problem, name):
    text = f"{name}({OPTIONS}, projection='energy(threshold=0, bias=\"moves\")')"
    found, free = unroll.unlearn(text, problem), unroll.unlearn(f"{name}({OPTIONS})", problem)
    # Sixteen steps in float32 by two programs.
    chex.assert_trees_all_close(found.params, free.params, atol=1e-5)
    assert tree.distance(free.params, problem.run.state.params) > 1e-2


def test_the_retained_span_is_mapped_as_before():
    """One layer, more features than retained examples: no retained logit moves, forgotten do."""
    rng = np.random.default_rng(0)
    data = unroll.data.Dataset(
        "few", rng.normal(size=(12, 40)), rng.integers(0, 3, 12).astype(np.int32), 3
    )
    spec = unroll.TrainSpec(unroll.models.build("linear", num_classes=3))
    schedule = unroll.data.make_schedule(0, 12, batch_size=4, epochs=10)
    problem = unroll.Problem(unroll.train(spec, data, schedule), np.array([1, 5]))
    for name in NAMES:
        text = f"{name}(epochs=5, projection='energy(threshold=0.999999)')"
        result = unroll.unlearn(text, problem)

        def moved(part, result=result):
            both = (result.params, problem.run.state.params)
            new, old = (unroll.predict(spec, params, {}, part) for params in both)
            return np.abs(new - old).max()

        # A share of 1 - 1e-6 of the energy leaves out singular values of 1e-3 of the norm.
        assert moved(problem.retain_data) < 1e-3 < 1e-2 < moved(problem.forget_data), name


def test_projection_is_counted_and_reported(problem, name):
    """What it costs in `gradient_ascent`: the moments of the forget set."""

    def both(plain):
        with_projection = plain.replace(")", ", projection='energy(threshold=0.9)')")
        return [unroll.unlearn(text, problem) for text in (plain, with_projection)]

    plain, result = both(f"{name}({OPTIONS})")
    free, ascent = both(f"gradient_ascent({OPTIONS})")
    more = result.example_gradients - plain.example_gradients
    assert more == pytest.approx(ascent.example_gradients - free.example_gradients) and more > 0
    assert result.info["layers"] == ascent.info["layers"]
    assert "once for all deletions" in result.info["warning"]


@pytest.mark.parametrize("name", (*NAMES, "scrub"))
def test_example_weights_of_the_run_count(problem, name):
    """An example of weight 0 is not trained on: its label may be any."""
    weights = np.ones(120, np.float32)
    weights[[7, 50]] = 0.0
    other = problem.run.dataset.labels.copy()
    other[[7, 50]] = (other[[7, 50]] + 1) % 3
    results = []
    for labels in (problem.run.dataset.labels, other):
        data = dataclasses.replace(problem.run.dataset, labels=labels)
        run = dataclasses.replace(problem.run, weights=weights, dataset=data)
        text = f"{name}({OPTIONS})"
        results.append(unroll.unlearn(text, dataclasses.replace(problem, run=run)).params)
    assert tree.same_bits(*results)


@pytest.mark.parametrize("name", (*NAMES, "scrub"))
def test_batch_normalisation_and_augmentation(normalized_problem, name):
    """The running averages move, and the noise is that of the key."""
    spec = dataclasses.replace(
        normalized_problem.run.spec, augmentation=unroll.CropAndFlip(padding=1)
    )
    run = dataclasses.replace(normalized_problem.run, spec=spec)
    problem = dataclasses.replace(normalized_problem, run=run)
    one, other = (unroll.unlearn(f"{name}({OPTIONS})", problem) for _ in range(2))
    assert tree.same_bits(one.model_state, other.model_state)
    assert not tree.same_bits(one.model_state, run.state.model_state)


@pytest.mark.parametrize("name", ["random_label", "neggrad_plus"])
def test_goes_on_from_a_run_with_a_singular_value_penalty(blobs, mlp_spec, name):
    spec = dataclasses.replace(mlp_spec, objective=unroll.Objective(singular_gamma=0.01))
    schedule = unroll.data.make_schedule(0, len(blobs[0]), batch_size=16, epochs=1)
    problem = unroll.Problem(unroll.train(spec, blobs[0], schedule), [3, 17])
    result = unroll.unlearn(f"{name}({OPTIONS})", problem)
    assert tree.is_finite(result.params)
    assert tree.distance(result.params, problem.run.state.params) > 0


def test_divergence_is_an_error(problem, name):
    with pytest.raises(unroll.DivergenceError, match="not finite"):
        unroll.unlearn(f"{name}(learning_rate=1e30, epochs=3)", problem)


def test_progress_reaches_its_end(problem, name):
    texts = [f"{name}({OPTIONS})"]
    texts += [f"{name}({OPTIONS}, redraw=True)"] if name != "neggrad_plus" else []
    for text in texts:
        seen = []
        unroll.methods.method(text)(
            jax.random.key(0), problem, lambda *at, seen=seen: seen.append(at)
        )
        assert seen[-1] == (16, 16)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
