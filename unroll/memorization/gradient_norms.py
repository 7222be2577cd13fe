"""Proxies by how hard an example pulls: EL2N, GraNd, and self-influence along the run.

    EL2N   E || softmax(f(x)) - onehot(y) ||_2        arXiv 2107.07075, definition 2.2
    GraNd  E || grad_w loss(w; x, y) ||_2             arXiv 2107.07075, definition 2.1
    self-influence  sum_k c_k || grad_w loss(w_k; x, y) ||_2^2        TracIn, arXiv 2002.08484

The first two are means over models of other seeds after a few epochs. The third goes along the
recorded states of the run itself; c_k adds up the step sizes over the batch size at the uses of the
example between snapshot k and the next, with the reach of momentum.

What it stands for is `- d loss(w_T; x, y) / d weight of (x, y)`, of which it drops all curvature of
the run. `metagradient_self_influence` is the exact derivative. It takes a backward pass through the
whole run for each example, N of them cost about 2 N trainings, more than the exact scores, so it is
no entry of the registry and is meant for a chosen subset.

Design: the models that EL2N and GraNd train are those of `unroll.train` and lie in the store, so
both share them. Rejected: states of the run itself for EL2N; one model is a noisy mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unroll.checks import whole_number
from unroll.data.ids import IdsLike, as_ids
from unroll.data.schedule import make_schedule
from unroll.errors import InputError
from unroll.memorization.subject import FORWARD, Measurement, Proxy, Subject
from unroll.training.predict import predict
from unroll.training.run import Progress, Run, part_of_progress, train
from unroll.training.timing import Stopwatch
from unroll.unrolling.example_gradients import gradient_norms
from unroll.unrolling.forget_gradient import check_constant_objective, sgd_of_run
from unroll.unrolling.metagradients import metagradients
from unroll.unrolling.outcomes import point_losses


def el2n(epochs: int = 2, seeds: int = 5) -> Proxy:
    """Mean distance of the softmax from the one-hot label, early in training; in [0, sqrt 2].

    Args:
      epochs: length of the trainings, which follow the specification of the run from its start.
      seeds: number of models to average over.
    """
    return _early("el2n", epochs, seeds, _error_norms, FORWARD)


def grand(epochs: int = 2, seeds: int = 5) -> Proxy:
    """Mean norm of the example's gradient, early in training; arguments as in `el2n`."""
    return _early("grand", epochs, seeds, _gradient_norms, 1.0)


def _early(name, epochs, seeds, norms, cost) -> Proxy:
    whole_number("epochs", epochs)
    whole_number("seeds", seeds)

    def measure(subject, progress):
        total, seconds, gradients = 0.0, 0.0, 0.0
        for index in range(seeds):
            run = _early_run(subject, epochs, index, part_of_progress(progress, index, seeds))
            watch = Stopwatch()
            total = total + norms(run)
            seconds += run.seconds + watch.seconds()  # a stored run knows its own
            gradients += run.example_gradients + cost * len(run.dataset)
        return Measurement(total / seeds, gradients, seconds=seconds)

    return Proxy(name, {"epochs": epochs, "seeds": seeds}, 1, frozenset(), measure)


def _early_run(subject: Subject, epochs: int, index: int, progress: Progress | None) -> Run:
    """A short training like the run, from a seed of its own."""
    run = subject.run
    seed = int(np.random.SeedSequence([run.seed, index]).generate_state(1)[0])
    batch_size = run.schedule.shape[1]
    schedule = make_schedule(seed, len(run.dataset), batch_size, epochs)
    settings = dict(seed=seed, weights=run.weights, store=subject.store, progress=progress)
    return train(run.spec, run.dataset, schedule, **settings)


def _error_norms(run: Run) -> np.ndarray:
    logits = predict(run.spec, run.state.params, run.state.model_state, run.dataset)
    return error_norms(logits, run.dataset.labels)


def error_norms(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`|| softmax - onehot ||_2` of each example, float64 `[N]`, from `[N, C]` and `[N]`."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    error = shifted / shifted.sum(axis=1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1.0
    return np.linalg.norm(error, axis=1)


def _gradient_norms(run: Run) -> np.ndarray:
    return gradient_norms(run.spec, run.state, run.dataset).astype(np.float64)


def self_influence() -> Proxy:
    """TracIn's self-influence at the recorded states; needs plain SGD, with momentum or without.

    Its quality depends on how many states were recorded: with the first one alone it is GraNd at
    the initialisation.
    """

    def measure(subject, progress):
        run = subject.run
        recorded = [step for step in run.snapshots if step < run.steps]
        reach = _reach(run)
        total, cost = np.zeros(len(run.dataset)), 0
        for index, begin in enumerate(recorded):
            end = [*recorded[1:], run.steps][index]
            slots = run.schedule[begin:end]
            filled = slots >= 0
            coefficients = np.zeros(len(total))
            steps = np.broadcast_to(reach[begin:end, None], slots.shape)
            np.add.at(coefficients, slots[filled], steps[filled])
            used = np.flatnonzero(coefficients)
            norms = gradient_norms(run.spec, run.snapshots[begin], run.dataset, used)
            total[used] += coefficients[used] * norms.astype(np.float64) ** 2
            cost += len(used)
            if progress is not None:
                progress(index + 1, len(recorded))
        return Measurement(total, cost, {"states": len(recorded)})

    return Proxy("self_influence", {}, 1, frozenset(), measure)


def _reach(run: Run) -> np.ndarray:
    """`[T]` how far a gradient of step t moves the final weights without curvature, per slot."""
    check_constant_objective(run.spec, "self_influence")
    if run.spec.denominator != "batch":
        raise InputError("self_influence needs denominator='batch'")
    return sgd_of_run(run).total_step_sizes() / run.schedule.shape[1]


def metagradient_self_influence(
    run: Run,
    ids: IdsLike | Sequence[int],
    *,
    group_size: int = 16,
    progress: Progress | None = None,
) -> Measurement:
    """`- d loss(w_T; n) / d weight[n]` of chosen examples: exact, at 2 trainings per example.

    Positive where training on the example lowers its own loss. The loss is that of the final model
    in evaluation mode.

    Args:
      run: the recorded run.
      ids: the examples.
      group_size: examples per pass back through the run; memory grows with it.
      progress: called with (examples done, examples in all).

    Returns:
      Values in the order of `ids`, with their cost.

    Raises:
      InputError: if an id is out of range, or the run cannot be differentiated.
    """
    whole_number("group_size", group_size)
    ids = as_ids(ids, len(run.dataset))
    parts, cost, seconds = [], 0.0, 0.0
    for begin in range(0, len(ids), group_size):
        group = ids[begin : begin + group_size]
        found = metagradients(run, point_losses(run.spec, run.dataset, group))
        parts.append(-found.gradients[np.arange(len(group)), group])
        cost, seconds = cost + found.example_gradients, seconds + found.seconds
        if progress is not None:
            progress(begin + len(group), len(ids))
    return Measurement(np.concatenate(parts), cost, {"examples": len(ids)}, seconds)
