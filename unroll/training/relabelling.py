"""Training on with random labels on the forget set.

A random label is never the example's own. It depends on the key and on the example's id, not on who
else is forgotten. The reference implementation of SalUn draws from all classes, so that one label
in C stays as it was, and draws anew in every epoch; `redraw` does the second.

Rejected: labels of the most probable other class, which is boundary shrink, not random labelling.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from unroll.checks import positive_number, whole_number
from unroll.data.ids import IdsLike
from unroll.data.schedule import make_schedule
from unroll.errors import InputError
from unroll.training.further import key_seed
from unroll.training.joint import Parts, Term, joint_sgd
from unroll.training.projection import Bases
from unroll.training.run import Progress, part_of_progress
from unroll.training.spec import TrainSpec
from unroll.types import PyTree, TrainState


@dataclasses.dataclass(frozen=True)
class Relabelling:
    """How to train on.

    Attributes:
      learning_rate: step size.
      epochs: passes over what is trained on.
      batch_size: examples per step, at most those that there are.
      retain: whether the retained examples are trained on too, with their own labels, in the same
        batches as the forgotten ones.
      redraw: whether every epoch has labels of its own.

    Raises:
      InputError: if a field is out of range.
    """

    learning_rate: float
    epochs: int
    batch_size: int
    retain: bool
    redraw: bool

    def __post_init__(self):
        positive_number("learning_rate", self.learning_rate)
        whole_number("epochs", self.epochs)
        whole_number("batch_size", self.batch_size)
        for name in ("retain", "redraw"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is True or False; got {getattr(self, name)!r}")


def random_labels(key: jax.Array, ids: IdsLike, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """A label other than its own for each example, all with the same probability.

    Args:
      key: typed key; the ids are folded into it.
      ids: `[n]` ids of the examples.
      labels: int32 `[n]`, their own labels.
      num_classes: number of classes C.

    Returns:
      int32 `[n]`.

    Raises:
      InputError: if there is only one class.
    """
    if num_classes < 2:
        raise InputError("random labels need two classes; there is only one")
    ids = jnp.asarray(ids, jnp.int32)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)
    shifts = jax.vmap(lambda own: jax.random.randint(own, (), 1, num_classes))(keys)
    return (np.asarray(labels, np.int32) + np.asarray(shifts, np.int32)) % np.int32(num_classes)


def relabelled_sgd(
    training: Relabelling,
    spec: TrainSpec,
    state: TrainState,
    parts: Parts,
    key: jax.Array,
    *,
    bases: Bases | None = None,
    mask: PyTree | None = None,
    progress: Progress | None = None,
) -> TrainState:
    """Plain SGD from `state` on the forget set with random labels and, if given, the retain set.

    Args:
      training: how.
      spec: model, objective and augmentation.
      state: where to start.
      parts: what to train on.
      key: typed key of the schedule, the noise, and (by `fold_in(key, 3)`) the labels.
      bases: see `joint_sgd`.
      mask: see `joint_sgd`.
      progress: called with (steps done, steps in all).

    Raises:
      InputError: if there is only one class.
      DivergenceError: if a loss or the final state is not finite.
    """
    examples, weights, rows = parts.joined()
    count, forget = parts.count, parts.forget
    schedule = make_schedule(key_seed(key), count, min(training.batch_size, count), training.epochs)
    draws = np.split(schedule, training.epochs) if training.redraw else [schedule]
    for draw, slots in enumerate(draws):
        # Streams 0 to 2 of the key belong to the training step.
        label_key = jax.random.fold_in(jax.random.fold_in(key, 3), draw)
        labels = random_labels(label_key, parts.forget_ids, forget.labels, forget.num_classes)
        state = joint_sgd(
            spec,
            state,
            examples._replace(labels=examples.labels.at[rows].set(labels)),
            weights,
            (Term(1.0, slots),),
            # Later draws count their steps from 0 again and need noise of their own.
            jax.random.fold_in(key, 3 + draw) if draw else key,
            learning_rate=training.learning_rate,
            bases=bases,
            mask=mask,
            progress=part_of_progress(progress, draw, len(draws)),
        )
    return state
