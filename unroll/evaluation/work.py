"""The pieces that an experiment consists of, each priced in trainings and in bytes.

Bytes are XLA's plan of the program that will run, where there is one to ask (trainings, series,
tangents), else a multiple of the training's plan that was compared with such a plan.

Design: one constructor for each kind of piece; `unroll.evaluation.expected` adds them up. Rejected:
running every kind for a few steps; that compiles as much as the experiment itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np

from unroll.data.dataset import Dataset
from unroll.problem import Method
from unroll.training.estimate import Footprint
from unroll.training.memory import Bytes, program_bytes
from unroll.training.spec import TrainSpec
from unroll.unrolling.recorded import MEMORY_LIMIT
from unroll.unrolling.tangents import Bundle, advance_tangents
from unroll.unrolling.taylor import advance_taylor

Memory = Callable[[TrainSpec, Footprint], Bytes]
"""Bytes of a work, from the specification and the footprint of the training it belongs to."""

_LANCZOS_PRODUCTS = 40
_HOST_COPIES = 3
"""States on the host besides snapshots: the first, the last, and one on its way."""


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """Equal pieces of work on one recipe.

    Attributes:
      what: what a piece is, in the singular: `training`.
      spec: how to train.
      dataset: the training set.
      schedule: int32 `[T, B]`.
      memory: bytes of a piece.
      hint: how to need less memory.
      label: tells works apart whose memory differs; `what` by default.
      count: number of pieces.
      multiple: what a piece costs, in trainings of this recipe.
      at_most: whether the truth may be much less: parts may be stored, or stop early.
    """

    what: str
    spec: TrainSpec
    dataset: Dataset
    schedule: np.ndarray
    memory: Memory
    hint: str
    label: str = ""
    count: int = 1
    multiple: float = 1.0
    at_most: bool = False


def training(
    spec: TrainSpec, dataset: Dataset, schedule: np.ndarray, *, count: int = 1, snapshots: int = 0
) -> Work:
    """Trainings of one recipe, with so many states kept in memory."""

    def memory(spec: TrainSpec, found: Footprint) -> Bytes:
        return Bytes(found.program.total, (snapshots + _HOST_COPIES) * found.state)

    hint = "lower batch_size, choose a smaller model, or keep fewer states (a larger record_every)"
    label = f"with {snapshots} states kept" if snapshots else ""
    return Work("training", spec, dataset, schedule, memory, hint, label=label, count=count)


def series(
    spec: TrainSpec, dataset: Dataset, schedule: np.ndarray, order: int, *, count: int = 1
) -> Work:
    """Taylor series of a run to order K: `(K + 1)(K + 2)/2` gradients a step."""

    def memory(spec: TrainSpec, found: Footprint) -> Bytes:
        return series_bytes(spec, found, order)

    return Work(
        "series",
        spec,
        dataset,
        schedule,
        memory,
        "lower the order or batch_size",
        label=f"series of order {order}",
        count=count,
        multiple=(order + 1) * (order + 2) / 2,
    )


def series_bytes(spec: TrainSpec, found: Footprint, order: int) -> Bytes:
    """XLA's plan for the coefficients up to an order, and their copies on the host."""
    state, _, *operands, key, schedule = found.arguments
    examples, weights = operands
    plan = program_bytes(
        advance_taylor,
        spec,
        [state] * (order + 1),
        examples,
        weights,
        weights,
        key,
        schedule,
        0,
        0,
    )
    return Bytes(plan.total, (order + 1 + _HOST_COPIES) * found.state)


def metagradient(
    spec: TrainSpec,
    dataset: Dataset,
    schedule: np.ndarray,
    numbers: int,
    *,
    snapshots: int = 0,
    keep: int | None = None,
    share: float = 1.0,
) -> Work:
    """A backward pass through a run for so many numbers: `2 + 2 M` gradients a step.

    Args:
      spec: how the run is trained.
      dataset: the training set.
      schedule: int32 `[T, B]`.
      numbers: how many are differentiated, M.
      snapshots: states of the run that lie in memory.
      keep: as in `metagradients`.
      share: part of the run that is gone back through.
    """

    def memory(spec: TrainSpec, found: Footprint) -> Bytes:
        return metagradient_bytes(found, len(schedule), numbers, keep, snapshots)

    hint = "lower keep or batch_size, or differentiate fewer numbers at once"
    work = Work("metagradient", spec, dataset, schedule, memory, hint, label=f"of {numbers}")
    return dataclasses.replace(work, multiple=share * (2 + 2 * numbers))


