"""Gradient norms of examples: closed forms, a loop of gradients in float64, and odd networks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unroll
from unroll.models.resnet import ResNet
from unroll.training.spec import apply_model
from unroll.training.step import initial_state
from unroll.types import TrainState
from unroll.unrolling import example_gradients as module
from unroll.unrolling.example_gradients import gradient_norms

CLASSES = 3


def state_of(spec, data):
    """Random float64 variables: no parameter stands at its special first value (zeros, ones)."""
    inputs = jnp.asarray(data.inputs[:1])
    shapes = jax.eval_shape(lambda: initial_state(spec, jax.random.key(0), inputs))
    rng = np.random.default_rng(5)

    def draw(path, leaf):
        values = 0.4 * rng.normal(size=leaf.shape)
        return 0.5 + np.abs(values) if path[-1].key == "var" else values

    params, _, model_state, _ = shapes
    params, model_state = jax.tree_util.tree_map_with_path(draw, (params, model_state))
    return TrainState(params, (), model_state)


def loop_of_gradients(spec, state, data):
    """The definition: one `jax.grad` for each example."""

    @jax.jit
    def square(params, model_state, example, label):
        def loss(params):
            inputs = example[None] if spec.preprocess is None else spec.preprocess(example[None])
            logits, _ = apply_model(spec, params, model_state, inputs, train=False)
            return spec.objective.example_losses(logits, label[None])[0]

        gradient = jax.grad(loss)(params)
        return sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(gradient))

    variables = state.params, state.model_state
    return np.sqrt(
        [
            square(*variables, jnp.asarray(x), y)
            for x, y in zip(data.inputs, data.labels, strict=True)
        ]
    )


def claimed(spec, state, data):
    """Paths of the layers whose kernels have a norm without a gradient."""
    inputs = jnp.asarray(data.inputs[:1])
    layers = module._layers(spec, state.params, state.model_state, inputs, data.labels[:1])
    return {"/".join(path) for path in layers}


def test_linear_model_has_a_closed_form(blobs):
    """The gradient is `(x, 1) (softmax - one_hot)^T`, an outer product."""
    train, _ = blobs
    spec = unroll.TrainSpec(unroll.models.build("linear", num_classes=3))
    run = unroll.train(spec, train, np.arange(64).reshape(4, 16))
    logits = unroll.predict(spec, run.state.params, {}, train).astype(np.float64)
    residual = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    residual[np.arange(len(train)), train.labels] -= 1
    expected = np.linalg.norm(residual, axis=1) * np.sqrt(1 + (train.inputs**2).sum(axis=1))
    norms = gradient_norms(spec, run.state, train)
    assert norms.dtype == np.float32
    np.testing.assert_allclose(norms, expected, rtol=1e-5)  # float32


IMAGE_MODELS = {
    "mlp": unroll.models.build("mlp", CLASSES, hidden=(5,), dropout=0.5),
    "cnn": unroll.models.build("cnn", CLASSES, channels=(4, 4, 6), normalization="group"),
    "cnn, batch": unroll.models.build("cnn", CLASSES, channels=(4,), normalization="batch"),
    "resnet": ResNet(CLASSES, depths=(1, 1), width=4),
    "bottleneck": ResNet(CLASSES, depths=(1,), width=2, bottleneck=True, stem="imagenet"),
}


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_agrees_with_a_loop_of_gradients_on_images(images, name):
    """In float64, all models of the library; only rounding may differ."""
    data = images[0].take(range(6))
    with jax.enable_x64(True):
        spec = unroll.TrainSpec(IMAGE_MODELS[name])
        state = state_of(spec, data)
        norms = gradient_norms(spec, state, data, batch_size=4)
        np.testing.assert_allclose(norms, loop_of_gradients(spec, state, data), rtol=1e-10)
        kernels = sum(leaf.ndim in (2, 4) for leaf in jax.tree.leaves(state.params))
        assert len(claimed(spec, state, data)) == kernels  # none was left to the general form


@pytest.mark.parametrize("encoder", ["bag", "transformer"])
def test_agrees_with_a_loop_of_gradients_on_text(encoder):
    tokens = np.random.default_rng(0).integers(0, 6, (5, 7))  # few words, so that they repeat
    tokens[:, 0] = 1
    data = unroll.data.Dataset("words", tokens, np.arange(5) % CLASSES, CLASSES)
    options = dict(vocabulary_size=6, embedding=4, heads=2, layers=1, encoder=encoder)
    with jax.enable_x64(True):
        spec = unroll.TrainSpec(unroll.models.build("text", CLASSES, **options))
        state = state_of(spec, data)
        norms = gradient_norms(spec, state, data)
        np.testing.assert_allclose(norms, loop_of_gradients(spec, state, data), rtol=1e-10)
        assert {"embed", "head/dense"} <= claimed(spec, state, data)


# Networks in which a kernel must not be taken for what it looks like.


class CalledTwice(nn.Module):
    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(x.shape[-1], name="shared", param_dtype=jnp.float64)
        return nn.Dense(CLASSES, name="last")(jnp.tanh(shared(jnp.tanh(shared(x)))))


class ReadElsewhere(nn.Module):
    """The kernel of one layer scales the output of another one."""

    def setup(self):
        self.first, self.last = nn.Dense(4), nn.Dense(CLASSES)

    def __call__(self, x):
        hidden = jnp.tanh(self.first(x))
        return self.last(hidden) * jnp.sum(self.first.variables["params"]["kernel"] ** 2)


class TiedEmbedding(nn.Module):
    """The table of the embedding is the last layer, too."""

    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(CLASSES, 4, name="embed")
        rows = embed((x[:, :5] > 0).astype(jnp.int32))
        return embed.attend(nn.Dense(4, name="middle")(rows.mean(axis=1)))


class MergedBatch(nn.Module):
    """Rows of one example stand where a batch usually stands."""

    @nn.compact
    def __call__(self, x):
        parts = jnp.tanh(nn.Dense(4, name="merged")(x.reshape(-1, 3)))
        return nn.Dense(CLASSES, name="last")(parts.reshape(len(x), -1))


class Subclass(nn.Dense):
    def __call__(self, x):
        return super().__call__(x) ** 2


class Variations(nn.Module):
    """A subclass, a layer in half precision, an option, a layer with rows, a checkpointed layer."""

    @nn.compact
    def __call__(self, x, train=True):
        x = x * (3.0 if train else 1.0)  # evaluation mode must be asked for
        x = Subclass(4, name="subclass")(x)
        x = nn.Dense(6, name="option", dot_general=jax.lax.dot_general)(x)
        x = nn.Dense(4, name="rows", use_bias=False)(jnp.tanh(x.reshape(-1, 2, 3)))
        x = nn.remat(nn.Dense)(4, name="checkpointed")(jnp.tanh(x).reshape(-1, 8))
        return nn.Dense(CLASSES, name="typed", dtype=jnp.float64)(x)


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (CalledTwice(), {"last"}),
        (MergedBatch(), {"last"}),
        (ReadElsewhere(), {"last"}),
        (TiedEmbedding(), {"middle"}),
        (Variations(), {"rows"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_shared_and_unknown_layers_take_the_general_form(blobs, model, layers):
    data = blobs[0].take(range(5))
    with jax.enable_x64(True):
        spec = unroll.TrainSpec(model)
        state = state_of(spec, data)
        norms = gradient_norms(spec, state, data)
        np.testing.assert_allclose(norms, loop_of_gradients(spec, state, data), rtol=1e-10)
        found = claimed(spec, state, data) - {"checkpointed"}  # of either kind, as flax names it
        assert found == layers


# The norms of a layer by themselves.


@settings(max_examples=8, deadline=None)
@given(
    size=st.integers(3, 7),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=st.sampled_from(["SAME", "VALID", ((0, 1), (2, 0))]),
)
def test_convolution_norms(size, channels, kernel, strides, padding):
    """Against the kernel gradients of one example after the other."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        layer = unroll.models.Conv(channels[1], kernel, strides, padding, use_bias=False)
        inputs = rng.normal(size=(2, size, size + 1, channels[0]))
        weights = jnp.asarray(rng.normal(size=(*kernel, *channels)))

        def apply(weights, image):
            return layer.apply({"params": {"kernel": weights}}, image[None])[0]

        shape = jax.eval_shape(apply, weights, inputs[0]).shape
        cotangents = rng.normal(size=(2, *shape))
        expected = [
            np.sum(
                np.square(jax.vjp(lambda w, image=image: apply(w, image), weights)[1](cotangent)[0])
            )
            for image, cotangent in zip(inputs, cotangents, strict=True)
        ]
        _, squares = module._known(layer)
        np.testing.assert_allclose(squares(inputs, cotangents), expected, rtol=1e-10)


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_both_forms_of_a_product_agree(rows):
    """Few rows take the Gram matrices, many the product itself."""
    rng = np.random.default_rng(0)
    inputs, cotangents = rng.normal(size=(rows, 8)), rng.normal(size=(rows, 9))
    with jax.enable_x64(True):
        square = module._product_square(jnp.asarray(inputs), jnp.asarray(cotangents))
    np.testing.assert_allclose(square, np.sum((inputs.T @ cotangents) ** 2), rtol=1e-12)


