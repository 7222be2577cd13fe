"""Entanglement of forget and retain set in a model's features: harder to unlearn where it is high.

    ES = [mean_R |phi - mu_R|^2 + mean_S |phi - mu_S|^2] / [(|mu_R - mu|^2 + |mu_S - mu|^2) / 2],
    mu = (mu_R + mu_S) / 2

Source: RUM (arXiv 2406.01257). Since mu is the middle of two means the denominator is a quarter of
their squared distance. Every mean is over examples; the reference takes means of batch means, in
which the examples of a short last batch count for more.

Design: the features are what the last dense layer of any linen model is given, read off on the way
in. Rejected: a method `features` on each model, which models written elsewhere do not have.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from unroll.data.dataset import Dataset
from unroll.errors import InputError
from unroll.training.spec import TrainSpec
from unroll.types import Params, PyTree
from unroll.unrolling.subspaces.inputs import layer_rows


def entanglement_score(retained: np.ndarray, forgotten: np.ndarray) -> float:
    """Spread inside the two sets over the distance between them; no upper end, 0 at least.

    It does not change when all features are moved, turned or scaled.

    Args:
      retained: `[n, d]` features of the retained examples.
      forgotten: `[m, d]` features of the forgotten ones.

    Raises:
      InputError: if the shapes do not fit, or the two means are the same point.
    """
    sets = [np.asarray(each, np.float64) for each in (retained, forgotten)]
    widths = {each.shape[1:] for each in sets}
    if len(widths) > 1 or any(each.ndim != 2 or not len(each) for each in sets):
        raise InputError(f"features must be [n, d] and [m, d]; got {[s.shape for s in sets]}")
    means = [each.mean(axis=0) for each in sets]
    spread = sum(
        float(((each - mean) ** 2).sum(axis=1).mean())
        for each, mean in zip(sets, means, strict=True)
    )
    apart = float(((means[0] - means[1]) ** 2).sum()) / 4
    if apart == 0:
        raise InputError("forgotten and retained features have the same mean: ES is not defined")
    return spread / apart


def distances_to_centroid(features: np.ndarray) -> np.ndarray:
    """Euclidean distance of each example's features to the mean of all, float64 `[N]`."""
    features = np.asarray(features, np.float64)
    return np.linalg.norm(features - features.mean(axis=0), axis=1)


def entangled_groups(features: np.ndarray, size: int) -> tuple[tuple[np.ndarray, float], ...]:
    """Groups of a training set with the lowest, the median and the highest entanglement score.

    All examples are ordered by their distance to the centroid and cut into groups of `size`, the
    remainder going to no group; each group is scored against all others of the set. The reference
    names the groups by number (3, 12 and 14 of 15), which belong to its own network.

    Args:
      features: `[N, d]`.
      size: of a group.

    Returns:
      Low, medium and high, each as (ascending int64 ids, its score).

    Raises:
      InputError: if there are fewer than three groups.
    """
    order = np.argsort(distances_to_centroid(features), kind="stable")
    count = len(order) // size if size > 0 else 0
    if count < 3:
        raise InputError(f"groups of {size} of {len(order)} examples: there must be three or more")
    cut = [np.sort(order[number * size : (number + 1) * size]) for number in range(count)]
    scored = sorted(
        ((entanglement_score(np.delete(features, ids, axis=0), features[ids]), at, ids)
         for at, ids in enumerate(cut)),
        key=lambda entry: entry[:2],
    )  # fmt: skip
    return tuple((scored[at][2], scored[at][0]) for at in (0, count // 2, count - 1))


def penultimate_features(
    spec: TrainSpec, params: Params, model_state: PyTree, dataset: Dataset, batch_size: int = 500
) -> np.ndarray:
    """What the last dense layer of a model is given, float32 `[N, d]`, in evaluation mode.

    Raises:
      InputError: if the model has no such layer, or gives it more than one row per example.
    """
    size, found = min(batch_size, len(dataset)), []
    for begin in range(0, len(dataset), size):
        inputs = dataset.inputs[begin : begin + size]
        missing = size - len(inputs)
        if missing:  # one program for all batches
            inputs = np.concatenate([inputs, np.repeat(inputs[-1:], missing, axis=0)])
        rows = np.asarray(_last_rows(spec, params, model_state, jnp.asarray(inputs)), np.float32)
        found.append(rows[: size - missing])
    return np.concatenate(found)


@jax.jit(static_argnames=("spec",))
def _last_rows(
    spec: TrainSpec, params: Params, model_state: PyTree, inputs: jax.Array
) -> jax.Array:
    if spec.preprocess is not None:
        inputs = spec.preprocess(inputs)
    rows = layer_rows(spec, params, model_state, inputs)
    last = next(reversed(rows.values()), None)
    # The patches of convolutions, which nothing reads, are left out by the compiler.
    if last is None or last.shape[1] != 1:
        raise InputError("the model does not end in a dense layer; its features are not known")
    return last[:, 0]