def metagradient_bytes(
    found: Footprint, steps: int, numbers: int, keep: int | None = None, snapshots: int = 0
) -> Bytes:
    """A buffer of `keep` states, a linearised step, and a cotangent of it for each number.

    Taken in turn, the cotangents share their temporaries but for what XLA keeps of a few of them.
    Within a quarter of XLA's plan for an MLP, a CNN and ResNet-18, 1 and 8 numbers, both modes.
    """
    keep = 2 * math.ceil(math.sqrt(steps)) if keep is None else keep
    in_turn = found.convolutions and jax.default_backend() == "cpu"
    pulled = min(numbers, 4) if in_turn else numbers
    per_number = 2 * found.state + 4 * found.arguments[3].shape[0]
    return Bytes(
        found.program.total
        + pulled * found.program.temporaries
        + keep * found.state
        + numbers * per_number,
        (math.ceil(steps / keep) + snapshots + _HOST_COPIES) * found.state,
    )


def ensemble(
    spec: TrainSpec, dataset: Dataset, schedule: np.ndarray, models: int, *, group_size: int = 64
) -> Work:
    """Models trained by `train_ensemble`, in its own mode; a group costs at most its models."""

    def memory(spec: TrainSpec, found: Footprint) -> Bytes:
        return ensemble_bytes(found, models, group_size)

    hint = "train in smaller groups (group_size) or lower batch_size"
    return Work(
        "training",
        spec,
        dataset,
        schedule,
        memory,
        hint,
        label=f"training in groups of {group_size}",
        count=models,
        at_most=True,
    )


def ensemble_bytes(found: Footprint, models: int, group_size: int = 64) -> Bytes:
    """Everything but the examples once for each model of a group; all final states on the host."""
    alone = jax.local_device_count() == 1 and jax.default_backend() == "cpu"
    group = 1 if alone and found.convolutions else min(models, group_size)
    devices = min(jax.local_device_count(), group)
    each = found.program.total - found.examples
    copies = models + 2 * group  # what is trained, before and after
    if jax.default_backend() == "cpu":  # all devices share one memory
        return Bytes(devices * found.examples + group * each, copies * found.state)
    return Bytes(found.examples + math.ceil(group / devices) * each, copies * found.state)


