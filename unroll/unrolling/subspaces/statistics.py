"""Second moments of the inputs of every layer, streamed over a data set, added and subtracted.

    G_l = sum_n sum_rows x x^T     over the examples n and the rows (patches) of each in layer l

Memory on the host: 8 d^2 bytes for a layer of d inputs (512 MiB for 8192). Above `max_inputs` the
layer is sketched: G Omega with a fixed d x r test matrix is kept instead, 8 d r bytes, and as much
again for Omega while it is used. Both are linear in G, so `minus` is exact in either form.

Design: one product per batch on the device, in the model's precision, added up in float64 on the
host: the terms are rounded to 6e-8 of a batch's moment, their sum not at all. Batches go to the
devices in turn and are added in their own order, so the bits do not depend on how many devices
there are. Rejected: one sum on the device in float32, which loses what a small forget set adds, and
a mesh with an all-reduce, whose order of addition depends on the mesh.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from unroll import tree
from unroll.checks import whole_number
from unroll.data.dataset import Dataset
from unroll.errors import InputError
from unroll.training.projection import parameter_paths
from unroll.training.spec import TrainSpec, description_hash
from unroll.training.timing import Stopwatch
from unroll.types import Params, PyTree
from unroll.unrolling.subspaces.inputs import layer_rows
from unroll.unrolling.subspaces.spectrum import Spectrum, sketched_spectrum, spectrum


@dataclasses.dataclass(frozen=True)
class LayerOptions:
    """What is kept of the layers' inputs.

    Attributes:
      bias: `frozen`, or `moves`: a 1 is appended to the inputs of layers with a bias, which then
        may move in the complement like any other row of the kernel.
      max_inputs: layers with more inputs than this are sketched.
      sketch_rank: columns r of the test matrix of a sketched layer.

    Raises:
      InputError: on another value of `bias`, or sizes below 1.
    """

    bias: Literal["frozen", "moves"] = "frozen"
    max_inputs: int = 4096
    sketch_rank: int = 512

    def __post_init__(self):
        if self.bias not in ("frozen", "moves"):
            raise InputError(f"bias must be 'frozen' or 'moves'; got {self.bias!r}")
        whole_number("max_inputs", self.max_inputs)
        whole_number("sketch_rank", self.sketch_rank)

    def columns(self, inputs: int) -> int:
        """Columns that are kept of the moment of a layer of so many inputs."""
        return inputs if inputs <= self.max_inputs else min(self.sketch_rank, inputs)


DEFAULT_OPTIONS = LayerOptions()


@dataclasses.dataclass(frozen=True, eq=False)
class LayerStatistic:
    """What is known of one layer's inputs.

    Attributes:
      products: float64, the second moment `[d, d]`, or its product with `sketch_matrix`, `[d, r]`.
      trace: float64 scalar array, trace of G.
    """

    products: np.ndarray
    trace: np.ndarray

    @property
    def sketched(self) -> bool:
        """Whether only a product of G is kept."""
        return self.products.shape[1] < self.products.shape[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Second moments of all captured layers over some examples.

    Attributes:
      layers: by path in the parameters, for example `head/dense`.
      options: what was kept.
      model: hash of the parameters, the other collections and the preprocessing whose features
        these are; of the first one, where moments of several were subtracted.
      drifted: whether moments of another model's features were subtracted.
      examples: number of examples.
      example_gradients: what it cost, see `cost_in_gradients`.
      seconds: time without compilation.
    """

    layers: Mapping[str, LayerStatistic]
    options: LayerOptions
    model: str
    drifted: bool
    examples: int
    example_gradients: float
    seconds: float

    @property
    def nbytes(self) -> int:
        """Bytes of all moments."""
        return sum(layer.products.nbytes for layer in self.layers.values())

    def minus(self, other: Statistics, *, allow_drift: bool = False) -> Statistics:
        """Moments of the examples that are here and not in `other`: G - G'.

        Exact where both are features of the same model. Else the difference is no second moment:
        it has negative eigenvalues, whose mass `spectra` reports as `clipped`.

        Raises:
          InputError: if the two keep different things, or belong to different models and
            `allow_drift` is not set.
        """
        if self.options != other.options or list(self.layers) != list(other.layers):
            raise InputError(
                "the two statistics are of other layers or options; compute both alike"
            )
        drifted = self.drifted or other.drifted or self.model != other.model
        if drifted and not allow_drift:
            raise InputError(
                "the two statistics are features of different models; recompute the first one, or "
                "set allow_drift=True and mind the clipped mass"
            )
        layers = {
            path: LayerStatistic(
                mine.products - other.layers[path].products, mine.trace - other.layers[path].trace
            )
            for path, mine in self.layers.items()
        }
        return dataclasses.replace(
            self, layers=layers, drifted=drifted, examples=self.examples - other.examples
        )

    def spectra(self) -> dict[str, Spectrum]:
        """Spectrum of each layer, by path."""
        return {
            path: sketched_spectrum(
                layer.products, sketch_matrix(path, *layer.products.shape), float(layer.trace)
            )
            if layer.sketched
            else spectrum(layer.products)
            for path, layer in self.layers.items()
        }


