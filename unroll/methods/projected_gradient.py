"""Projected-gradient unlearning (PGU): forget in the directions that retained inputs do not use.

    dW_l = -eta P_l grad L_f,    P_l = 1 - M_l M_l^T,    L_f the bounded ascent on the forget set

M_l spans the leading directions of the retained inputs' second moment of layer l, which is that of
all training examples (kept with the run) minus that of the forget set. Source: Hoang et al., *Learn
to Unlearn for Deep Neural Networks: Minimizing Unlearning Interference with Gradient Projection*
(WACV 2024, arXiv 2312.04095). No retained example is read; biases and normalisation do not move.

Beyond the paper: the rank rule and the stopping rule are named and swappable, every stopping rule
declares what it reads, and the default one reads nothing. With `taylor_order` above 0 what the
projection holds fast (the retained directions, biases, normalisation) moves as the Taylor series of
the removal says: the ascent decides where no retained input looks, the series where they do. That
needs the recorded run, and with it the training data. Rejected: the reference's fixed rule for
each task, two of which look at retained or held-out labels.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from unroll.checks import positive_number, whole_number
from unroll.data.dataset import Dataset
from unroll.data.schedule import make_schedule
from unroll.problem import Access, Method, Unlearned
from unroll.training import loop
from unroll.training.further import key_seed
from unroll.training.optimizer import OptaxCall, optax_call
from unroll.training.predict import predict
from unroll.training.projection import (
    Bases,
    batch_gradient,
    frozen_leaves,
    iterate_projected,
    project_updates,
    removed_shares,
)
from unroll.training.spec import TrainSpec
from unroll.training.step import start_state
from unroll.training.timing import Stopwatch
from unroll.tree import to_host
from unroll.types import Params, TrainState
from unroll.unrolling.bounded_ascent import BoundedAscent
from unroll.unrolling.stopping import stopping_rule
from unroll.unrolling.subspaces import parse_projection, retained_bases
from unroll.unrolling.taylor import removal_series, sum_series


def projected_gradient(
    learning_rate: float = 0.05,
    final_learning_rate: float = 0.01,
    epochs: int = 10,
    batch_size: int = 128,
    projection: str = "l1_singular(threshold=0.95)",
    offset: float = 0.05,
    entropy_weight: float = 0.2,
    entropy_over: str = "all",
    stop: str = "fixed_epochs",
    taylor_order: int = 0,
) -> Method:
    """Descends a bounded forgetting loss inside the complement of the retained inputs.

    Args:
      learning_rate: the learning rate of epoch t = 1, 2, ... is
        `learning_rate * (final_learning_rate / learning_rate)^(t / epochs)`.
      final_learning_rate: that of the last epoch.
      epochs: passes over the forget set, at most.
      batch_size: examples per step.
      projection: rank rule and options, see `parse_projection`; `l1_singular(threshold=0.95)` is
        the reference's, and a threshold of 0 is the same loss without projection.
      offset: of `BoundedAscent`.
      entropy_weight: of `BoundedAscent`; above 0 maximises the entropy.
      entropy_over: of `BoundedAscent`.
      stop: a rule of `unroll.unrolling.stopping`, for example `forget_level(level=0.05)`.
      taylor_order: order of the series for what the projection holds fast; 0 is the paper's method,
        which leaves it where it was.
    """
    positive_number("learning_rate", learning_rate)
    positive_number("final_learning_rate", final_learning_rate)
    whole_number("epochs", epochs)
    whole_number("batch_size", batch_size)
    whole_number("taylor_order", taylor_order, least=0)
    protect, rule = parse_projection(projection), stopping_rule(stop)
    loss = BoundedAscent(offset, entropy_weight, entropy_over)
    needs = frozenset({"original", "forget", "statistics"} | set(rule.reads))
    if taylor_order:
        needs |= {"run"}

    def unlearn(key, access):
        original = access.original
        if not len(access.forget_ids):
            return Unlearned(original.params, original.model_state, 0, seconds=0.0)
        data = access.forget_data
        statistics = access.statistics(protect.options)
        watch = Stopwatch()
        retained = retained_bases(
            statistics, access.spec, original.params, original.model_state, data, protect.rule
        )
        schedule = make_schedule(key_seed(key), len(data), min(batch_size, len(data)), epochs)
        steps = len(schedule) // epochs
        spec = dataclasses.replace(
            access.spec,
            objective=loss,
            augmentation=None,
            denominator="batch",
            optimizer=decaying_sgd(learning_rate, final_learning_rate, epochs, steps),
        )
        start = start_state(spec, key, original.params, original.model_state)
        shares = removed_shares(
            retained.bases,
            batch_gradient(spec, start, loop.device_examples(data), key, jnp.asarray(schedule[0])),
        )
        read = _Accuracies(access, rule.reads)
        state, history, verdict = _descend(
            spec, start, data, key, schedule, steps, retained.bases, rule, read, access.progress
        )
        done = len(history) - 1
        info = {
            **retained.note,
            "epochs": done,
            "verdict": verdict,
            "reads": list(rule.reads),
            "history": history,
            "removed_gradient": shares,
            "frozen": frozen_leaves(retained.bases, original.params),
        }
        if not done:
            info["warning"] = f"{stop} held before the first step; nothing was done"
        spent = done * len(data) + len(schedule[0]) + retained.example_gradients + read.spent
        params = original.params if not done else to_host(state.params)
        if taylor_order:
            series = removal_series(access.run, access.forget_ids, taylor_order, access.progress)
            params = _with_protected(params, retained.bases, original.params, series.coefficients)
            spent += series.example_gradients
        return Unlearned(params, original.model_state, spent, info, seconds=watch.seconds())

    return Method(
        "projected_gradient",
        {
            "learning_rate": learning_rate,
            "final_learning_rate": final_learning_rate,
            "epochs": epochs,
            "batch_size": batch_size,
            "projection": projection,
            "offset": offset,
            "entropy_weight": entropy_weight,
            "entropy_over": entropy_over,
            "stop": stop,
            "taylor_order": taylor_order,
        },
        needs,
        unlearn,
    )


def decaying_sgd(first: float, last: float, epochs: int, steps: int) -> OptaxCall:
    """Plain SGD at `first * (last / first)^(t / epochs)` in epoch t = 1, ..., `steps` each.

    The reference evaluates in epoch 0, so its first step already has the rate of t = 1.
    """
    ratio = (last / first) ** (1 / epochs)
    rate = optax_call(
        "exponential_decay",
        init_value=first * ratio,
        transition_steps=steps,
        decay_rate=ratio,
        staircase=True,
    )
    return optax_call("sgd", learning_rate=rate)


def _with_protected(params: Params, bases: Bases, original: Params, coefficients) -> Params:
    """Adds what the series does to the part that the projection takes out."""
    moved = jax.tree.map(jnp.subtract, sum_series(coefficients).params, original)
    free = project_updates(bases, moved)
    parts = params, moved, free
    return to_host(jax.tree.map(lambda own, whole, out: own + (whole - out), *parts))


class _Accuracies:
    """Accuracies on the splits that a rule reads, and what they cost."""

    def __init__(self, access: Access, splits: tuple[str, ...]):
        attributes = {"forget": "forget_data", "retain": "retain_data", "held_out": "held_out"}
        self._data = {split: getattr(access, attributes[split]) for split in splits}
        self._spec = access.spec
        self.spent = 0.0

    def __call__(self, state: TrainState) -> dict[str, float]:
        # A forward pass is a third of a gradient.
        self.spent += sum(map(len, self._data.values())) / 3
        return {split: self._accuracy(state, data) for split, data in self._data.items()}

    def _accuracy(self, state: TrainState, data: Dataset) -> float:
        logits = predict(self._spec, state.params, state.model_state, data)
        return float(np.mean(logits.argmax(axis=-1) == data.labels))


def _descend(
    spec: TrainSpec, state, data, key, schedule, steps, bases, rule, read, progress
) -> tuple[TrainState, list[dict[str, float]], str]:
    """Epochs until the rule says stop: the state to keep, the accuracies read, the verdict."""
    history = [read(state)]
    verdict = rule.verdict(history)
    if verdict != "go on":
        return state, history, verdict
    before, ends = state, range(steps, len(schedule) + 1, steps)
    for position, latest in iterate_projected(
        spec, state, data, 1.0, key, schedule, bases, boundaries=ends
    ):
        if progress is not None:
            progress(position, len(schedule))
        if position not in ends:
            continue
        history.append(read(latest))
        verdict = rule.verdict(history)
        if verdict == "previous":
            return before, history, verdict
        if verdict == "stop":
            return latest, history, verdict
        before = latest
    return before, history, verdict
