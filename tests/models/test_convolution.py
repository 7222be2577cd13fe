"""`conv2d` against `lax.conv_general_dilated`, in float64, under every transformation."""

import itertools
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from unroll.errors import InputError
from unroll.models import convolution
from unroll.models.convolution import Conv, conv2d

ASYMMETRIC = ((2, 1), (0, 3))
WIDER_THAN_KERNEL = ((3, 0), (4, 5))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def reference(x, kernel, strides=(1, 1), padding="SAME"):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def operands(kernel_size=(3, 2), image=(9, 6), channels=(3, 4), batch=2):
    first, second = jax.random.split(jax.random.key(sum(kernel_size)))
    x = jax.random.normal(first, (batch, *image, channels[0]))
    return x, jax.random.normal(second, (*kernel_size, *channels))


def loss(convolution, kernel, x):
    """Not linear in anything, so that no derivative is trivially zero."""
    hidden = convolution(x, kernel)
    return jnp.sum(jnp.tanh(hidden) * jnp.cos(hidden))


GEOMETRIES = [
    *itertools.product([1, 2, 3, (5, 2), 7], [1, 2], ["SAME", ASYMMETRIC]),
    *itertools.product([(3, 2)], [1, 2, 3, (3, 1)], ["SAME", "VALID", ASYMMETRIC]),
    *itertools.product([1, 2], [1, 2], [WIDER_THAN_KERNEL]),
]


