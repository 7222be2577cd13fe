"""Which method for which part: chosen on a development forget set, every part with the same budget.

    greedy      part 1 first; then part 2 after the method chosen for part 1; ...: K * C trials
    exhaustive  every choice of C candidates for K parts: C ** K trials

A trial is one application of RUM for each development seed. Its value is the mean tug of war
against the twin (or against independent retrains), which have forgotten the whole development set.
A greedy trial leaves later parts as they are, and its forgotten accuracy is that on the parts up to
its own: parts that nothing has been done to yet would reward whoever overshoots on this one. For
the last part it is the tug of war itself.

Design: a trial is an ordinary result of RUM in the store under its own address, so a killed
selection goes on where it was. Rejected: resuming from the models of the chosen prefix, which
saves steps but gives results that no store would know.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from unroll import methods
from unroll.checkpoint import Store
from unroll.data.forget import retain_ids
from unroll.errors import DivergenceError, InputError
from unroll.evaluation.records import ORIGINAL
from unroll.evaluation.study import Study, TaskProgress, apply_method, silent
from unroll.memorization.refinement import partition
from unroll.memorization.rum import rum
from unroll.metrics.tow import tow
from unroll.problem import Method, Problem
from unroll.training.predict import predict
from unroll.training.run import Run, train
from unroll.types import Params, PyTree

SEARCHES = ("greedy", "exhaustive")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One choice of methods that was tried.

    Attributes:
      part: number of the part that was being decided, from 1; 0 if all were at once.
      methods: texts of the methods, low part first.
      value: mean over the development seeds; `None` where a model diverged.
      values: tug of war by development seed.
      example_gradients: spent on all seeds.
      seconds: spent on all seeds.
      note: why there is no value.
    """

    part: int
    methods: list[str]
    value: float | None
    values: dict[str, float]
    example_gradients: float
    seconds: float
    note: str | None = None


@dataclasses.dataclass(frozen=True)
class Selection:
    """What was chosen, and what that took.

    Attributes:
      methods: texts, low part first.
      trials: in the order in which they were tried.
    """

    methods: tuple[str, ...]
    trials: tuple[Trial, ...]

    @property
    def example_gradients(self) -> float:
        """Spent on all trials; the development models and their oracles are not counted."""
        return sum(trial.example_gradients for trial in self.trials)

    @property
    def seconds(self) -> float:
        """Spent on all trials."""
        return sum(trial.seconds for trial in self.trials)


def select_methods(
    study: Study,
    scores: np.ndarray,
    candidates: Sequence[str],
    *,
    count: int = 3,
    search: str = "greedy",
    oracle: str = "twin",
    retain_policy: str = "nested",
    tie_seed: int = 0,
    store: Store | None = None,
    progress: TaskProgress = silent,
) -> Selection:
    """Chooses a method for each part of a forget set like the given one.

    Args:
      study: the development request: its forget set, training seeds and test set are used to
        choose, so they should not be those of a report. Its methods are not looked at.
      scores: `[N]` of the training set, larger is more memorized.
      candidates: texts of methods, tried in this order; the first of equals is chosen, so list
        `original` (do nothing) first.
      count: number of parts K.
      search: one of `SEARCHES`.
      oracle: `twin`, or `independent` for the mean over the study's independent retrains.
      retain_policy: see `unroll.memorization.rum.rum`.
      tie_seed: likewise.
      store: where runs, retrains and trials live.
      progress: opens a progress display for each task.

    Raises:
      InputError: on an unknown search or oracle, no candidate or one twice, or one that cannot take
        a step of RUM, before any training.
      DivergenceError: if an original or an oracle diverges, or all candidates for a part do.
    """
    for what, value, known in (
        ("search", search, SEARCHES),
        ("oracle", oracle, ("twin", "independent")),
    ):
        if value not in known:
            raise InputError(f"unknown {what} {value!r}; choose one of {list(known)}")
    if not candidates or len(set(candidates)) < len(candidates):
        raise InputError(f"candidates={list(candidates)} must be one or more, each of them once")

    def build(texts: Sequence[str]) -> Method:
        chosen = [methods.method(text) for text in texts]
        return rum(scores, chosen, retain_policy=retain_policy, tie_seed=tie_seed, name="trial")

    choices = list(itertools.product(candidates, repeat=count))
    if search == "greedy":
        choices = [(candidate,) * count for candidate in candidates]
    for texts in choices:
        build(texts)
    cases = list(_cases(study, scores, count, oracle, tie_seed, store, progress))
    trials = []
    with progress(f"selection ({search})") as report:
        total = count * len(candidates) if search == "greedy" else len(choices)

        def best(part: int, tried: Sequence[Sequence[str]]) -> tuple[str, ...]:
            found = []
            for texts in tried:
                found.append(_trial(cases, build(texts), part, texts, store))
                report(len(trials) + len(found), total)
            trials.extend(found)
            known = [trial for trial in found if trial.value is not None]
            if not known:
                raise DivergenceError(f"every candidate diverged: {found[0].note}")
            return tuple(max(known, key=lambda trial: trial.value).methods)

        if search == "exhaustive":
            return Selection(best(0, choices), tuple(trials))
        chosen = (ORIGINAL,) * count
        for part in range(1, count + 1):
            before, after = chosen[: part - 1], chosen[part:]
            chosen = best(part, [(*before, candidate, *after) for candidate in candidates])
        return Selection(chosen, tuple(trials))


