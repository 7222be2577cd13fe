"""One step against the formula, and what a weight of zero means."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unroll
from unroll.training.step import Examples, gather, initial_state, train_step
from unroll.types import TrainState


class Linear(nn.Module):
    classes: int = 3

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes, param_dtype=x.dtype)(x)


def setup(spec, num=12, dtype=np.float64):
    rng = np.random.default_rng(0)
    examples = Examples(
        jnp.asarray(rng.normal(size=(num, 4)), dtype),
        jnp.asarray(rng.integers(0, 3, num), jnp.int32),
    )
    state = initial_state(spec, jax.random.key(0), examples.inputs)
    return examples, jax.tree.map(lambda a: a.astype(dtype) if a.dtype == jnp.float32 else a, state)


@pytest.mark.parametrize("denominator", ["batch", "renormalise"])
def test_step_is_the_weighted_formula(denominator):
    with jax.enable_x64(True):
        spec = unroll.TrainSpec(
            Linear(),
            optimizer=unroll.optax_call("sgd", learning_rate=0.3),
            objective=unroll.Objective(l2=0.1),
            denominator=denominator,
        )
        examples, state = setup(spec)
        weights = jnp.linspace(0.0, 2.0, 12)
        slots = np.array([3, 0, 7, -1, 11])
        after, loss = train_step(
            spec, state, examples, weights, jax.random.key(1), jnp.asarray(5), slots
        )
        kernel, bias = state.params["Dense_0"]["kernel"], state.params["Dense_0"]["bias"]
        gradient_kernel, gradient_bias, expected_loss = 0.0, 0.0, 0.0
        divisor = 5 if denominator == "batch" else float(weights[slots[slots >= 0]].sum())
        for n in slots[slots >= 0]:
            x, y = examples.inputs[n], examples.labels[n]
            logits = x @ kernel + bias
            residual = jax.nn.softmax(logits) - jax.nn.one_hot(y, 3)
            gradient_kernel += weights[n] * jnp.outer(x, residual) / divisor
            gradient_bias += weights[n] * residual / divisor
            cross_entropy = jax.nn.logsumexp(logits) - logits[y]
            expected_loss += weights[n] * cross_entropy / divisor
        expected_loss += 0.05 * ((kernel**2).sum() + (bias**2).sum())
        expected = {
            "kernel": kernel - 0.3 * (gradient_kernel + 0.1 * kernel),
            "bias": bias - 0.3 * (gradient_bias + 0.1 * bias),
        }
        chex.assert_trees_all_close(after.params["Dense_0"], expected, rtol=1e-12)
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)


@pytest.mark.parametrize("denominator", ["batch", "renormalise"])
def test_weight_zero_equals_absence(denominator):
    """An example at weight zero and an empty slot are the same."""
    with jax.enable_x64(True):
        spec = unroll.TrainSpec(Linear(), denominator=denominator)
        examples, state = setup(spec)
        weights = jnp.ones(12).at[7].set(0.0)
        key, step = jax.random.key(0), jnp.asarray(0)
        with_zero, _ = train_step(spec, state, examples, weights, key, step, np.array([3, 7, 5]))
        absent, _ = train_step(spec, state, examples, weights, key, step, np.array([3, -1, 5]))
        chex.assert_trees_all_equal(with_zero.params, absent.params)


@pytest.mark.parametrize("denominator", ["batch", "renormalise"])
def test_batch_without_weight_changes_nothing(denominator):
    spec = unroll.TrainSpec(Linear(), denominator=denominator)
    examples, state = setup(spec, dtype=np.float32)
    after, loss = train_step(
        spec, state, examples, jnp.zeros(12), jax.random.key(0), jnp.asarray(0), np.arange(4)
    )
    chex.assert_trees_all_equal(after.params, state.params)
    assert loss == 0


def test_randomness_of_an_example_is_its_own():
    """Crops of an example do not depend on who else is in the batch, or where it sits."""
    spec = unroll.TrainSpec(Linear(), augmentation=unroll.CropAndFlip(padding=2))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8, 8, 3)), jnp.float32)
    examples = Examples(images, jnp.zeros(6, jnp.int32))
    weights, key, step = jnp.ones(6), jax.random.key(3), jnp.asarray(4)
    first = gather(spec, examples, weights, key, step, np.array([0, 1, 2, 3]))
    second = gather(spec, examples, weights, key, step, np.array([2, 5, -1, 0]))
    np.testing.assert_array_equal(first.inputs[2], second.inputs[0])
    np.testing.assert_array_equal(first.inputs[0], second.inputs[3])
    later = gather(spec, examples, weights, key, step + 1, np.array([0, 1, 2, 3]))
    assert not np.array_equal(first.inputs, later.inputs)


def test_momentum_is_optax_momentum():
    spec = unroll.TrainSpec(
        Linear(), optimizer=unroll.optax_call("sgd", learning_rate=0.1, momentum=0.9)
    )
    examples, state = setup(spec, dtype=np.float32)
    weights, slots = jnp.ones(12), np.arange(6)
    transformation = optax.sgd(0.1, momentum=0.9)
    params, opt_state = state.params, transformation.init(state.params)

    def loss(params):
        logits = spec.model.apply({"params": params}, examples.inputs[slots])
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, examples.labels[slots]
        ).mean()

    for step in range(3):
        state, _ = train_step(
            spec, state, examples, weights, jax.random.key(0), jnp.asarray(step), slots
        )
        updates, opt_state = transformation.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(state.params, params, rtol=1e-5)


def test_state_is_a_plain_pytree():
    """Without memory of the objective a state has the leaves that it always had."""
    spec = unroll.TrainSpec(Linear())
    _, state = setup(spec, dtype=np.float32)
    assert isinstance(state, TrainState)
    assert state.model_state == {} and state.objective_state == ()
    assert TrainState(state.params, state.opt_state, {}) == state._replace(objective_state=())
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert paths == [".params['Dense_0']['bias']", ".params['Dense_0']['kernel']"]


def test_default_objective_is_the_plain_gradient():
    """The same bits as the step written out, and no more work."""
    spec = unroll.TrainSpec(Linear())
    examples, state = setup(spec, dtype=np.float32)
    key, step, slots = jax.random.key(0), jnp.asarray(3), jnp.array([3, 0, 7, 11])

    def written_out(state, weights):
        def loss(params):
            logits = spec.model.apply({"params": params}, examples.inputs[slots])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, examples.labels[slots])
            return jnp.vdot(weights[slots], losses) / 4

        value, gradient = jax.value_and_grad(loss)(state.params)
        updates, opt_state = optax.sgd(0.1).update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, state.model_state), value

    def library(state, weights):
        return train_step(spec, state, examples, weights, key, step, slots)

    compiled = [
        jax.jit(function).lower(state, jnp.ones(12)).compile()
        for function in (library, written_out)
    ]
    chex.assert_trees_all_equal(*(program(state, jnp.ones(12)) for program in compiled))
    flops = [program.cost_analysis()["flops"] for program in compiled]
    # Only the test for empty slots is on top: a few operations per slot.
    assert 0 <= flops[0] - flops[1] <= 3 * len(slots)


@dataclasses.dataclass(frozen=True)
class StepLoss:
    """Loss of each example: the index of the step."""

    def example_losses(self, logits, labels, step):
        return jnp.full(labels.shape, step, logits.dtype)

    def penalty(self, params):
        del params
        return jnp.zeros(())


def test_an_objective_that_names_the_step_is_told():
    spec = unroll.TrainSpec(Linear(), StepLoss())
    examples, state = setup(spec, dtype=np.float32)
    weights, slots = jnp.ones(12), np.arange(4)
    jitted = jax.jit(train_step, static_argnames=("spec",))
    for step in (0, 7):
        _, loss = jitted(
            spec, state, examples, weights, jax.random.key(0), jnp.asarray(step), slots
        )
        assert loss == step


def test_decoupled_weight_decay_is_a_chain():
    """AdamW as a chain: the decay enters after the preconditioner, as `rate * decay * w`."""
    rate, decay = 0.01, 0.1
    call = unroll.optax_call
    chain = call(
        "chain",
        call("scale_by_adam"),
        call("add_decayed_weights", decay),
        call("scale_by_learning_rate", rate),
    )
    optimizers = {
        "chain": chain,
        "adamw": call("adamw", rate, weight_decay=decay),
        "adam": call("adam", rate),
    }
    after = {}
    for name, optimizer in optimizers.items():
        spec = unroll.TrainSpec(Linear(), optimizer=optimizer)
        examples, state = setup(spec, dtype=np.float32)
        arguments = (jnp.ones(12), jax.random.key(0), jnp.asarray(0), np.arange(6))
        after[name] = train_step(spec, state, examples, *arguments)[0].params
    chex.assert_trees_all_close(after["chain"], after["adamw"], rtol=1e-6)
    decayed = jax.tree.map(lambda moved, w: moved - rate * decay * w, after["adam"], state.params)
    chex.assert_trees_all_close(after["chain"], decayed, rtol=1e-5, atol=1e-7)
    assert unroll.tree.distance(after["chain"], after["adam"]) > 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"denominator": "mean"}, "unknown denominator"),
        ({"optimizer": optax.sgd(0.1)}, "describe the optimiser"),
    ],
)
def test_bad_specification(change, message):
    with pytest.raises(unroll.InputError, match=message):
        dataclasses.replace(unroll.TrainSpec(Linear()), **change)
