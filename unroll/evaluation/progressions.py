"""What a model knows along a sequence: of deletions, or of epochs of one deletion.

`removal_sequence` deletes one part after the other from the same model, and `recovery` follows the
repair of a model that was trained on swapped labels. Both yield plain dictionaries, which become
rows.

Design: a stopping rule `fixed_epochs(count=e)` gives the model after epoch e of the same schedule,
so that a curve is made of ordinary results of a method, each in the store under its own address.
Rejected: a callback inside the methods, whose models no store would know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from unroll.checkpoint import Store
from unroll.data.dataset import Dataset
from unroll.errors import InputError
from unroll.evaluation.study import apply_method
from unroll.metrics.outputs import accuracy
from unroll.problem import Method, Problem
from unroll.training.predict import predict
from unroll.training.run import Run
from unroll.types import Params, PyTree
from unroll.unrolling.subspaces import (
    Statistics,
    input_statistics,
    parse_projection,
    record_statistics,
)

BASES = ("subtract", "recompute")
"""Where the moments of the retained inputs come from after a first deletion: what the last one
left, or one more pass of the current model over the retained examples."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One model of a sequence.

    Attributes:
      dataset: name of the data set.
      model: the model's text.
      label: what was done: a method, with its basis, or `retrain`.
      seed: training seed.
      position: deletions done, or epochs.
      values: accuracies by split, and other numbers.
      note: why there are none.
    """

    dataset: str
    model: str
    label: str
    seed: int
    position: int
    values: dict[str, float]
    note: str | None = None


def accuracies(
    run: Run, params: Params, model_state: PyTree, splits: Mapping[str, Dataset]
) -> dict[str, float]:
    """Accuracy of a model on each split."""
    return {
        name: accuracy(predict(run.spec, params, model_state, data), data.labels)
        for name, data in splits.items()
    }


def removal_sequence(
    run: Run,
    parts: Sequence[np.ndarray],
    test: Dataset,
    method: Method,
    basis: str,
    store: Store | None = None,
) -> Iterator[dict[str, float]]:
    """Deletes the parts one after the other and yields what the model knows after each.

    Args:
      run: the original run.
      parts: disjoint ids.
      test: examples never trained on.
      method: one that needs `statistics`.
      basis: one of `BASES`; `recompute` reads the retained examples.
      store: where the statistics of the original are looked up and kept.

    Yields:
      Accuracy on this `part`, on everything `forgotten` so far, on what is `retained`, on the
      `test` set; `clipped`, the largest clipped mass of a layer; and `drift`, the largest relative
      distance of a layer's moments from those of the current model.

    Raises:
      InputError: if the parts overlap, or the method projects nothing.
    """
    if basis not in BASES:
        raise InputError(f"unknown basis {basis!r}; choose one of {list(BASES)}")
    forgotten = np.concatenate(list(parts))
    if len(np.unique(forgotten)) < len(forgotten):
        raise InputError("the parts overlap; an example is deleted once")
    if not method.hyperparameters.get("projection"):
        raise InputError(f"{method} projects nothing; give it a projection")
    options = parse_projection(method.hyperparameters["projection"]).options
    state, gone = run.state, np.zeros(len(run.dataset), bool)
    statistics = record_statistics(run, options, store=store)
    for number, ids in enumerate(parts):

        def moments(data, weights=None, state=state):
            return input_statistics(
                run.spec, state.params, state.model_state, data, options, weights=weights
            )

        now = statistics if number == 0 else moments(run.dataset, run.weights * ~gone)
        drift = distance(statistics, now)
        if basis == "recompute":
            statistics = now
        current = dataclasses.replace(run, state=state)
        problem = Problem(current, ids, statistics=statistics)
        result = method(jax.random.key(number), problem)
        statistics = statistics.minus(moments(run.dataset.take(ids)), allow_drift=True)
        state = state._replace(params=result.params, model_state=result.model_state)
        gone[ids] = True
        splits = {
            "part": run.dataset.take(ids),
            "forgotten": run.dataset.take(np.flatnonzero(gone)),
            "retained": run.dataset.take(np.flatnonzero(~gone)),
            "test": test,
        }
        found = accuracies(run, state.params, state.model_state, splits)
        clipped = max(layer["clipped"] for layer in result.info["layers"].values())
        yield {**found, "clipped": clipped, "drift": drift}


def distance(one: Statistics, other: Statistics) -> float:
    """Largest relative Frobenius distance of two moments over the layers."""
    return max(
        float(
            np.linalg.norm(one.layers[path].products - layer.products)
            / np.linalg.norm(layer.products)
        )
        for path, layer in other.layers.items()
    )


def recovery(
    run: Run, poisoned: np.ndarray, test: Dataset, method: Method, store: Store | None = None
) -> dict[str, float]:
    """What a model knows after a method has deleted examples with wrong labels.

    Args:
      run: trained on a data set with `true_labels`.
      poisoned: ids whose labels are wrong.
      test: clean examples.
      method: how to delete them.
      store: where results are looked up and kept.

    Returns:
      Accuracy on the `poison` (its wrong labels), on the same images with their true labels
      (`recovered`), on the `clean` rest, and on the `test` set.
    """
    result = apply_method(method, 0, Problem(run, poisoned, store=store), store, None)
    return accuracies(
        run, result.params, result.model_state, poison_splits(run.dataset, poisoned, test)
    )


def poison_splits(dataset: Dataset, poisoned: np.ndarray, test: Dataset) -> dict[str, Dataset]:
    """The splits of `recovery`."""
    if dataset.true_labels is None:
        raise InputError(f"{dataset.name}: has no true_labels; corrupt it first")
    poison = dataset.take(poisoned)
    clean = np.setdiff1d(np.arange(len(dataset)), poisoned)
    return {
        "poison": poison,
        "recovered": dataclasses.replace(poison, labels=poison.true_labels),
        "clean": dataset.take(clean),
        "test": test,
    }
