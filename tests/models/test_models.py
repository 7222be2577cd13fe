"""One table of all models; a new model is a new row."""

import inspect
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unroll.errors import InputError
from unroll.models import MODELS, build, parameter_count
from unroll.models.resnet import _stem_pool

IMAGES = (8, 8, 3)
TOKENS = (6,)

# Row: name in the registry, narrow options, shape of one example.
TABLE = {
    "linear": ("linear", {}, IMAGES),
    "mlp": ("mlp", {"hidden": [12, 8]}, (5,)),
    "cnn": ("cnn", {"channels": [4, 6]}, IMAGES),
    "cnn group": ("cnn", {"channels": [4, 6], "normalization": "group"}, IMAGES),
    "allcnn": ("allcnn", {"width": 0.05}, IMAGES),
    "vgg_small": ("vgg_small", {"width": 0.1}, IMAGES),
    "vgg16": ("vgg16", {"width": 0.05, "stages": [[2, 64], [2, 128]]}, IMAGES),
    "vgg19": ("vgg19", {"width": 0.05, "stages": [[2, 64]]}, IMAGES),
    "resnet18": ("resnet18", {"width": 4, "depths": [1, 1]}, IMAGES),
    "resnet50": ("resnet50", {"width": 4, "depths": [1, 1]}, IMAGES),
    "resnet imagenet": ("resnet18", {"width": 4, "depths": [1], "stem": "imagenet"}, (9, 9, 3)),
    "bag": ("text", {"vocabulary_size": 11, "embedding": 8}, TOKENS),
    "transformer": (
        "text",
        {"vocabulary_size": 11, "embedding": 8, "heads": 2, "encoder": "transformer", "layers": 1},
        TOKENS,
    ),
}
CLASSES = 3

# Compiling dominates these tests and speed is not their subject.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def examples(shape, batch=4, seed=0):
    if shape == TOKENS:
        return jax.random.randint(jax.random.key(seed), (batch, *shape), 0, 11)
    return jax.random.normal(jax.random.key(seed), (batch, *shape))


@pytest.fixture(params=TABLE, scope="module")
def row(request):
    name, options, shape = TABLE[request.param]
    model, x = build(name, CLASSES, **options), examples(shape)
    return model, x, quick_jit(model.init)(jax.random.key(1), x)


def test_table_is_complete():
    assert {name for name, _, _ in TABLE.values()} == set(MODELS)


def test_logits(row):
    model, x, variables = row
    logits = quick_jit(model.apply)(variables, x)
    chex.assert_shape(logits, (len(x), CLASSES))
    chex.assert_type(logits, jnp.float32)
    assert len(np.unique(np.round(np.asarray(logits), 6))) > CLASSES, "all examples look the same"


def test_float64_passes_through(row):
    """Verification runs in float64: nothing on the way may round, and parameters start float32."""
    model, x, _ = row
    with jax.enable_x64(True):
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        double = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, jnp.float64), variables)
        inputs = x if x.dtype == jnp.int32 else x.astype(jnp.float64)
        program = jax.make_jaxpr(model.apply)(double, inputs)
        assert "f32" not in str(program)


def test_hashable_and_equal():
    for name, options, _ in TABLE.values():
        first, second = build(name, CLASSES, **options), build(name, CLASSES, **options)
        assert first == second and hash(first) == hash(second)
        assert first != build(name, CLASSES + 1, **options)


def test_init_is_deterministic(row):
    model, x, variables = row
    programs = [str(jax.make_jaxpr(model.init)(jax.random.key(1), x)) for _ in range(2)]
    assert programs[0] == programs[1]


def test_signature(row):
    names = list(inspect.signature(type(row[0]).__call__).parameters)[1:]
    assert names[:2] == ["x", "train"]
    assert set(names[2:]) <= {"example_keys", "example_weights"}


