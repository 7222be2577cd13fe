"""RUM: a forget set is cut into parts by memorization, and each part unlearned in its turn.

    theta_0 = original;   theta_j = U_j(theta_(j-1), part j, retain set of step j),   j = 1, ..., K

Sources: Zhao et al., *What makes unlearning hard and what to do about it* (arXiv 2406.01257); with
scores from cheap proxies, *Scalability of memorization-based machine unlearning* (2410.16516).
The variants are choices of arguments: the same method for each part is RUM^F, random scores with it
`shuffle`, a method per part RUM, and `original` does nothing to a part.

Design: a fold over explicit steps. What a step starts from is an argument, and each step notes the
hash of the parameters that it got and of those that it gave. Rejected: steps that look up the model
of the step before by name; in the reference implementation every step so starts from the original
model again, and the last evaluation is of that.

The meta-method holds the training set of the run, to cut it; a method of a step gets a problem of
its own, with the examples of that step only, and of it what it declares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from unroll import tree
from unroll.errors import InputError
from unroll.memorization.refinement import partition, scores_hash
from unroll.problem import Access, Method, Problem, Unlearned
from unroll.training.record import Snapshots
from unroll.training.run import Run, part_of_progress
from unroll.types import TrainState
from unroll.unrolling.subspaces import Statistics, input_statistics, parse_projection

ORDERS = ("low_to_high", "high_to_low")
RETAIN_POLICIES = ("nested", "final")
"""What a step retains: all but the parts that are gone and the one that goes now, so that later
parts still count as retained (the reference); or, from the start, nothing of the forget set."""
_KEYS = 0x52554D


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One part and what is done to it.

    Attributes:
      method: how the part is unlearned.
      forget: the part, ascending ids of the training set.
      retain: what counts as retained meanwhile, ascending ids of the training set.
    """

    method: Method
    forget: np.ndarray
    retain: np.ndarray


