"""Two-dimensional convolution whose gradients stay fast inside `lax.scan` on the CPU.

XLA:CPU reaches its fast convolution only from one form: NHWC input, HWIO kernel, no window
reversal. It rewrites other forms into that one in the entry computation, but not in the body of
a loop, and `jax.grad` of a convolution yields two convolutions of other forms. A training loop
written as `lax.scan` therefore pays 10 to 100 times the price for them. Here both gradients are
*emitted* in the fast form. From plain `lax.conv_general_dilated` to this module, milliseconds per
call inside `lax.scan`, 2 cores, AMD EPYC without AVX-512, float32, batch 64, 3x3 kernel, SAME
padding:

    ============================ ============= ================ =================
    shapes                       forward       input gradient   kernel gradient
    ============================ ============= ================ =================
    16x16, 16 to 32 channels     0.65 to 0.64  23.2 to 0.74     118.8 to 1.45
    the same, strides 2          0.22 to 0.22  3.96 to 0.41     32.0 to 0.43
    32x32, 3 to 16 channels      1.10 to 1.12  6.60 to 2.10     46.9 to 0.73
    8x8, 128 to 128 channels     2.57 to 2.56  23.7 to 2.57     1022 to 3.62
    ============================ ============= ================ =================

Two more remedies for the CPU, each in a function of its own with its reason, measured on 2 cores
with AVX-512: `_convolve_folded` (32x32, 3 to 16 channels: 1.35 to 0.76 ms; 16 to 16: 1.72 to 1.38)
and `_input_gradient_by_phases` (stride 2 to 16x16x128: 27.5 to 14.7 ms). `unroll.compiler` chooses
between the two convolutions that XLA has.

Design. A convolution `y = F(x, k)` is bilinear, and so are its two gradients, the input gradient
`X(dy, k)` and the kernel gradient `K(x, dy)`. The three are the partial transposes of one
trilinear form `sum(y * F(x, k))`, so the family is closed: transposing any member in any argument
gives another member. Each is one primitive with a bilinear derivative rule, which makes every
order and every mix of forward and reverse differentiation end in one of three fast operations:

    ============ ======================== ======================
    operation    transposed in the first  in the second argument
    ============ ======================== ======================
    `F(x, k)`    `X(ct, k)`               `K(x, ct)`
    `X(dy, k)`   `F(ct, k)`               `K(ct, dy)`
    `K(x, dy)`   `X(dy, ct)`              `F(x, ct)`
    ============ ======================== ======================

Rejected: `jax.custom_vjp` forbids a plain `jax.jvp` of the network and leaves the second
transposition to XLA; `jax.custom_derivatives.linear_call` has no batching rule and fails under
`jvp` of `grad`. Patches and one matmul per kernel offset were measured too and are no faster.

`jax.vmap` folds the new axis into the batch or channels where one argument is batched. Where both
are, it runs `lax.map` on the CPU and XLA's grouped convolution elsewhere; the choice follows
`jax.default_backend()` when the program is traced. On the first shapes above, inside `lax.scan`,
64 per-example kernel gradients take 2.1 ms instead of 85, and the gradients of 4 models 10 ms
instead of 565.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from unroll.errors import InputError

Padding = str | Sequence[tuple[int, int]]
Pairs = tuple[tuple[int, int], tuple[int, int]]


class _Geometry(NamedTuple):
    """What fixes the three operations besides their operands; static and hashable."""

    input_size: tuple[int, int]
    kernel_size: tuple[int, int]
    strides: tuple[int, int]
    padding: Pairs


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    strides: int | tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
) -> jax.Array:
    """Convolves a batch of images, with gradients that are fast inside `lax.scan`.

    It equals `lax.conv_general_dilated` with dimension numbers NHWC, HWIO, NHWC under `grad`,
    `jvp`, any nesting of the two, `vmap`, `scan`, `jax.checkpoint` and `shard_map`.

    Example:
        >>> images, kernel = jnp.ones((8, 32, 32, 3)), jnp.ones((3, 3, 3, 16))
        >>> conv2d(images, kernel, strides=(2, 2)).shape
        (8, 16, 16, 16)

    Args:
        x: images, `[batch, height, width, channels_in]`, of a floating dtype.
        kernel: `[kernel_height, kernel_width, channels_in, channels_out]`.
        strides: one step for both directions, or (vertical, horizontal).
        padding: "SAME", "VALID" or ((top, bottom), (left, right)).

    Returns:
        `[batch, height_out, width_out, channels_out]`, in the common dtype of both operands.

    Raises:
        InputError: if shapes or padding do not fit together.
    """
    dtype = jnp.result_type(x, kernel)
    x, kernel = jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)
    geometry = _geometry(x.shape, kernel.shape, strides, padding)
    if geometry.kernel_size == (1, 1) and geometry.padding == ((0, 0), (0, 0)):
        return _pointwise(x, kernel, geometry.strides)
    return forward_p.bind(*_vary_alike(x, kernel), geometry=geometry)


def _geometry(
    x_shape: tuple[int, ...],
    kernel_shape: tuple[int, ...],
    strides: int | tuple[int, int],
    padding: Padding,
) -> _Geometry:
    """Checks the shapes and resolves strides and padding to pairs of integers."""
    if len(x_shape) != 4 or len(kernel_shape) != 4 or x_shape[3] != kernel_shape[2]:
        raise InputError(
            "conv2d: pass x as [batch, height, width, channels] and kernel as "
            f"[height, width, channels, features]; got {x_shape} and {kernel_shape}"
        )
    input_size, kernel_size = x_shape[1:3], kernel_shape[:2]
    strides = (strides, strides) if isinstance(strides, int) else tuple(strides)
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise InputError(f'conv2d: padding is "SAME", "VALID" or pairs; got "{padding}"')
        padding = lax.padtype_to_pads(input_size, kernel_size, strides, padding)
    pairs = tuple((int(low), int(high)) for low, high in padding)
    padded = tuple(size + sum(pair) for size, pair in zip(input_size, pairs, strict=True))
    if padded[0] < kernel_size[0] or padded[1] < kernel_size[1]:
        raise InputError(
            f"conv2d: enlarge the image or its padding; the padded size {padded} is smaller than "
            f"the kernel {kernel_size}"
        )
    return _Geometry(input_size, kernel_size, strides, pairs)


def _pointwise(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    """A 1x1 convolution as a slice and one matrix product, which loops run at full speed."""
    x = lax.slice(x, (0, 0, 0, 0), x.shape, (1, *strides, 1))
    return (x.reshape(-1, x.shape[3]) @ kernel[0, 0]).reshape(*x.shape[:3], -1)


def _vary_alike(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inside `shard_map`, marks both operands as varying over the same mesh axes.

    Arithmetic does that by itself, so that a replicated kernel gets the sum of the gradients of
    all shards; a new primitive must ask for it. Adding -0.0 leaves every value as it is.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return x, kernel
    return (
        x + lax.full_like(kernel, -0.0, shape=()),
        kernel + lax.full_like(x, -0.0, shape=()),
    )


_CANONICAL = ("NHWC", "HWIO", "NHWC")

# The three operations, each as one convolution. `convolve` decides how the dimension numbers are
# honoured: `_convolve_plain` or `_convolve_canonical`.

Convolve = Callable[..., jax.Array]


def _forward(convolve: Convolve, x: jax.Array, kernel: jax.Array, geometry: _Geometry):
    """F(x, k): `[B, H, W, I]` and `[h, w, I, O]` to `[B, P, Q, O]`."""
    return convolve(
        x,
        kernel,
        ("NHWC", "HWIO", "NHWC"),
        window_strides=geometry.strides,
        padding=geometry.padding,
    )


def _input_gradient(convolve: Convolve, dy: jax.Array, kernel: jax.Array, geometry: _Geometry):
    """X(dy, k): `[B, P, Q, O]` and `[h, w, I, O]` to `[B, H, W, I]`."""
    if convolve is _convolve_canonical and _phases_pay(dy, geometry):
        return _input_gradient_by_phases(convolve, dy, kernel, geometry)
    return convolve(
        dy,
        lax.rev(kernel, (0, 1)),
        ("NHWC", "HWOI", "NHWC"),
        window_strides=(1, 1),
        padding=[
            (size - 1 - low, length - extent + low)
            for length, size, extent, low in _extents(dy.shape[1:3], geometry)
        ],
        lhs_dilation=geometry.strides,
    )


def _phases_pay(dy: jax.Array, geometry: _Geometry) -> bool:
    """Whether a dilated convolution, which XLA:CPU gathers zero by zero, is the slower one."""
    return geometry.strides != (1, 1) and dy.shape[1] * dy.shape[2] >= 256


def _input_gradient_by_phases(
    convolve: Convolve, dy: jax.Array, kernel: jax.Array, geometry: _Geometry
) -> jax.Array:
    """X(dy, k) without dilation: pixels at each offset within a stride are channels of one result.

    Input row `s m + r - low` meets kernel rows `r + s t` with the output rows `m - t`. So every
    offset r is a convolution of stride 1 with every s-th row of the kernel; all offsets share the
    images and make one convolution, whose channels are then spread over the pixels.
    """
    batch, rows, columns, features = dy.shape
    (down, right), channels = geometry.strides, kernel.shape[2]
    tall, wide = (-(-n // s) for n, s in zip(geometry.kernel_size, geometry.strides, strict=True))
    margins = (
        (0, tall * down - kernel.shape[0]),
        (0, wide * right - kernel.shape[1]),
        (0, 0),
        (0, 0),
    )
    phases = jnp.pad(kernel, margins).reshape(tall, down, wide, right, channels, features)
    phases = lax.rev(phases, (0, 2)).transpose(0, 2, 5, 1, 3, 4)
    y = convolve(
        dy,
        phases.reshape(tall, wide, features, down * right * channels),
        _CANONICAL,
        window_strides=(1, 1),
        padding=((tall - 1, tall - 1), (wide - 1, wide - 1)),
    )
    rows, columns = rows + tall - 1, columns + wide - 1
    y = y.reshape(batch, rows, columns, down, right, channels).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(batch, rows * down, columns * right, channels)
    cuts = [
        (-low, low + length - total, 0)
        for length, (low, _), total in zip(
            geometry.input_size, geometry.padding, y.shape[1:3], strict=True
        )
    ]
    return lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), *cuts, (0, 0, 0)])


def _kernel_gradient(convolve: Convolve, x: jax.Array, dy: jax.Array, geometry: _Geometry):
    """K(x, dy): `[B, H, W, I]` and `[B, P, Q, O]` to `[h, w, I, O]`."""
    return convolve(
        x,
        dy,
        ("CHWN", "IHWO", "HWNC"),
        window_strides=(1, 1),
        padding=[
            (low, size - 1 + extent - length - low)
            for length, size, extent, low in _extents(dy.shape[1:3], geometry)
        ],
        rhs_dilation=geometry.strides,
    )


def _extents(output_size: tuple[int, ...], geometry: _Geometry) -> list[tuple[int, ...]]:
    """Per direction: input length, kernel size, extent of the strided output, low padding."""
    return [
        (length, size, (output - 1) * stride + 1, low)
        for length, size, output, stride, (low, _) in zip(
            geometry.input_size,
            geometry.kernel_size,
            output_size,
            geometry.strides,
            geometry.padding,
            strict=True,
        )
    ]


def _convolve_plain(lhs, rhs, dimension_numbers, **options) -> jax.Array:
    """Leaves the dimension numbers to XLA, which is best where it has a library for each form."""
    return lax.conv_general_dilated(lhs, rhs, dimension_numbers=dimension_numbers, **options)


def _convolve_canonical(lhs, rhs, dimension_numbers, **options) -> jax.Array:
    """Transposes the operands, so that XLA:CPU sees its one fast form even inside a loop."""
    lhs_names, rhs_names, out_names = dimension_numbers
    lhs = lhs.transpose([lhs_names.index(name) for name in _CANONICAL[0]])
    rhs = rhs.transpose([rhs_names.index(name) for name in _CANONICAL[1]])
    out = _convolve_folded(lhs, rhs, **options)
    return out.transpose([_CANONICAL[2].index(name) for name in out_names])


def _convolve_folded(x, kernel, **options) -> jax.Array:
    """Computes neighbouring outputs of a narrow convolution together, as channels.

    XLA:CPU gathers patches and multiplies them with the kernel. With few channels gathering is
    what costs; f outputs of a row share a patch that is f - 1 columns wider, and the kernel, laid
    out f times side by side, meets it in one product of f times the width.
    """
    count = _neighbours(x, kernel, **options)
    if count == 1:
        return _convolve_plain(x, kernel, _CANONICAL, **options)
    shifted = [
        jnp.pad(kernel, ((0, 0), (index, count - 1 - index), (0, 0), (0, 0)))
        for index in range(count)
    ]
    options |= {"window_strides": (options["window_strides"][0], count)}
    y = _convolve_plain(x, jnp.concatenate(shifted, axis=-1), _CANONICAL, **options)
    return y.reshape(*y.shape[:2], y.shape[2] * count, -1)


def _neighbours(x, kernel, *, window_strides, padding, lhs_dilation=(1, 1), rhs_dilation=(1, 1)):
    """How many outputs of a row to compute together; what was measured to pay."""
    width = x.shape[2] + sum(padding[1]) - kernel.shape[1] + 1
    wide = kernel.shape[1] > 8  # the kernel gradient, whose "kernel" is an image
    if wide or window_strides[1] != 1 or lhs_dilation != (1, 1) or rhs_dilation != (1, 1):
        return 1
    channels, features = kernel.shape[2:]
    counts = (4, 2) if channels <= 4 else (2,) if max(channels, features) <= 16 else ()
    return next((n for n in counts if width % n == 0 and n * features <= 64), 1)


# From here on: the operations as primitives.


def _primitive(name: str, operation: Callable[..., jax.Array]) -> Primitive:
    """A primitive that lowers to the canonical form on the CPU and to the plain one elsewhere."""
    primitive = Primitive(f"unroll_convolution_{name}")
    plain = partial(operation, _convolve_plain)
    canonical = partial(operation, _convolve_canonical)

    @primitive.def_abstract_eval
    def _(first, second, *, geometry):
        # Asking lax for the result type keeps dtype, sharding and mesh axes right.
        return jax.make_jaxpr(partial(plain, geometry=geometry))(first, second).out_avals[0]

    jitted = jax.jit(primitive.bind, static_argnames="geometry")
    primitive.def_impl(lambda first, second, *, geometry: jitted(first, second, geometry=geometry))
    mlir.register_lowering(primitive, mlir.lower_fun(plain, multiple_results=False))
    mlir.register_lowering(
        primitive, mlir.lower_fun(canonical, multiple_results=False), platform="cpu"
    )
    return primitive


forward_p = _primitive("forward", _forward)
input_gradient_p = _primitive("input_gradient", _input_gradient)
kernel_gradient_p = _primitive("kernel_gradient", _kernel_gradient)

# Rules get (cotangent, first operand, second operand); the operand asked for is a placeholder.
ad.defbilinear(
    forward_p,
    lambda ct, x, kernel, **kw: input_gradient_p.bind(ct, kernel, **kw),
    lambda ct, x, kernel, **kw: kernel_gradient_p.bind(x, ct, **kw),
)
ad.defbilinear(
    input_gradient_p,
    lambda ct, dy, kernel, **kw: forward_p.bind(ct, kernel, **kw),
    lambda ct, dy, kernel, **kw: kernel_gradient_p.bind(ct, dy, **kw),
)
ad.defbilinear(
    kernel_gradient_p,
    lambda ct, x, dy, **kw: input_gradient_p.bind(dy, ct, **kw),
    lambda ct, x, dy, **kw: forward_p.bind(x, ct, **kw),
)


def _batching_rule(primitive: Primitive, operation, folds, operands, axes, *, geometry):
    """Batches one operation.

    Args:
        primitive: the operation as a primitive.
        operation: the same operation as a function of `convolve` and operands.
        folds: per operand, (its axis into which a new axis can be folded while the other operand
            is shared, the axis of the result that then carries it).
        operands: both operands, of which one or two have one more axis.
        axes: where that axis is, or None.
        geometry: static description.

    Returns:
        the result and the position of its new axis.
    """
    bind = partial(primitive.bind, geometry=geometry)
    if None in axes:
        batched = 0 if axes[1] is None else 1
        into, out_of = folds[batched]
        count = operands[batched].shape[axes[batched]]
        folded = _fold(operands[batched], axes[batched], into)
        result = bind(folded, operands[1]) if batched == 0 else bind(operands[0], folded)
        shape = result.shape[:out_of] + (count, -1) + result.shape[out_of + 1 :]
        return result.reshape(shape), out_of
    operands = [
        jnp.moveaxis(operand, axis, 0) for operand, axis in zip(operands, axes, strict=True)
    ]
    # A vmapped convolution is a grouped one, several times slower than a loop on the CPU only.
    if jax.default_backend() == "cpu":
        return lax.map(lambda pair: bind(*pair), tuple(operands)), 0
    return jax.vmap(partial(operation, _convolve_plain, geometry=geometry))(*operands), 0


def _fold(array: jax.Array, axis: int, into: int) -> jax.Array:
    """Merges `axis` with the axis that is number `into` among the others, as its slow part."""
    array = jnp.moveaxis(array, axis, into)
    return array.reshape(*array.shape[:into], -1, *array.shape[into + 2 :])


for _p, _operation, _folds in (
    (forward_p, _forward, ((0, 0), (3, 3))),
    (input_gradient_p, _input_gradient, ((0, 0), (2, 3))),
    (kernel_gradient_p, _kernel_gradient, ((3, 2), (3, 3))),
):
    batching.primitive_batchers[_p] = partial(_batching_rule, _p, _operation, _folds)


class Conv(nn.Module):
    """A convolution layer on `conv2d`, with the parameters of `flax.linen.Conv`.

    Example:
        >>> layer = Conv(16, kernel_size=(3, 3))
        >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)))

    Attributes:
        features: number of output channels.
        kernel_size: (height, width).
        strides: (vertical, horizontal).
        padding: "SAME", "VALID" or ((top, bottom), (left, right)).
        use_bias: adds one learned number per output channel.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Any = "SAME"
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, height', width', features]`."""
        kernel_shape = (*self.kernel_size, x.shape[-1], self.features)
        initializer = nn.initializers.lecun_normal()
        kernel = self.param("kernel", initializer, kernel_shape, jnp.float32)
        x = conv2d(x, kernel, self.strides, self.padding)
        if self.use_bias:
            initializer = nn.initializers.zeros_init()
            x = x + self.param("bias", initializer, (self.features,), jnp.float32)
        return x