# The public function.


@pytest.fixture(scope="module")
def trained(blobs, mlp_spec):
    schedule = unroll.data.make_schedule(0, 120, batch_size=16, epochs=1)
    return unroll.train(mlp_spec, blobs[0], schedule)


def test_batches_ids_and_progress(trained, monkeypatch):
    spec, state, data = trained.spec, trained.state, trained.dataset
    everything = gradient_norms(spec, state, data)
    seen = []
    ids = [7, 3, 7, 119, 0]
    some = gradient_norms(
        spec, state, data, ids, batch_size=2, progress=lambda *done: seen.append(done)
    )
    np.testing.assert_allclose(some, everything[ids], rtol=1e-5)  # float32, other batches
    assert seen == [(5, 5)]  # at the end of each call of the compiled program
    monkeypatch.setattr(module, "_BATCHES", 2)
    gradient_norms(spec, state, data, ids, batch_size=1, progress=lambda *done: seen.append(done))
    assert seen[1:] == [(2, 5), (4, 5), (5, 5)]
    assert gradient_norms(spec, state, data, []).shape == (0,)


def test_norms_are_those_of_the_loss_of_the_objective(blobs):
    """Penalties that examples own count, those of the parameters do not."""
    train, _ = blobs
    data = train.take(range(4))
    with jax.enable_x64(True):
        model = unroll.models.build("mlp", CLASSES, hidden=(5,))
        spec = unroll.TrainSpec(model, unroll.Objective(sd_gamma=0.5, l2=3.0))
        state = state_of(spec, data)
        norms = gradient_norms(spec, state, data)
        np.testing.assert_allclose(norms, loop_of_gradients(spec, state, data), rtol=1e-10)
        plain = gradient_norms(unroll.TrainSpec(model), state, data)
        assert np.abs(norms / plain - 1).min() > 1e-3


def test_raw_images_are_preprocessed():
    train, _ = unroll.data.load("random_images", num_train=6, num_test=2, size=8, num_classes=3)
    model = unroll.models.build("cnn", num_classes=3, channels=(2,))
    spec = unroll.TrainSpec(model, preprocess=unroll.Normalize((0.5,) * 3, (0.2,) * 3))
    state = jax.tree.map(np.float32, state_of(spec, train))
    expected = loop_of_gradients(spec, state, train)
    np.testing.assert_allclose(gradient_norms(spec, state, train), expected, rtol=1e-5)  # float32
    with pytest.raises(unroll.InputError, match="preprocess"):
        gradient_norms(unroll.TrainSpec(model), state, train)


def test_what_is_refused(trained):
    spec, state, data = trained.spec, trained.state, trained.dataset
    with pytest.raises(unroll.InputError, match="id 120"):
        gradient_norms(spec, state, data, [120])
    with pytest.raises(unroll.InputError, match="batch_size"):
        gradient_norms(spec, state, data, batch_size=0)
    broken = TrainState(jax.tree.map(lambda leaf: leaf * np.nan, state.params), (), {})
    with pytest.raises(unroll.DivergenceError, match="example 5"):
        gradient_norms(spec, broken, data, [5, 6])