def test_derivatives_up_to_the_third_of_the_loss(row):
    """The gradient and its first two directional derivatives: finite, and not all zero."""
    model, x, variables = row
    labels = jnp.arange(len(x)) % CLASSES

    def loss(params):
        log_probabilities = jax.nn.log_softmax(model.apply({"params": params}, x))
        return -jnp.mean(log_probabilities[jnp.arange(len(x)), labels])

    def derivative(function, params):
        return jax.jvp(function, (params,), (jax.tree.map(jnp.cos, params),))

    @quick_jit
    def three(params):
        first = lambda params: derivative(jax.grad(loss), params)  # noqa: E731
        return derivative(first, params)

    (gradient, first), (_, second) = three(variables["params"])
    for tree in (gradient, first, second):
        chex.assert_tree_all_finite(tree)
        assert sum(float(jnp.sum(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree)) > 1e-4
    dead = [leaf.shape for leaf in jax.tree.leaves(gradient) if not jnp.any(leaf != 0)]
    assert not dead, "parameters that no example reaches"


def test_examples_do_not_see_each_other(row):
    model, x, variables = row
    others = jnp.concatenate([x[:1], examples(x.shape[1:], len(x) - 1, seed=5)])
    apply = quick_jit(lambda x: model.apply(variables, x, train=True))
    first, second = apply(x), apply(others)
    chex.assert_trees_all_close(first[0], second[0], rtol=1e-5, atol=1e-6)
    assert not np.allclose(first[1:], second[1:])


BATCH_NORM = {
    "cnn": {"channels": [4, 4]},
    "allcnn": {"width": 0.05},
    "vgg_small": {"width": 0.1},
    "resnet18": {"width": 4, "depths": [1, 1]},
}


@pytest.mark.parametrize("name", BATCH_NORM)
def test_weight_zero_leaves_no_mark_with_batch_norm(name):
    model = build(name, CLASSES, normalization="batch", **BATCH_NORM[name])
    x = examples(IMAGES)
    other = x.at[2].set(7.0)
    variables = quick_jit(model.init)(jax.random.key(1), x)

    @quick_jit
    def apply(x, weights):
        options = {"train": True, "example_weights": weights, "mutable": ["batch_stats"]}
        return model.apply(variables, x, **options)

    kept, weights = jnp.array([0, 1, 3]), jnp.array([1.0, 1.0, 0.0, 1.0])
    (first, first_stats), (second, second_stats) = apply(x, weights), apply(other, weights)
    chex.assert_trees_all_close(first[kept], second[kept], rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(first_stats, second_stats, rtol=1e-5, atol=1e-6)
    marked, _ = apply(other, jnp.ones(4))
    assert not np.allclose(marked[kept], apply(x, jnp.ones(4))[0][kept], atol=1e-3)


DROPOUT = {
    "mlp": ({"hidden": [8]}, (5,)),
    "allcnn": ({"width": 0.05, "input_dropout": 0.2}, IMAGES),
    "vgg_small": ({"width": 0.1}, IMAGES),
    "text": ({"vocabulary_size": 11, "encoder": "transformer", "layers": 1}, TOKENS),
}


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_follows_the_example(name):
    options, shape = DROPOUT[name]
    model, x = build(name, CLASSES, dropout=0.5, **options), examples(shape)
    variables = quick_jit(model.init)(jax.random.key(1), x)
    keys = jax.random.split(jax.random.key(2), len(x))

    @quick_jit
    def apply(x, keys):
        return model.apply(variables, x, train=True, example_keys=keys)

    order = jnp.array([3, 0, 2, 1])
    full = apply(x, keys)
    chex.assert_trees_all_close(full[order], apply(x[order], keys[order]), rtol=1e-4, atol=1e-5)
    assert not np.allclose(full, apply(x, keys[::-1]), atol=1e-3)


@pytest.mark.parametrize("encoder", ["bag", "transformer"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logit(encoder, side):
    model = build("text", CLASSES, vocabulary_size=11, embedding=8, encoder=encoder)
    x = examples(TOKENS) % 10 + 1
    variables = quick_jit(model.init)(jax.random.key(1), x)
    padded = jnp.pad(x, ((0, 0), (0, 3) if side == "right" else (3, 0)))
    first, second = model.apply(variables, x), model.apply(variables, padded)
    chex.assert_trees_all_close(first, second, rtol=1e-5, atol=1e-6)
    assert not np.allclose(first, model.apply(variables, padded.at[padded == 0].set(1)), atol=1e-3)
    chex.assert_tree_all_finite(model.apply(variables, jnp.zeros_like(x)))


def test_transformer_sees_the_order_of_words():
    model = build("text", CLASSES, vocabulary_size=11, encoder="transformer")
    x = jnp.array([[1, 2, 3, 4]])
    variables = quick_jit(model.init)(jax.random.key(1), x)
    first, second = model.apply(variables, x), model.apply(variables, x[:, ::-1])
    assert not np.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "classes", "options", "size", "count"),
    [
        # Counts of the PyTorch models of the same names (BatchNorm has as many parameters).
        ("resnet18", 10, {}, 32, 11_173_962),
        ("resnet50", 10, {}, 32, 23_520_842),
        ("resnet18", 1000, {"stem": "imagenet"}, 64, 11_689_512),
        ("resnet50", 1000, {"stem": "imagenet"}, 64, 25_557_032),
        ("vgg16", 10, {}, 32, 14_728_266),
        # The sum over the layers in the table of the paper.
        ("allcnn", 10, {"normalization": "none"}, 32, 1_369_738),
    ],
)
def test_parameter_counts(name, classes, options, size, count):
    model = build(name, classes, **options)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    assert parameter_count(jax.eval_shape(model.init, jax.random.key(0), x)) == count


def test_parameter_count_leaves_out_running_averages():
    variables = {"params": {"a": jnp.ones((2, 3))}, "batch_stats": {"b": jnp.ones(5)}}
    assert parameter_count(variables) == parameter_count(variables["params"]) == 6


@pytest.mark.parametrize("size", [(7, 8), (1, 2), (9, 9)])
def test_stem_pool_equals_flax(size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    margins = ((1, 1), (1, 1))

    def both(pool):
        value, pullback = jax.vjp(pool, x)
        return value, pullback(jnp.cos(value))

    expected = both(lambda x: nn.max_pool(x, (3, 3), (2, 2), margins))
    chex.assert_trees_all_close(both(_stem_pool), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet17", {}, "choose one of"),
        ("mlp", {"widths": 3}, "no option .*hidden"),
        ("mlp", {"parent": None}, "no option"),
        ("text", {}, 'needs the option "vocabulary_size"'),
    ],
)
def test_build_says_what_to_do(name, options, words):
    with pytest.raises(InputError, match=words):
        build(name, CLASSES, **options)


def test_bad_stem_and_encoder():
    x = jnp.ones((1, *IMAGES))
    with pytest.raises(InputError, match="choose"):
        build("resnet18", CLASSES, stem="tiny").init(jax.random.key(0), x)
    with pytest.raises(InputError, match="choose"):
        build("text", CLASSES, vocabulary_size=5, encoder="lstm").init(jax.random.key(0), x)