def tangents(
    spec: TrainSpec,
    dataset: Dataset,
    schedule: np.ndarray,
    cohorts: int,
    order: int,
    group_size: int | None = None,
) -> Work:
    """Tangents of a run in the weights of its cohorts; see `CohortTangents.example_gradients`."""

    def memory(spec: TrainSpec, found: Footprint) -> Bytes:
        return tangent_bytes(spec, found, cohorts, order, group_size)

    passes = 1 + 2 * cohorts
    if order == 2:
        passes += cohorts * (3 + 6 * (cohorts // 2 + 1))
    return Work(
        "tangent set",
        spec,
        dataset,
        schedule,
        memory,
        "register fewer cohorts, or lower the order, group_size or batch_size",
        label=f"tangents of order {order}",
        multiple=passes,
        at_most=True,
    )


def tangent_bytes(
    spec: TrainSpec, found: Footprint, cohorts: int, order: int, group_size: int | None = None
) -> Bytes:
    """XLA's plan for a state and its tangents, and their copies on the host."""
    state, _, examples, weights, key, schedule = found.arguments
    floating = [leaf for leaf in jax.tree.leaves(state) if np.issubdtype(leaf.dtype, np.floating)]

    def stacked(*sizes: int) -> list[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct((*sizes, *leaf.shape), leaf.dtype) for leaf in floating]

    second = stacked(cohorts, cohorts // 2 + 1) if order == 2 else []
    members = jax.ShapeDtypeStruct(weights.shape, np.int32)
    if group_size is None:
        group_size = 1 if jax.default_backend() == "cpu" else 16
    plan = program_bytes(
        advance_tangents,
        spec,
        Bundle(state, stacked(cohorts), second),
        examples,
        weights,
        members,
        key,
        schedule,
        0,
        0,
        min(group_size, cohorts),
    )
    states = 1 + cohorts * (1 + (cohorts // 2 + 1 if order == 2 else 0))
    return Bytes(plan.total, (states + _HOST_COPIES) * found.state)


def unlearning(
    method: Method, spec: TrainSpec, dataset: Dataset, schedule: np.ndarray, epochs: int
) -> Work:
    """A use of a method; of one that is not known here at most two trainings are expected.

    Args:
      method: which.
      spec: how the original is trained.
      dataset: the training set.
      schedule: int32 `[T, B]` of the original.
      epochs: passes of the original over the training set.
    """
    inner = getattr(method.unlearn, "methods", ())
    if inner:
        parts = [unlearning(each, spec, dataset, schedule, epochs) for each in inner]
        work = max(parts, key=lambda part: part.multiple)
        total, vague = sum(part.multiple for part in parts), any(part.at_most for part in parts)
        return dataclasses.replace(work, label=str(method), multiple=total, at_most=vague)
    name, options = method.name, method.hyperparameters
    work = training(spec, dataset, schedule)
    order = options["order"] if name == "taylor" else options.get("taylor_order", 0)
    passes = options.get("epochs", 1) / epochs
    if order:
        work = series(spec, dataset, schedule, order)
    elif name in ("sampled", "segments", "deltagrad"):
        work = dataclasses.replace(work, memory=_recorded_bytes)
    multiples = {
        "original": 0.0,
        "replay": 1.0,
        "single_gradient": 0.0,
        "checkpointed_gradient": 0.0,
        "gradient_ascent": 0.0,
        "finetune": passes,
        "l1_sparse": passes,
        # Its passes over the forget set and the teacher's forward pass are small beside these.
        "scrub": passes,
        "random_label": passes,
        "salun": passes,
        "neggrad_plus": 2 * passes,
        # The system, its deletion, and the one from scratch that it is compared with.
        "sisa": 3.0,
    }
    if order:
        multiples[name] = work.multiple
    return dataclasses.replace(
        work,
        what="unlearned model",
        label=str(method),
        multiple=multiples.get(name, 2.0),
        at_most=name not in multiples or name == "sisa",
    )


def _recorded_bytes(spec: TrainSpec, found: Footprint) -> Bytes:
    weights = (found.arguments[-1].shape[0] + 1) * found.state
    # Beyond its own limit the method refuses by itself, and the other rows are not lost.
    kept = weights if weights <= MEMORY_LIMIT else 0
    return Bytes(found.program.total + kept, _HOST_COPIES * found.state)


def curvature(
    spec: TrainSpec,
    dataset: Dataset,
    schedule: np.ndarray,
    examples: int,
    chunk: int | None = None,
    *,
    count: int = 1,
) -> Work:
    """Largest eigenvalues, on so many examples: at most 40 products of two gradients each.

    Args:
      spec: how the run is trained.
      dataset: the training set.
      schedule: int32 `[T, B]`.
      examples: that an eigenvalue is measured on.
      chunk: how many of them at a time, all by default.
      count: number of eigenvalues.
    """
    steps, batch_size = np.shape(schedule)

    def memory(spec: TrainSpec, found: Footprint) -> Bytes:
        share = (chunk or examples) / batch_size
        vectors = (_LANCZOS_PRODUCTS + _HOST_COPIES) * found.state
        products = math.ceil(2 * share * found.program.temporaries)
        return Bytes(found.program.total + products + vectors, _HOST_COPIES * found.state)

    return Work(
        "eigenvalue",
        spec,
        dataset,
        schedule,
        memory,
        "lower curvature_chunk or curvature_examples",
        label=f"on {examples} examples",
        count=count,
        multiple=2 * _LANCZOS_PRODUCTS * examples / (steps * batch_size),
        at_most=True,
    )