def model_hash(spec: TrainSpec, params: Params, model_state: PyTree) -> str:
    """Hash of what the features of a model depend on: parameters, collections, preprocessing."""
    description = {
        "variables": tree.content_hash({"params": params, "model_state": model_state}),
        "model": spec.describe()["model"],
        "preprocess": spec.describe()["preprocess"],
    }
    return description_hash(description)


def sketch_matrix(path: str, inputs: int, columns: int) -> np.ndarray:
    """The test matrix of a sketched layer: `[d, r]` float64 with orthonormal columns, fixed."""
    generator = np.random.default_rng(zlib.crc32(path.encode()))
    return np.linalg.qr(generator.standard_normal((inputs, columns)))[0]


def layer_sizes(
    spec: TrainSpec, params: Params, model_state: PyTree, inputs: Any, options: LayerOptions
) -> dict[str, tuple[int, int, int]]:
    """Per layer: inputs d of its kernel (+ 1), rows per example, features.

    Args:
      spec: names the model.
      params: its parameters.
      model_state: its other collections.
      inputs: stored examples `[n, ...]`; only shape and dtype matter.
      options: whether a bias moves.
    """

    def shapes(params, model_state, inputs):
        if spec.preprocess is not None:
            inputs = spec.preprocess(inputs)
        return layer_rows(spec, params, model_state, inputs, bias=options.bias == "moves")

    one = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
    found = jax.eval_shape(shapes, params, model_state, one)
    features = {path: _kernel(params, path).shape[-1] for path in found}
    return {path: (rows.shape[2], rows.shape[1], features[path]) for path, rows in found.items()}


def _kernel(params: Params, layer: str) -> Any:
    for name in parameter_paths(layer)[0].split("/"):
        params = params[name]
    return params


def cost_in_gradients(sizes: Mapping[str, tuple[int, int, int]], options: LayerOptions) -> float:
    """Example gradients that the moments of one example cost, by multiplications.

    A gradient is a forward pass and two backward ones, `3 sum rows d features`; the moments are a
    forward pass and `sum rows d columns`.
    """
    forward = sum(rows * inputs * features for inputs, rows, features in sizes.values())
    moments = sum(rows * inputs * options.columns(inputs) for inputs, rows, _ in sizes.values())
    return (forward + moments) / (3 * forward)