class _Case:
    """One development seed: the problem, the splits of each part, and the oracles' accuracies."""

    def __init__(self, study: Study, seed: int, run: Run, oracles: Sequence[Run], parts, store):
        self.seed, self.problem = seed, Problem(run, study.forget, store=store)
        self._study, self._parts = study, parts
        self._retain = retain_ids(study.forget, len(study.train))
        self._oracles = [
            self._accuracies(each.state.params, each.state.model_state) for each in oracles
        ]

    def _accuracies(self, params: Params, model_state: PyTree) -> list[dict[str, float]]:
        """Accuracies by split, with the parts up to each one as the forgotten split."""
        study, correct = self._study, {}
        for name, data in (("train", study.train), ("test", study.test)):
            logits = predict(study.spec, params, model_state, data)
            if not np.isfinite(logits).all():
                raise DivergenceError(f"logits on the {name} set are not finite")
            correct[name] = logits.argmax(axis=-1) == data.labels
        common = {"retain": correct["train"][self._retain], "test": correct["test"]}
        rows = (np.concatenate(self._parts[: number + 1]) for number in range(len(self._parts)))
        return [
            {split: float(np.mean(each)) for split, each in own.items()}
            for own in ({"forget": correct["train"][ids], **common} for ids in rows)
        ]

    def value(self, part: int, params: Params, model_state: PyTree) -> float:
        """Tug of war of a model that has unlearned the parts up to this one; 0 is all of them."""
        own = self._accuracies(params, model_state)[part - 1]
        return float(np.mean([tow(own, oracle[part - 1]) for oracle in self._oracles]))


def _cases(study, scores, count, oracle, tie_seed, store, progress):
    parts = partition(scores, study.forget, count, tie_seed=tie_seed)
    independents = []
    if oracle == "independent":
        retain = retain_ids(study.forget, len(study.train))
        spec = study.independent_spec or study.spec
        for seed in study.independent_seeds[: study.independents]:
            with progress(f"selection: independent retrain {seed}") as report:
                schedule = study.schedule(seed, retain)
                independents.append(
                    train(spec, study.train, schedule, seed=seed, store=store, progress=report)
                )
    for seed in study.train_seeds:
        schedule, runs = study.schedule(seed), []
        weights = np.ones(len(study.train), np.float32)
        weights[study.forget] = 0.0
        for given in (None, weights) if oracle == "twin" else (None,):
            with progress(f"selection: seed {seed}") as report:
                options = dict(seed=seed, weights=given, store=store, progress=report)
                runs.append(train(study.spec, study.train, schedule, **options))
        yield _Case(study, seed, runs[0], runs[1:] or independents, parts, store)


def _trial(cases: Sequence[_Case], method: Method, part: int, texts, store) -> Trial:
    values, gradients, seconds, note = {}, 0.0, 0.0, None
    for case in cases:
        try:
            result = apply_method(method, 0, case.problem, store, None)
            value = case.value(part, result.params, result.model_state)
        except DivergenceError as error:
            note = f"seed {case.seed}: {error}"
            break
        gradients += result.example_gradients
        seconds += result.seconds
        values[str(case.seed)] = value
    mean = float(np.mean(list(values.values()))) if note is None else None
    return Trial(part, list(texts), mean, values, gradients, seconds, note)
