"""Norms of per-example gradients: how hard each example pulls at the weights.

    norm[n] = || grad_w loss(w; example n) ||

the GraNd score of *Deep Learning on a Data Diet* (arXiv 2107.07075, definition 2.1, at one state;
the paper averages it over several runs early in training).

Design: only the kernels of layers need a gradient per example in memory, and a linear layer gives
the norm without it. For one example let a layer map its input rows `a [P, I]` to `a W + b`, and let
`d [P, O]` be the cotangent of its output. The gradient of W is `a^T d`, and

    || a^T d ||^2  =  || a ||^2 || d ||^2            P = 1: a dense layer
                   =  < a a^T, d d^T >               P (I + O) < I O: late layers of deep networks
                   =  the norm of the product        otherwise

where the rows of a convolution are its patches. All other parameters (biases, normalisations,
layers of a kind not known here) are differentiated per example, `vmap` of `grad`, in the same
backward pass. A kernel is taken out of that general form only if its layer is of a known kind, is
called once, and the kernel reaches the loss in no other way, which is read off the traced program;
so tied and shared weights are right too.

Milliseconds for 64 examples, float32, 2 cores, AMD EPYC, medians of 7 turns in one process, every
form in batches of 32 inside one compiled loop:

    ================================= ========= ============ ============ ====================
    network                           this form vmap of grad loop of grad gradient of the sum
    ================================= ========= ============ ============ ====================
    CNN 16-32-32, 32x32x3             8.5       13           14.5         6.8
    MLP 64-128-128-10                 0.17      0.54         0.87         0.09
    ResNet-18, width 16, 32x32x3      94        217          196          56
    ================================= ========= ============ ============ ====================

`python benchmarks/compare.py --rows gradient_norms` compares the first line with `torch.func`. The
loop over batches is compiled, since a call for each batch allocates its buffers anew: 11 instead of
9 ms for this CNN. One loop over examples for the norms of all layers is no faster than one for each
layer.

Rejected: `vmap` of `grad` for all parameters, a loop of `grad` over examples, and one grouped
convolution for the kernels of all examples; see the table.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jax.interpreters import partial_eval

from unroll.checks import whole_number
from unroll.data.dataset import Dataset
from unroll.data.ids import IdsLike, as_ids
from unroll.errors import DivergenceError, InputError
from unroll.models.convolution import Conv
from unroll.training.loop import device_examples
from unroll.training.run import Progress
from unroll.training.spec import TrainSpec
from unroll.training.step import Examples
from unroll.types import Params, PyTree, TrainState

Path = tuple[str, ...]
_INPUTS = "unroll_layer_inputs"
_BATCHES = 32  # in one call of the compiled program, between two reports of progress


def gradient_norms(
    spec: TrainSpec,
    state: TrainState,
    dataset: Dataset,
    ids: IdsLike | None = None,
    *,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Norm of the gradient of each example's loss in all parameters (GraNd, arXiv 2107.07075).

    In evaluation mode: no augmentation, no dropout, batch normalisation by its running averages.
    The loss is the objective's loss per example, its penalties per example included; penalties of
    the parameters alone belong to no example and are left out.

    Example:
        >>> import unroll
        >>> train, _ = unroll.data.load("digits")
        >>> spec = unroll.TrainSpec(unroll.models.build("mlp", num_classes=10))
        >>> schedule = unroll.data.make_schedule(seed=0, ids=len(train), batch_size=32, epochs=1)
        >>> run = unroll.train(spec, train, schedule)
        >>> gradient_norms(spec, run.state, train, ids=[3, 1, 4]).shape
        (3,)

    Args:
      spec: how the model was trained.
      state: where the gradients are taken; parameters and the model's other variables are read.
      dataset: where the examples are from.
      ids: the examples, all by default; repeats are allowed.
      batch_size: examples at a time; memory grows with it, the result does not depend on it. By
        default 32 on the CPU, where a batch then stays in the cache, and 256 elsewhere (not
        measured).
      progress: called with (examples done, examples in all).

    Returns:
      `[n]` norms in the order of `ids`, in the precision of the parameters, float32 at least.

    Raises:
      InputError: if an id is out of range, or raw images come without `preprocess`.
      DivergenceError: if a norm is not finite.
    """
    ids = np.arange(len(dataset)) if ids is None else as_ids(ids, len(dataset))
    if dataset.inputs.dtype == np.uint8 and spec.preprocess is None:
        raise InputError(
            f"{dataset.name} holds uint8 images; set TrainSpec(preprocess=Normalize(mean, std))"
        )
    size = _default_batch() if batch_size is None else whole_number("batch_size", batch_size)
    params, model_state = jax.device_put((state.params, state.model_state))
    examples = device_examples(dataset)
    parts = []
    for begin in range(0, len(ids), _BATCHES * size):
        part = ids[begin : begin + _BATCHES * size]
        slots = np.zeros(_BATCHES * size, np.int32)
        slots[: len(part)] = part
        batches = -(-len(part) // size)
        norms = _norms(spec, params, model_state, examples, slots.reshape(-1, size), batches)
        parts.append(np.asarray(norms).reshape(-1)[: len(part)])
        if progress is not None:
            progress(begin + len(part), len(ids))
    result = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if not np.isfinite(result).all():
        bad = int(ids[np.argmin(np.isfinite(result))])
        raise DivergenceError(
            f"the loss gradient of example {bad} is not finite; measure where the loss is finite"
        )
    return result


def _default_batch() -> int:
    return 32 if jax.default_backend() == "cpu" else 256


@jax.jit(static_argnames=("spec",))
def _norms(
    spec: TrainSpec,
    params: Params,
    model_state: PyTree,
    examples: Examples,
    slots: jax.Array,
    batches: jax.Array,
) -> jax.Array:
    """Norms of the first `batches` rows of example ids, `[_BATCHES, B]`.

    One program for many batches: their buffers are allocated once, which for small networks costs
    as much as the arithmetic.
    """
    one = jax.eval_shape(lambda: _batch_norms(spec, params, model_state, examples, slots[0]))

    def body(row, norms):
        return norms.at[row].set(_batch_norms(spec, params, model_state, examples, slots[row]))

    return lax.fori_loop(0, batches, body, jnp.zeros(slots.shape, one.dtype))


def _batch_norms(
    spec: TrainSpec, params: Params, model_state: PyTree, examples: Examples, ids: jax.Array
) -> jax.Array:
    """`[B]` gradient norms of a batch of ids."""
    inputs, labels = examples.inputs[ids], examples.labels[ids]
    if spec.preprocess is not None:
        inputs = spec.preprocess(inputs)
    layers = _layers(spec, params, model_state, inputs[:1], labels[:1])
    kernels, others = _split(params, layers)
    shifts = {path: jnp.zeros(layer.shape, layer.dtype) for path, layer in layers.items()}

    def loss(others, shifts, example, label):
        outputs = functools.partial(_shifted, shifts)
        params = unflatten_dict({**others, **kernels})
        return _loss(spec, params, model_state, outputs, example[None], label[None])

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    by_example = jax.vmap(gradient, in_axes=(None, None, 0, 0))
    (of_others, cotangents), given = by_example(others, shifts, inputs, labels)
    dtype = jnp.promote_types(jnp.result_type(*jax.tree.leaves(params)), jnp.float32)
    squares = jnp.zeros(len(labels), dtype)

    def precise(array):
        return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    for leaf in jax.tree.leaves(of_others):
        squares = squares + _square_per_example(precise(leaf))
    for path, layer in layers.items():
        # Axis 1 is the batch of one in which each example was evaluated.
        pair = (array[path][:, 0] for array in (given, cotangents))
        squares = squares + layer.squares(*map(precise, pair))
    return jnp.sqrt(squares)


def _square_per_example(array: jax.Array) -> jax.Array:
    return jnp.square(array).sum(axis=tuple(range(1, array.ndim)))


# Layers: which kernels are taken out of the general form, and their norms.


class _Layer(NamedTuple):
    """A layer of a known kind: its kernel's path, its output's form, and its norms.

    `squares` maps inputs `[B, ...]` and output cotangents `[B, ...]` to squared norms `[B]`.
    """

    kernel: Path
    shape: tuple[int, ...]
    dtype: Any
    squares: Callable[[jax.Array, jax.Array], jax.Array]


def _known(module: nn.Module) -> tuple[str, Callable] | None:
    """Name of the kernel and rule for its norms, for the kinds of layer that have one."""
    # Subclasses may compute something else, and so do the options that are excluded here.
    if type(module) is nn.Dense:
        plain = module.dtype is None and module.dot_general is None
        return ("kernel", _dense_squares) if plain and module.dot_general_cls is None else None
    if type(module) is nn.Embed:
        return ("embedding", _embedding_squares) if module.dtype is None else None
    if type(module) is Conv:
        rule = functools.partial(
            _convolution_squares,
            kernel_size=module.kernel_size,
            strides=module.strides,
            padding=module.padding,
        )
        return "kernel", rule
    return None


def _layers(
    spec: TrainSpec, params: Params, model_state: PyTree, inputs: jax.Array, labels: jax.Array
) -> dict[Path, _Layer]:
    """The layers whose kernels act on the loss through their own output only, by path."""
    calls: dict[Path, list[_Layer]] = {}

    def note(module, call):
        output = call()
        name, rule = _known(module)
        kernel = (*module.path, name)
        calls.setdefault(module.path, []).append(_Layer(kernel, output.shape, output.dtype, rule))
        return output

    given = jax.eval_shape(
        lambda *arguments: _loss(spec, arguments[0], model_state, note, *arguments[1:])[1],
        params,
        inputs,
        labels,
    )
    once = {
        path: found[0]
        for path, found in calls.items()
        if len(found) == 1 and path in given and _is_batch_of_one(given[path], found[0])
    }
    kernels, others = _split(params, once)

    def beside(kernels):
        """Loss and inputs of all layers where the layers' own outputs are cut off."""

        def cut(module, call):
            if module.path not in once:
                return call()
            layer = once[module.path]
            return jnp.ones(layer.shape, layer.dtype)

        whole = unflatten_dict({**others, **kernels})
        return _loss(spec, whole, model_state, cut, inputs, labels)

    program = jax.make_jaxpr(beside)(kernels).jaxpr
    _, reached = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    elsewhere = {path for path, used in zip(sorted(kernels), reached, strict=True) if used}
    return {path: layer for path, layer in once.items() if layer.kernel not in elsewhere}


def _is_batch_of_one(inputs: jax.ShapeDtypeStruct, layer: _Layer) -> bool:
    """Whether the first axis is still that of examples, and not merged with another one."""
    return len(layer.shape) > 1 and inputs.shape[0] == layer.shape[0] == 1


def _split(
    params: Params, layers: Mapping[Path, _Layer]
) -> tuple[dict[Path, jax.Array], dict[Path, jax.Array]]:
    """Kernels of the given layers and all other parameters, both by path."""
    flat = flatten_dict(params)
    kernels = {layer.kernel: flat.pop(layer.kernel) for layer in layers.values()}
    return kernels, flat


def _loss(spec, params, model_state, intercept, inputs, labels):
    """Loss of a batch of one, and the inputs of its known layers by path.

    `intercept(module, call)` stands in for every call of a known layer.
    """

    def interceptor(call, arguments, options, context):
        module = context.module
        if context.method_name != "__call__" or options or _known(module) is None:
            return call(*arguments, **options)
        # Through a collection, which flax carries out of lifted transformations such as remat.
        module.sow(_INPUTS, "given", arguments[0])
        return intercept(module, lambda: call(*arguments))

    accepts = "train" in inspect.signature(type(spec.model).__call__).parameters
    with nn.intercept_methods(interceptor):
        logits, kept = spec.model.apply(
            {"params": params, **model_state},
            inputs,
            mutable=[_INPUTS],
            **({"train": False} if accepts else {}),
        )
    loss = spec.objective.example_losses(logits, labels)[0]
    given = flatten_dict(kept.get(_INPUTS, {}))
    return loss, {path[:-1]: values[0] for path, values in given.items() if len(values) == 1}


def _shifted(shifts: Mapping[Path, jax.Array], module: nn.Module, call: Callable) -> jax.Array:
    output = call()
    return output + shifts[module.path] if module.path in shifts else output


def _dense_squares(inputs: jax.Array, cotangents: jax.Array) -> jax.Array:
    """`[B, ..., I]` and `[B, ..., O]` to `[B]`."""
    if inputs.ndim == 2:
        return _square_per_example(inputs) * _square_per_example(cotangents)
    return _each(_product_square, inputs, cotangents)


def _embedding_squares(tokens: jax.Array, cotangents: jax.Array) -> jax.Array:
    """`[B, ...]` tokens and `[B, ..., channels]`: rows of the table are one-hot inputs."""

    def square(tokens, cotangent):
        tokens, cotangent = tokens.reshape(-1), _rows(cotangent)
        same = tokens[:, None] == tokens[None, :]
        return jnp.where(same, cotangent @ cotangent.T, 0).sum()

    return _each(square, tokens, cotangents)


def _convolution_squares(
    images: jax.Array, cotangents: jax.Array, *, kernel_size, strides, padding
) -> jax.Array:
    """`[B, H, W, I]` and `[B, P, Q, O]` to `[B]`."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], kernel_size, strides, padding)

    def square(image, cotangent):
        patches = _patches(image, cotangent.shape[:2], kernel_size, strides, padding)
        return _product_square(patches, cotangent)

    return _each(square, images, cotangents)


def _patches(image, output_size, kernel_size, strides, padding) -> jax.Array:
    """`[H, W, I]` to `[P, Q, height * width * I]`, the inputs of each output."""
    padded = jnp.pad(image, (*padding, (0, 0)))
    ends = [(size - 1) * stride + 1 for size, stride in zip(output_size, strides, strict=True)]
    shifted = [
        lax.slice(padded, (i, j, 0), (i + ends[0], j + ends[1], image.shape[2]), (*strides, 1))
        for i in range(kernel_size[0])
        for j in range(kernel_size[1])
    ]
    return jnp.concatenate(shifted, axis=2)


def _product_square(inputs: jax.Array, cotangent: jax.Array) -> jax.Array:
    """`|| a^T d ||^2` of one example by the cheaper of the two forms in the module docstring."""
    inputs, cotangent = _rows(inputs), _rows(cotangent)
    rows, wide, high = len(inputs), inputs.shape[1], cotangent.shape[1]
    if rows * (wide + high) < wide * high:
        return jnp.vdot(inputs @ inputs.T, cotangent @ cotangent.T)
    product = inputs.T @ cotangent
    return jnp.vdot(product, product)


def _rows(array: jax.Array) -> jax.Array:
    return array.reshape(-1, array.shape[-1])


def _each(square: Callable, inputs: jax.Array, cotangents: jax.Array) -> jax.Array:
    """Applies a rule to each example: in turn on the CPU, where what one needs stays in cache."""
    if jax.default_backend() == "cpu":
        return lax.map(lambda pair: square(*pair), (inputs, cotangents))
    return jax.vmap(square)(inputs, cotangents)