def input_statistics(
    spec: TrainSpec,
    params: Params,
    model_state: PyTree,
    data: Dataset,
    options: LayerOptions = DEFAULT_OPTIONS,
    *,
    weights: np.ndarray | None = None,
    batch_size: int = 100,
    devices: Sequence[jax.Device] | None = None,
) -> Statistics:
    """Second moments of the inputs of every dense and convolution layer over a data set.

    Features are those of evaluation mode (no dropout, running averages) and of the examples as they
    are stored (no augmentation), so that they are the same in every call.

    Args:
      spec: the model and its preprocessing.
      params: its parameters.
      model_state: its other collections.
      data: the examples.
      options: what is kept.
      weights: `[N]`, how often each example counts; all 1 by default.
      batch_size: examples at a time; the result depends on it in its rounding only.
      devices: where batches go in turn; all local ones by default.

    Raises:
      InputError: if the model has no such layer, or the weights do not fit.
    """
    watch = Stopwatch()
    counts = np.ones(len(data)) if weights is None else np.asarray(weights, np.float64)
    if counts.shape != (len(data),):
        raise InputError(f"weights have shape {counts.shape}; give one for each of {len(data)}")
    sizes = layer_sizes(spec, params, model_state, data.inputs, options)
    if not sizes:
        raise InputError(
            f"{type(spec.model).__name__} has no dense or convolution layer to capture"
        )
    tests = {
        path: sketch_matrix(path, inputs, options.columns(inputs))
        for path, (inputs, _, _) in sizes.items()
        if options.columns(inputs) < inputs
    }
    totals = {
        path: [np.zeros((inputs, options.columns(inputs))), np.zeros(())]
        for path, (inputs, _, _) in sizes.items()
    }
    used = np.flatnonzero(counts)
    for products in _batch_products(
        spec, params, model_state, data.inputs, counts, used, tests, options, batch_size, devices
    ):
        for path, (product, trace) in products.items():
            totals[path][0] += product
            totals[path][1] += trace
    return Statistics(
        layers={path: LayerStatistic(*parts) for path, parts in totals.items()},
        options=options,
        model=model_hash(spec, params, model_state),
        drifted=False,
        examples=len(used),
        example_gradients=len(used) * cost_in_gradients(sizes, options),
        seconds=watch.seconds(),
    )


def _batch_products(
    spec, params, model_state, inputs, counts, used, tests, options, batch_size, devices
) -> Iterator[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Products of each batch on the host, while the next ones are computed."""
    size = min(batch_size, len(used)) or 1
    devices = jax.local_devices() if devices is None else list(devices)
    devices = devices[: -(-len(used) // size)]  # a program is compiled for each
    dtype = jax.tree.leaves(params)[0].dtype
    tests = jax.tree.map(lambda test: test.astype(dtype), tests)
    copies = [jax.device_put((params, model_state, tests), device) for device in devices]
    waiting: list[Any] = []
    for number, begin in enumerate(range(0, len(used), size)):
        ids = used[begin : begin + size]
        # The last batch is filled up with examples of weight 0, so that one program serves all.
        padded = np.resize(ids, size)
        weights = np.where(np.arange(size) < len(ids), counts[padded], 0.0).astype(dtype)
        device = devices[number % len(devices)]
        batch = jax.device_put((inputs[padded], weights), device)
        waiting.append(_products(spec, *copies[number % len(devices)], *batch, options))
        if len(waiting) > len(devices):
            yield jax.device_get(waiting.pop(0))
    for products in waiting:
        yield jax.device_get(products)


@jax.jit(static_argnames=("spec", "options"))
def _products(spec, params, model_state, tests, inputs, weights, options):
    """`{path: (G or G Omega, trace of G)}` of one batch."""
    if spec.preprocess is not None:
        inputs = spec.preprocess(inputs)
    precision = jnp.promote_types(jax.tree.leaves(params)[0].dtype, jnp.float32)
    if jnp.issubdtype(inputs.dtype, jnp.floating):
        inputs = inputs.astype(precision)
    rows = layer_rows(spec, params, model_state, inputs, bias=options.bias == "moves")
    found = {}
    for path, x in rows.items():
        x = x.astype(precision)
        weighted = (x * weights[:, None, None]).reshape(-1, x.shape[-1])
        x = x.reshape(-1, x.shape[-1])
        right = x
        if path in tests:
            right = jnp.matmul(x, tests[path], precision="highest")
        product = jnp.matmul(weighted.T, right, precision="highest")
        found[path] = product, jnp.vdot(weighted, x, precision="highest")
    return found
