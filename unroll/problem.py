"""What a deletion request is: a run, the ids to forget, and what a method may touch.

A method declares which models and data it needs and receives an `Access` that hands out no others,
so that "without the retain set" in a table is a fact and not a promise.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from unroll.calls import format_call
from unroll.checkpoint import Store
from unroll.data.dataset import Dataset
from unroll.data.forget import check_forget_ids, retain_ids
from unroll.errors import InputError
from unroll.training.joint import Parts
from unroll.training.run import Progress, Run
from unroll.training.spec import TrainSpec
from unroll.training.timing import Stopwatch
from unroll.types import Params, PyTree, TrainState
from unroll.unrolling.subspaces import LayerOptions, Statistics, record_statistics

NEEDS = ("original", "run", "forget", "retain", "held_out", "statistics")
"""What can be declared: the trained state; the recorded run with its training data; the forgotten
examples; the retained examples; data that was never trained on; second moments of the layers'
inputs, made when the run was finished. The specification and the ids to forget are nobody's
secret."""


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A deletion request.

    Attributes:
      run: the recorded original run.
      forget: ids of the training examples to forget; may be empty.
      held_out: examples never trained on that a method may use; none by default.
      store: where retrained models are looked up and kept.
      statistics: second moments of the layers' inputs over what the model has learned. By default
        those of the run's training set, from the store or computed where a method asks; given, they
        may be of a training set that is gone, or what a former deletion left of them.

    Raises:
      InputError: if an id is out of range or repeated, or everything is to be forgotten.
    """

    run: Run
    forget: np.ndarray
    held_out: Dataset | None = None
    store: Store | None = None
    statistics: Statistics | None = None

    def __post_init__(self):
        ids = check_forget_ids(self.forget, len(self.run.dataset), allow_empty=True)
        object.__setattr__(self, "forget", ids)

    @functools.cached_property
    def retain(self) -> np.ndarray:
        """Ids of the retained training examples."""
        return retain_ids(self.forget, len(self.run.dataset))

    @functools.cached_property
    def forget_data(self) -> Dataset:
        """The forgotten examples."""
        return self.run.dataset.take(self.forget)

    @functools.cached_property
    def retain_data(self) -> Dataset:
        """The retained examples."""
        return self.run.dataset.take(self.retain)

    @property
    def twin_weights(self) -> np.ndarray:
        """Example weights of the twin: the run's own, with zeros on the forget set."""
        weights = self.run.weights.copy()
        weights[self.forget] = 0.0
        return weights


@dataclasses.dataclass(frozen=True, eq=False)
class OwnKind:
    """What belongs to a model that is not one of the run's specification, such as a SISA system.

    Its parameters can be compared with those of its own kind only.

    Attributes:
      words: what it is, for reports, for example `SISA of 4 shards`.
      spec: how it predicts.
      original: parameters and model state before the deletion.
      twin: those of one trained from scratch without the forgotten examples, all else equal.
    """

    words: str
    spec: TrainSpec
    original: tuple[Params, PyTree]
    twin: tuple[Params, PyTree]


@dataclasses.dataclass(frozen=True, eq=False)
class Unlearned:
    """What a method returns.

    Attributes:
      params: parameters of the unlearned model, on the host.
      model_state: its other variable collections.
      example_gradients: example-gradient evaluations spent; a Hessian-vector product counts two.
      info: what else the method has to say, JSON-able; the key `warning` is shown in reports.
      seconds: time spent, where the method knows better than a clock around it (a result that was
        read from a store).
      own: given where the model is not of the run's specification.
    """

    params: Params
    model_state: PyTree
    example_gradients: float
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    own: OwnKind | None = None


class Access:
    """A problem as seen by a method that declared its needs."""

    def __init__(self, problem: Problem, needs: frozenset[str], progress: Progress | None = None):
        self._problem, self._needs = problem, needs
        self.progress = progress

    def _require(self, need: str) -> None:
        if need not in self._needs:
            raise InputError(
                f"the method uses {need!r} without declaring it; add it to the method's needs"
            )

    @property
    def spec(self) -> TrainSpec:
        """How the original was trained."""
        return self._problem.run.spec

    @property
    def forget_ids(self) -> np.ndarray:
        """Ids to forget."""
        return self._problem.forget

    @property
    def original(self) -> TrainState:
        """State of the original model after training."""
        self._require("original")
        return self._problem.run.state

    @property
    def run(self) -> Run:
        """The recorded run, with the training data that it used."""
        self._require("run")
        return self._problem.run

    @property
    def twin_weights(self) -> np.ndarray:
        """Example weights of the twin."""
        return self._problem.twin_weights

    @property
    def forget_data(self) -> Dataset:
        """The forgotten examples."""
        self._require("forget")
        return self._problem.forget_data

    @property
    def retain_data(self) -> Dataset:
        """The retained examples."""
        self._require("retain")
        return self._problem.retain_data

    def parts(self, retain: bool = True) -> Parts:
        """The training set in two parts, of which the retained one may be left out of reach."""
        retained = self.retain_data if retain else None
        return Parts(self.forget_data, self.forget_ids, retained, self.twin_weights)

    @property
    def held_out(self) -> Dataset:
        """Examples that were never trained on."""
        self._require("held_out")
        if self._problem.held_out is None:
            raise InputError("the method needs held-out data: give Problem(held_out=...)")
        return self._problem.held_out

    def statistics(self, options: LayerOptions) -> Statistics:
        """Second moments of the layers' inputs over all that was learned, forget set included.

        Made from the run, they belong to the preparation: once, before any deletion. Their cost is
        in them (`example_gradients`, `seconds`) and is none of the method's.

        Raises:
          InputError: if those that the problem was given keep something else than asked for.
        """
        self._require("statistics")
        given = self._problem.statistics
        if given is None:
            return record_statistics(self._problem.run, options, store=self._problem.store)
        if given.options != options:
            raise InputError(f"the problem's statistics have {given.options}, not {options}")
        return given

    @property
    def store(self) -> Store | None:
        """Where retrained models are kept."""
        return self._problem.store


@dataclasses.dataclass(frozen=True)
class Method:
    """An unlearning method with its hyper-parameters filled in.

    Attributes:
      name: name in the registry.
      hyperparameters: what distinguishes it from others of that name.
      needs: what it touches, a subset of `NEEDS`.
      unlearn: `(key, access) -> Unlearned`.
      own_kind: whether the models are not of the run's specification (`Unlearned.own`).
    """

    name: str
    hyperparameters: dict[str, Any]
    needs: frozenset[str]
    unlearn: Callable[[jax.Array, Access], Unlearned]
    own_kind: bool = False

    def __post_init__(self):
        unknown = sorted(self.needs - set(NEEDS))
        if unknown:
            raise InputError(f"method {self.name} needs {unknown}; known needs are {list(NEEDS)}")

    def __str__(self) -> str:
        return format_call(self.name, self.hyperparameters)

    def __call__(
        self, key: jax.Array, problem: Problem, progress: Progress | None = None
    ) -> Unlearned:
        """Unlearns; `Unlearned.seconds` is filled in, compilation not counted."""
        if "run" in self.needs or "retain" in self.needs or len(problem.forget):
            watch = Stopwatch()
            result = self.unlearn(key, Access(problem, self.needs, progress))
            if result.seconds is None:
                result = dataclasses.replace(result, seconds=watch.seconds())
            return result
        # A method that only sees the forget set has nothing to do when that is empty.
        state = problem.run.state
        return Unlearned(state.params, state.model_state, 0, seconds=0.0)