def rum(
    scores: np.ndarray,
    methods: Method | Sequence[Method],
    count: int = 3,
    *,
    order: str = "low_to_high",
    retain_policy: str = "nested",
    tie_seed: int = 0,
    name: str = "rum",
    scores_name: str = "",
) -> Method:
    """A method that unlearns the parts of a forget set one after the other.

    Args:
      scores: `[N]` finite scores of the whole training set, larger is more memorized.
      methods: one for every part, or one for each, that of the low part first whatever the order.
      count: number of parts, where one method is given. One part is the method itself, bit for bit.
      order: one of `ORDERS`.
      retain_policy: one of `RETAIN_POLICIES`.
      tie_seed: see `unroll.memorization.refinement.partition`.
      name: of the resulting method, for example `rum_f` or `shuffle`.
      scores_name: what the scores are, for readers; in the hyper-parameters their hash follows it.

    Raises:
      InputError: on an unknown order or policy, if a method needs second moments and names no
        projection, or if one that replays the recorded run is to take a step whose training set or
        start is not that of the run: with the policy `nested` any step but the first.

    Raises (when called):
      InputError: if the scores are of another training set, the forget set has fewer examples than
        there are parts, or a method needs held-out data that the problem does not have.
      DivergenceError: as the methods do.
    """
    methods = (methods,) * count if isinstance(methods, Method) else tuple(methods)
    for what, value, known in (
        ("order", order, ORDERS),
        ("retain_policy", retain_policy, RETAIN_POLICIES),
    ):
        if value not in known:
            raise InputError(f"unknown {what} {value!r}; choose one of {list(known)}")
    if not methods:
        raise InputError("rum needs a method: one, or one for each part")
    fold = Refined(np.asarray(scores, np.float64), methods, order, retain_policy, tie_seed)
    fold.refuse_what_cannot_work()
    texts = [str(method) for method in methods]
    return Method(
        name,
        {
            "count": len(methods),
            "methods": texts[0] if len(set(texts)) == 1 else texts,
            "order": order,
            "retain": retain_policy,
            "scores": ":".join(filter(None, (scores_name, scores_hash(scores)))),
            "tie_seed": tie_seed,
        },
        frozenset({"run"}).union(*(method.needs for method in methods)),
        fold,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Refined:
    """`Method.unlearn` of RUM, see `rum`.

    Attributes:
      scores: `[N]` float64.
      methods: one for each part, low first; their code is part of what the result depends on.
      order: which part comes first.
      retain_policy: what a step retains.
      tie_seed: of the partition.
    """

    scores: np.ndarray
    methods: tuple[Method, ...]
    order: str
    retain_policy: str
    tie_seed: int

    def refuse_what_cannot_work(self) -> None:
        """Refuses moments of unknown form, and replays in a step that is not the run's own."""
        for method in self.methods:
            if "statistics" in method.needs and method.hyperparameters.get("projection") is None:
                raise InputError(
                    f"{method} needs statistics but names no projection; RUM cannot make them"
                )
        whole = 1 if self.retain_policy == "nested" or len(self.methods) == 1 else 0
        for method in self._in_order(self.methods)[whole:]:
            if "run" in method.needs:
                raise InputError(
                    f"{method} needs the recorded run, which a later step of RUM does not have; "
                    "choose a method without it, or use it in the first step (or in one part)"
                )

    def _in_order(self, items: Sequence) -> tuple:
        return tuple(items) if self.order == "low_to_high" else tuple(reversed(items))

    def steps(self, ids: np.ndarray, num_examples: int) -> tuple[Step, ...]:
        """The steps of a forget set, in their order."""
        if num_examples != len(self.scores):
            raise InputError(
                f"there are {len(self.scores)} scores and {num_examples} training examples; "
                "give the scores of this training set"
            )
        count = len(self.methods)
        parts = (ids,)
        if count > 1:
            parts = partition(self.scores, ids, count, tie_seed=self.tie_seed)
        return plan_steps(
            self._in_order(parts), self._in_order(self.methods), num_examples, self.retain_policy
        )

    def __call__(self, key: jax.Array, access: Access) -> Unlearned:
        """Takes all steps; costs are sums, `info["steps"]` says what each did."""
        run, held_out = access.run, None
        if any("held_out" in method.needs for method in self.methods):
            held_out = access.held_out
        steps = self.steps(access.forget_ids, len(run.dataset))
        state, results, reports = run.state, [], []
        for number, (step, own) in enumerate(zip(steps, step_keys(key, len(steps)), strict=True)):
            problem, prepared = step_problem(run, state, step, access, held_out)
            progress = part_of_progress(access.progress, number, len(steps))
            result = step.method(own, problem, progress)
            results += [*prepared, result]
            reports.append(_report(step, state, result))
            state = state._replace(params=result.params, model_state=result.model_state)
        info = {"steps": reports}
        warnings = [result.info["warning"] for result in results if result.info.get("warning")]
        if warnings:
            info["warning"] = "; ".join(dict.fromkeys(warnings))
        return Unlearned(
            state.params,
            state.model_state,
            sum(result.example_gradients for result in results),
            info,
            seconds=sum(result.seconds for result in results),
        )


def plan_steps(
    parts: Sequence[np.ndarray],
    methods: Sequence[Method],
    num_examples: int,
    retain_policy: str = "nested",
) -> tuple[Step, ...]:
    """The steps of parts that are unlearned in the given order.

    Args:
      parts: disjoint ids.
      methods: one for each.
      num_examples: size of the training set.
      retain_policy: one of `RETAIN_POLICIES`.

    Raises:
      InputError: if the parts overlap.
    """
    everything = np.concatenate(list(parts))
    if len(np.unique(everything)) < len(everything):
        raise InputError("the parts overlap; an example is unlearned once")
    steps = []
    for number, (part, method) in enumerate(zip(parts, methods, strict=True), start=1):
        gone = everything if retain_policy == "final" else np.concatenate(list(parts[:number]))
        retain = np.setdiff1d(np.arange(num_examples), gone)
        steps.append(Step(method, np.sort(part), retain))
    return tuple(steps)


def step_keys(key: jax.Array, count: int) -> list[jax.Array]:
    """A typed key for each step; the only step of one part has the method's own."""
    if count == 1:
        return [key]
    # Not `fold_in(key, j)`: that is what a method makes of its key for its own step j.
    base = jax.random.fold_in(key, _KEYS)
    return [jax.random.fold_in(base, number) for number in range(count)]


def step_problem(
    run: Run, state: TrainState, step: Step, access: Access, held_out=None
) -> tuple[Problem, list[Unlearned]]:
    """The problem of one step, and what had to be made for it.

    Args:
      run: the original run.
      state: what the step before left.
      step: the step.
      access: of the whole problem.
      held_out: examples never trained on, if a method needs them.

    Returns:
      A problem whose training set is what this step forgets and retains, counted from 0 again; and
      the cost of second moments, where a method needs those of a model that is no longer the
      original one. The first are of the preparation and free.
    """
    kept = np.union1d(step.forget, step.retain)
    whole = len(kept) == len(run.dataset)
    current = run if whole else _reduced(run, state, kept)
    statistics, spent = None, []
    if "statistics" in step.method.needs:
        statistics, spent = _moments(current, step.method, access if whole else None)
    forget = np.searchsorted(kept, step.forget)
    return Problem(current, forget, held_out, access.store, statistics), spent


def _reduced(run: Run, state: TrainState, kept: np.ndarray) -> Run:
    """A run of the kept examples that ended in `state`, with nothing to replay."""
    return dataclasses.replace(
        run,
        state=state,
        dataset=run.dataset.take(kept),
        weights=run.weights[kept],
        schedule=run.schedule[:0],
        losses=run.losses[:0],
        snapshots=Snapshots({}),
    )


def _moments(run: Run, method: Method, access: Access | None) -> tuple[Statistics, list[Unlearned]]:
    """Moments of what the model has learned: the recorded ones, or one more pass and its cost."""
    options = parse_projection(method.hyperparameters["projection"]).options
    if access is not None:
        return access.statistics(options), []
    params, model_state = run.state.params, run.state.model_state
    found = input_statistics(
        run.spec, params, model_state, run.dataset, options, weights=run.weights != 0
    )
    spent = Unlearned(params, model_state, found.example_gradients, seconds=found.seconds)
    return found, [spent]


def _report(step: Step, before: TrainState, result: Unlearned) -> dict:
    return {
        "method": str(step.method),
        "forget": len(step.forget),
        "retain": len(step.retain),
        "input": tree.content_hash(before.params),
        "output": tree.content_hash(result.params),
        "example_gradients": float(result.example_gradients),
        "seconds": float(result.seconds),
    }
