"""Schedules: which examples each training step uses, as one integer array.

A schedule is int32 [steps, batch]. Entry `schedule[t, slot]` is an example id, or -1 for an empty
slot. A training run is a function of its schedule, so the schedule is data that can be stored,
compared, and searched for the first use of a forgotten example.
"""

from __future__ import annotations

import numpy as np

from unroll.data.ids import IdsLike, as_ids, check_seed
from unroll.errors import InputError

EMPTY = -1
"""Entry of a slot that holds no example."""


def make_schedule(
    seed: int, ids: int | IdsLike, batch_size: int, epochs: int, *, partial: str = "pad"
) -> np.ndarray:
    """Makes a schedule in which every epoch goes through the ids once, in a fresh order.

    Epoch e depends only on (seed, e, the set of ids), so a run with more epochs starts like a run
    with fewer. The order in which the ids are given does not matter.

    Args:
      seed: random seed, in [0, 2**32).
      ids: the example ids, or an integer N for the ids 0 to N - 1. For an independent retraining
        pass the retained ids: its schedule then never names a forgotten example.
      batch_size: slots per step.
      epochs: number of passes.
      partial: what to do with the last batch of an epoch where `batch_size` does not divide the
        number of ids. `pad` fills it up with -1: an empty slot, which counts like an example
        of weight 0. The training step divides by the batch size all the same, so a last batch of
        few examples takes a step that is smaller in proportion and not a noisy step of full
        size. `drop` leaves the remaining examples of that epoch out; which ones differs from
        epoch to epoch.

    Returns:
      int32 [steps, batch_size].

    Raises:
      InputError: an argument is out of range, ids repeat, or no full batch exists under `drop`.

    >>> make_schedule(0, 5, batch_size=2, epochs=1).shape
    (3, 2)
    """
    ids = _schedule_ids(ids)
    seed = check_seed(seed)
    if epochs < 1:
        raise InputError(f"epochs: must be >= 1, got {epochs}")
    steps = steps_per_epoch(len(ids), batch_size, partial)
    used = min(len(ids), steps * batch_size)
    schedule = np.full((epochs, steps * batch_size), EMPTY, np.int32)
    for epoch, row in enumerate(schedule):
        sequence = np.random.SeedSequence([seed, epoch])
        order = np.random.Generator(np.random.PCG64(sequence)).permutation(ids)
        row[:used] = order[:used]
    return schedule.reshape(epochs * steps, batch_size)


def steps_per_epoch(num_examples: int, batch_size: int, partial: str = "pad") -> int:
    """Returns the number of steps in which an epoch over `num_examples` examples takes place.

    Raises:
      InputError: batch size below 1, unknown `partial`, or `drop` would leave no step.

    >>> steps_per_epoch(5, 2, "pad"), steps_per_epoch(5, 2, "drop")
    (3, 2)
    """
    if partial not in ("pad", "drop"):
        raise InputError(f"partial: {partial!r} is unknown; use 'pad' or 'drop'")
    if num_examples < 1:
        raise InputError("schedule: there are no examples; give at least one id")
    if batch_size < 1:
        raise InputError(f"batch_size: must be >= 1, got {batch_size}")
    if partial == "pad":
        return -(-num_examples // batch_size)
    if batch_size > num_examples:
        raise InputError(
            f"batch_size: {batch_size} is more than the {num_examples} examples, so 'drop' leaves "
            "no step; lower it or use partial='pad'"
        )
    return num_examples // batch_size


def uses(schedule: np.ndarray, ids: IdsLike) -> np.ndarray:
    """Tells for each step whether it uses any of the ids.

    Returns:
      bool [steps].

    Raises:
      InputError: an id is negative (-1 marks an empty slot, not an example).
    """
    return np.isin(schedule, as_ids(ids)).any(axis=1)


def first_use(schedule: np.ndarray, ids: IdsLike) -> int | None:
    """Returns the first step that uses any of the ids, or `None` where no step does.

    Up to that step, a run with these ids and a run without them are the same run.
    """
    steps = np.flatnonzero(uses(schedule, ids))
    return int(steps[0]) if len(steps) else None


def validate_schedule(schedule: np.ndarray, num_examples: int) -> np.ndarray:
    """Checks a schedule that came from elsewhere and returns it as int32.

    Args:
      schedule: integers [steps, batch], each an id below `num_examples` or -1.
      num_examples: size of the training set.

    Raises:
      InputError: wrong shape or dtype, an id out of range, or a step without any example.
    """
    schedule = np.asarray(schedule)
    if schedule.ndim != 2 or schedule.size == 0:
        raise InputError(f"schedule: expected the shape [steps, batch], got {schedule.shape}")
    if not np.issubdtype(schedule.dtype, np.integer):
        raise InputError(f"schedule: expected integers, got dtype {schedule.dtype}")
    bad = np.argwhere((schedule < EMPTY) | (schedule >= num_examples))
    if len(bad):
        step, slot = bad[0]
        raise InputError(
            f"schedule: step {step} uses id {schedule[step, slot]}, "
            f"but ids run from 0 to {num_examples - 1} (and -1 for an empty slot)"
        )
    idle = np.flatnonzero((schedule == EMPTY).all(axis=1))
    if len(idle):
        raise InputError(f"schedule: step {idle[0]} has only empty slots; remove the step")
    return schedule.astype(np.int32, copy=False)


def _schedule_ids(ids: int | IdsLike) -> np.ndarray:
    if isinstance(ids, int | np.integer):
        return np.arange(ids)
    ids = as_ids(ids)
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        raise InputError(f"ids: id {unique[counts > 1][0]} occurs twice; give each id once")
    if len(unique) and unique[-1] > np.iinfo(np.int32).max:
        raise InputError(f"ids: id {unique[-1]} does not fit in an int32")
    return unique
