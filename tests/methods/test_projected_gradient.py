"""Projected-gradient unlearning as a method: what it reads, where it ends, what it leaves alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import unroll
from unroll import tree
from unroll.methods.projected_gradient import decaying_sgd
from unroll.unrolling.subspaces import LayerOptions, record_statistics

EASY = "projected_gradient(epochs=5, learning_rate=0.5, projection='energy(threshold={})')"


class Gone:
    """A training set of which only some rows can still be read."""

    def __init__(self, dataset, readable):
        self._dataset, self._readable = dataset, set(readable.tolist())

    def __len__(self):
        return len(self._dataset)

    def take(self, ids):
        if not set(np.asarray(ids).tolist()) <= self._readable:
            raise AssertionError("retained examples were read")
        return self._dataset.take(ids)

    def __getattr__(self, name):
        raise AssertionError(f"{name} of the training set was read")


def without_training_data(problem, held_out=None):
    statistics = record_statistics(problem.run)
    gone = Gone(problem.run.dataset, problem.forget)
    run = dataclasses.replace(problem.run, dataset=gone)
    return dataclasses.replace(problem, run=run, statistics=statistics, held_out=held_out)


@pytest.mark.parametrize("stop", ["fixed_epochs", "forget_level(level=0.0)", "val_gap"])
def test_the_training_data_may_be_gone(problem, blobs, stop):
    """Statistics and forget set are all it takes, and the result is the same bit for bit."""
    text = f"projected_gradient(epochs=3, stop='{stop}')"
    held_out = blobs[1] if stop == "val_gap" else None
    here = dataclasses.replace(problem, held_out=held_out)
    expected = unroll.unlearn(text, here)
    result = unroll.unlearn(text, without_training_data(problem, held_out))
    assert tree.same_bits(result.params, expected.params)
    assert result.example_gradients == expected.example_gradients


def test_the_poison_works(problem):
    for text in ("finetune", "projected_gradient(stop='retain_drop')"):
        with pytest.raises(AssertionError, match="was read|were read"):
            unroll.unlearn(text, without_training_data(problem))


def test_ascent_under_projection_needs_no_training_data_either(problem):
    text = "gradient_ascent(epochs=2, projection='energy(threshold=0.9)')"
    result = unroll.unlearn(text, without_training_data(problem))
    plain = unroll.unlearn("gradient_ascent(epochs=2)", problem)
    start = problem.run.state.params
    assert 0 < tree.distance(result.params, start) < tree.distance(plain.params, start)
    assert set(result.info["layers"]) == {"Dense_0", "head/dense"}


def test_a_rule_gets_only_what_it_declares(problem):
    rules = {"fixed_epochs": set(), "val_gap": {"held_out"}, "retain_drop": {"retain"}}
    for rule, more in rules.items():
        needs = unroll.methods.method(f"projected_gradient(stop='{rule}')").needs
        assert needs - {"forget"} == {"original", "statistics"} | more


def test_threshold_one_moves_nothing_and_zero_moves_every_kernel(problem):
    start = problem.run.state.params
    frozen = unroll.unlearn(EASY.format(1), problem)
    assert tree.same_bits(frozen.params, start)
    free = unroll.unlearn(EASY.format(0), problem)
    before, after = flatten_dict(start, sep="/"), flatten_dict(free.params, sep="/")
    moved = {path for path in before if not tree.same_bits(before[path], after[path])}
    assert moved == {"Dense_0/kernel", "head/dense/kernel"}
    assert set(free.info["frozen"]) == {"Dense_0/bias", "head/dense/bias"}
    with_bias = unroll.unlearn(
        "projected_gradient(epochs=5, projection=\"energy(threshold=0.5, bias='moves')\")", problem
    )
    assert with_bias.info["frozen"] == []


def test_the_series_moves_what_the_projection_holds_fast(problem):
    """Everything, where all is held fast; biases alone, where nothing else is."""
    text = "projected_gradient(epochs=5, projection='energy(threshold={})', taylor_order={})"
    series = unroll.unlearn("taylor(order=2)", problem)
    held = unroll.unlearn(text.format(1, 2), problem)
    assert tree.distance(held.params, series.params) < 1e-6 * tree.norm(series.params)  # float32
    assert held.example_gradients > series.example_gradients
    free, plain = (unroll.unlearn(text.format(0, order), problem) for order in (2, 0))
    leaves = [flatten_dict(each.params, sep="/") for each in (free, plain, series)]
    for path, leaf in leaves[0].items():
        expected = leaves[1 if path.endswith("kernel") else 2][path]
        np.testing.assert_allclose(leaf, expected, rtol=0, atol=1e-6, err_msg=path)
    assert "run" in unroll.methods.method(text.format(0, 1)).needs
    assert "run" not in unroll.methods.method(text.format(0, 0)).needs


def test_retained_logits_stay_where_the_span_holds_all_retained_inputs():
    """A network wider than the retained set: every retained input of every layer is in the span."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        data = unroll.data.Dataset(
            "few", rng.normal(size=(12, 40)), rng.integers(0, 3, 12).astype(np.int32), 3
        )
        spec = unroll.TrainSpec(unroll.models.build("mlp", num_classes=3, hidden=(40, 40)))
        schedule = unroll.data.make_schedule(0, 12, batch_size=4, epochs=10)
        run = unroll.train(spec, data, schedule)
        params = jax.tree.map(lambda leaf: leaf.astype(np.float64), run.state.params)
        run = dataclasses.replace(run, state=run.state._replace(params=params))
        problem = unroll.Problem(run, np.array([1, 5]))
        result = unroll.unlearn(
            "projected_gradient(epochs=10, learning_rate=0.5, final_learning_rate=0.1,"
            "projection='energy(threshold=0.999999999999)')",
            problem,
        )

        def logits(params, data):
            return spec.model.apply({"params": params}, jnp.asarray(data.inputs, jnp.float64))

        forget, retain = problem.forget_data, problem.retain_data
        kept = np.abs(logits(result.params, retain) - logits(params, retain)).max()
        gone = np.abs(logits(result.params, forget) - logits(params, forget)).max()
    # A share of 1 - 1e-12 of the energy leaves out directions of singular values of 1e-6.
    assert kept < 1e-5 and gone > 1
    assert all(layer["rank"] <= 10 for layer in result.info["layers"].values())