@pytest.mark.parametrize(("kernel_size", "strides", "padding"), GEOMETRIES)
def test_values_and_both_gradients(kernel_size, strides, padding):
    kernel_size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    strides = (strides, strides) if isinstance(strides, int) else strides
    x, kernel = operands(kernel_size)

    @partial(jax.jit, static_argnums=0)
    def both(convolution):
        y, pullback = jax.vjp(partial(convolution, strides=strides, padding=padding), x, kernel)
        return y, pullback(jnp.sin(y))

    chex.assert_trees_all_close(both(conv2d), both(reference), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel_size", "strides", "padding"), GEOMETRIES)
def test_input_gradient_by_phases(kernel_size, strides, padding):
    kernel_size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    x, kernel = operands(kernel_size)
    geometry = convolution._geometry(x.shape, kernel.shape, strides, padding)
    y, pullback = jax.vjp(lambda x: reference(x, kernel, geometry.strides, padding), x)
    found = convolution._input_gradient_by_phases(
        convolution._convolve_canonical, jnp.sin(y), kernel, geometry
    )
    chex.assert_trees_all_close(found, pullback(jnp.sin(y))[0], rtol=1e-12, atol=1e-12)


def test_large_strided_input_gradients_are_taken_by_phases():
    x, kernel = operands((3, 3), image=(32, 32))

    def dilated(strides):
        step = jax.jit(jax.grad(lambda x: loss(partial(conv2d, strides=strides), kernel, x)))
        return "lhs_dilate" in step.lower(x).as_text(dialect="hlo")

    assert dilated(4) and not dilated(2)


@pytest.mark.parametrize(
    ("channels", "width", "count"), [(3, 8, 4), (3, 6, 2), (3, 7, 1), (16, 8, 2)]
)
def test_neighbouring_outputs_are_computed_together(channels, width, count):
    x, kernel = operands((3, 3), image=(5, width), channels=(channels, 16))
    arguments = dict(window_strides=(2, 1), padding=((1, 1), (1, 1)))
    assert convolution._neighbours(x, kernel, **arguments) == count
    chex.assert_trees_all_close(
        convolution._convolve_folded(x, kernel, **arguments),
        reference(x, kernel, (2, 1), ((1, 1), (1, 1))),
        rtol=1e-12,
        atol=1e-12,
    )


def gradient(convolution, kernel, x):
    return jax.grad(partial(loss, convolution), argnums=(0, 1))(kernel, x)


def directional(function, order):
    """The derivative of that order along the operands' own cosines, by nested `jvp`."""
    if order == 0:
        return function
    inner = directional(function, order - 1)
    return lambda kernel, x: jax.jvp(inner, (kernel, x), (jnp.cos(kernel), jnp.cos(x)))[1]


def gradient_of_gradient(convolution, kernel, x):
    def norm(kernel, x):
        return sum(jnp.vdot(leaf, leaf) for leaf in gradient(convolution, kernel, x))

    return jax.grad(norm, argnums=(0, 1))(kernel, x)


def second_reverse_of_third(convolution, kernel, x):
    def scalar(kernel, x):
        return sum(jnp.sum(leaf) for leaf in gradient_of_gradient(convolution, kernel, x))

    return jax.grad(scalar, argnums=(0, 1))(kernel, x)


def train(loop, convolution, kernel, x):
    """Five steps of descent, differentiated by both arguments."""

    def last(kernel, x):
        step = lambda kernel: kernel - 0.01 * jax.grad(partial(loss, convolution))(kernel, x)  # noqa: E731
        if loop == "scan":
            return lax.scan(lambda kernel, _: (step(kernel), None), kernel, None, length=5)[0]
        return lax.fori_loop(0, 5, lambda _, kernel: step(kernel), kernel)

    return jax.jvp(last, (kernel, x), (jnp.cos(kernel), jnp.cos(x)))


def metagradient(convolution, kernel, x):
    return jax.grad(lambda x: jnp.sum(train("scan", convolution, kernel, x)[0]))(x)


def rematerialised(convolution, kernel, x):
    return jax.grad(jax.checkpoint(partial(loss, convolution)), argnums=(0, 1))(kernel, x)


def over_kernels(convolution, kernel, x):
    kernels = jnp.stack([kernel, 2 * kernel, kernel**2], axis=1)
    return jax.vmap(partial(gradient, convolution), (1, None))(kernels, x)


def over_images(convolution, kernel, x):
    return jax.vmap(lambda image: gradient(convolution, kernel, image[None]))(x)


def over_both(convolution, kernel, x):
    many = jnp.stack([kernel, 2 * kernel, kernel**2], axis=2), jnp.stack([x, x**2, -x], axis=3)
    return jax.vmap(partial(gradient, convolution), (2, 3))(*many)


def over_models_and_examples(convolution, kernel, x):
    per_example = jax.vmap(
        lambda kernel, image: gradient(convolution, kernel, image[None]), (None, 0)
    )
    return jax.vmap(per_example, (0, None))(jnp.stack([kernel, 2 * kernel]), x)


def jvp_over_both(convolution, kernel, x):
    return directional(partial(over_both, convolution), 1)(kernel, x)


TRANSFORMATIONS = {
    "grad": gradient,
    "jvp": lambda f, *args: directional(lambda kernel, x: f(x, kernel), 1)(*args),
    "jvp of grad": lambda f, *args: directional(partial(gradient, f), 1)(*args),
    "third order jvp of grad": lambda f, *args: directional(partial(gradient, f), 3)(*args),
    "grad of grad": gradient_of_gradient,
    "grad of grad of grad": second_reverse_of_third,
    "jvp of scan": partial(train, "scan"),
    "jvp of fori_loop": partial(train, "fori_loop"),
    "grad of scan": metagradient,
    "checkpoint": rematerialised,
    "vmap kernels": over_kernels,
    "vmap images": over_images,
    "vmap both": over_both,
    "vmap twice": over_models_and_examples,
    "jvp of vmap both": jvp_over_both,
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_transformations(name):
    x, kernel = operands(image=(5, 4), channels=(2, 3))
    convolutions = [partial(f, strides=(2, 1), padding="SAME") for f in (conv2d, reference)]
    ours, plain = [
        jax.jit(partial(TRANSFORMATIONS[name], convolution))(kernel, x)
        for convolution in convolutions
    ]
    chex.assert_trees_all_close(ours, plain, rtol=1e-10, atol=1e-10)
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(ours))


@pytest.mark.parametrize("batched", list(itertools.product([None, 1], repeat=3))[1:])
def test_vmap_over_any_of_image_kernel_and_cotangent(batched):
    """Every operation with one or two batched operands: each row of its batching rule."""
    x, kernel = operands(image=(5, 4), channels=(2, 3))
    both = (x, kernel, jnp.cos(conv2d(x, kernel)))
    stacks = [
        value if axis is None else jnp.stack([value, value**2, -value], axis)
        for value, axis in zip(both, batched, strict=True)
    ]

    def value_and_gradients(convolution, x, kernel, cotangent):
        y, pullback = jax.vjp(convolution, x, kernel)
        return y, pullback(cotangent)

    ours, plain = [
        jax.jit(jax.vmap(partial(value_and_gradients, convolution), batched))(*stacks)
        for convolution in (conv2d, reference)
    ]
    chex.assert_trees_all_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_batching_rule_of_other_backends(monkeypatch):
    """Off the CPU, two batched operands become one grouped convolution; it runs here as well."""
    x, kernel = operands(image=(5, 4), channels=(2, 3))
    expected = over_both(reference, kernel, x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "scan" not in str(jax.make_jaxpr(partial(over_both, conv2d))(kernel, x))
    chex.assert_trees_all_close(over_both(conv2d, kernel, x), expected, rtol=1e-10)


@pytest.mark.parametrize(
    "operation", [convolution._forward, convolution._input_gradient, convolution._kernel_gradient]
)
def test_lowering_of_other_backends(operation):
    x, kernel = operands()
    geometry = convolution._geometry(x.shape, kernel.shape, (2, 1), ASYMMETRIC)
    y = conv2d(x, kernel, (2, 1), ASYMMETRIC)
    pair = {"_forward": (x, kernel), "_input_gradient": (y, kernel), "_kernel_gradient": (x, y)}
    plain, canonical = [
        operation(convolve, *pair[operation.__name__], geometry)
        for convolve in (convolution._convolve_plain, convolution._convolve_canonical)
    ]
    chex.assert_trees_all_close(plain, canonical, rtol=1e-12)


def test_eager_equals_jit():
    x, kernel = operands()
    chex.assert_trees_all_close(conv2d(x, kernel), jax.jit(conv2d)(x, kernel), rtol=1e-14)


def test_same_call_gives_the_same_bits():
    x, kernel = operands(image=(16, 16), channels=(8, 8), batch=16)
    compiled = jax.jit(partial(gradient, conv2d))
    chex.assert_trees_all_equal(compiled(kernel, x), compiled(kernel, x))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes_are_kept(dtype):
    x, kernel = (array.astype(dtype) for array in operands())
    chex.assert_trees_all_equal_dtypes(gradient(conv2d, kernel, x), (kernel, x))
    assert conv2d(x, kernel.astype(jnp.float64)).dtype == jnp.float64


def test_gradients_are_in_the_form_that_loops_run_fast():
    """The reason for this module: XLA must meet only NHWC, HWIO convolutions."""
    x, kernel = operands()
    compiled = jax.jit(partial(gradient, conv2d)).lower(kernel, x).as_text()
    calls = [line for line in compiled.splitlines() if "stablehlo.convolution" in line]
    assert len(calls) == 3
    assert all("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in call for call in calls)
    assert not any("reverse = [true" in call for call in calls)


def mesh():
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def test_shard_map_sums_the_kernel_gradient():
    x, kernel = operands(batch=2 * jax.device_count())

    def local(kernel, x):
        return jax.grad(lambda kernel: lax.psum(loss(conv2d, kernel, x), "data"))(kernel)

    specs = (PartitionSpec(), PartitionSpec("data"))
    sharded = jax.shard_map(local, mesh=mesh(), in_specs=specs, out_specs=PartitionSpec())
    expected = jax.grad(partial(loss, reference))(kernel, x)
    chex.assert_trees_all_close(jax.jit(sharded)(kernel, x), expected, rtol=1e-12)


def test_sharded_batch_under_jit():
    x, kernel = operands(batch=2 * jax.device_count())
    sharded = jax.device_put(x, NamedSharding(mesh(), PartitionSpec("data")))
    ours = jax.jit(partial(gradient, conv2d))(kernel, sharded)
    chex.assert_trees_all_close(ours, gradient(reference, kernel, x), rtol=1e-12)


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "padding", "word"),
    [
        ((2, 8, 8, 3), (3, 3, 4, 5), "SAME", "channels"),
        ((8, 8, 3), (3, 3, 3, 5), "SAME", "channels"),
        ((2, 8, 8, 3), (3, 3, 3, 5), "FULL", "padding"),
        ((2, 2, 8, 3), (3, 3, 3, 5), "VALID", "enlarge"),
    ],
)
def test_bad_input_says_what_to_do(x_shape, kernel_shape, padding, word):
    with pytest.raises(InputError, match=word):
        conv2d(jnp.ones(x_shape), jnp.ones(kernel_shape), padding=padding)


def test_layer_equals_flax():
    x, _ = operands()
    options = {"kernel_size": (3, 3), "strides": (2, 2), "padding": "SAME"}
    variables = Conv(5, **options).init(jax.random.key(3), x)
    ours = Conv(5, **options).apply(variables, x)
    chex.assert_trees_all_close(ours, nn.Conv(5, **options).apply(variables, x), rtol=1e-12)