def test_it_forgets_a_class_and_says_what_it_did(blobs, recorded_run):
    train, _ = blobs
    problem = unroll.Problem(recorded_run, unroll.data.class_ids(train, 1))
    result = unroll.unlearn(
        "projected_gradient(epochs=60, learning_rate=0.5, stop='forget_level(level=0.05)',"
        "projection='energy(threshold=0.5)')",
        problem,
    )
    logits = unroll.predict(recorded_run.spec, result.params, {}, problem.forget_data)
    assert np.mean(logits.argmax(axis=1) == 1) <= 0.05
    info = result.info
    assert info["verdict"] == "stop" and info["reads"] == ["forget"]
    assert info["history"][-1]["forget"] <= 0.05 < info["history"][-2]["forget"]
    count = len(problem.forget)
    # Epochs, one batch for the shares, a forward pass for each accuracy, and the moments.
    least = info["epochs"] * count + min(count, 128) + (info["epochs"] + 1) * count / 3
    assert least < result.example_gradients < least + 3 * count
    assert 0 < info["removed_gradient"]["Dense_0"] < 1
    assert "once for all deletions" in info["warning"]


def test_a_rule_that_holds_at_once_does_nothing(problem):
    result = unroll.unlearn("projected_gradient(stop='forget_level(level=1.0)')", problem)
    assert tree.same_bits(result.params, problem.run.state.params)
    assert "nothing was done" in result.info["warning"]


def test_a_second_deletion_subtracts_from_what_the_first_one_left(problem):
    """With the model unchanged it is exact; after the first deletion it drifts and says so."""
    whole = record_statistics(problem.run)
    one = unroll.unlearn("projected_gradient(epochs=20, learning_rate=1.0)", problem)
    moved = dataclasses.replace(problem.run, state=problem.run.state._replace(params=one.params))
    second = dataclasses.replace(problem, run=moved, forget=np.array([50, 60]), statistics=whole)
    assert "two models" in unroll.unlearn("projected_gradient", second).info["warning"]
    same = dataclasses.replace(second, run=problem.run)
    assert "two models" not in unroll.unlearn("projected_gradient", same).info["warning"]
    again = dataclasses.replace(second, statistics=None)  # recomputed: the moved model's own
    assert "two models" not in unroll.unlearn("projected_gradient", again).info["warning"]


def test_statistics_of_other_options_are_refused(problem):
    given = record_statistics(problem.run, LayerOptions(bias="moves"))
    with pytest.raises(unroll.InputError, match="statistics have"):
        unroll.unlearn("projected_gradient", dataclasses.replace(problem, statistics=given))


def test_the_learning_rate_begins_and_ends_as_in_the_reference():
    rate = decaying_sgd(0.05, 0.01, epochs=4, steps=3).bound()["learning_rate"].build()
    rates = [float(rate(step)) for step in range(12)]
    expected = [0.05 * 0.2 ** (epoch / 4) for epoch in (1, 2, 3, 4) for _ in range(3)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_running_averages_do_not_move(images):
    train, _ = images
    spec = unroll.TrainSpec(
        unroll.models.build("vgg_small", num_classes=3, width=0.125, normalization="batch")
    )
    schedule = unroll.data.make_schedule(0, len(train), batch_size=16, epochs=1)
    run = unroll.train(spec, train, schedule)
    problem = unroll.Problem(run, np.arange(8))
    result = unroll.unlearn("projected_gradient(epochs=2)", problem)
    assert tree.same_bits(result.model_state, run.state.model_state)
    norms = [path for path in flatten_dict(run.state.params, sep="/") if "BatchNorm" in path]
    assert norms and set(norms) <= set(result.info["frozen"])
