"""Approximate unlearning in four steps, each a part that can be exchanged.

    influence     what leaving S out changes           InverseCurvature, AlongTrajectory
    adjustment    the parameters moved by it           NewtonStep, TaylorSum
    noise         Gaussian noise on the parameters     output_noise: NoNoise, OutputNoise
    validation    metrics that accept or refuse        validation: Check, ...

InverseCurvature is `(H + damping I)^-1 v` with v the change of the mean gradient (see
`unroll.methods.influence`) and H the Hessian or Gauss-Newton matrix of the retained examples at the
original parameters: a step towards the optimum of the mean retained loss, which is what a run with
`denominator="renormalise"` trains for. AlongTrajectory is the Taylor series of the run itself
(`unroll.unrolling.taylor`), whose first term is the tangent.

Noise guarantees something only where the distance to the model of comparison has a bound that was
*proved*; then the sensitivity is fixed beforehand, the noise hides a shift of that length, and an
update whose bound turns out larger is refused. A *measured* distance to a retrained model bounds
nothing: the noise is then what would be needed if the sensitivity were that, and the report says
so.

Design: the update is judged as it would be served, with its noise; when a check fails the old model
is what comes back. A check that is not a number fails. Rejected: noise scaled to the bound that a
request happens to have; the scale would tell about the request. Rejected: the operators of
`methods.influence`, which are private to its one method: here they are those of
`unrolling.curvature`, so models must be without dropout and running averages, where both agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np

from unroll import tree
from unroll.data.dataset import Dataset
from unroll.deletion.inverse_products import Solution, arnoldi, conjugate_gradients, lissa
from unroll.deletion.output_noise import Noisy, NoNoise, OutputNoise
from unroll.deletion.validation import Candidate, Check, Checked, require
from unroll.errors import DivergenceError, InputError
from unroll.methods.influence import mean_gradient_change
from unroll.problem import Problem
from unroll.training.run import Progress
from unroll.training.timing import Stopwatch
from unroll.types import Params, PyTree
from unroll.unrolling.curvature import Curvature, CurvatureBatch
from unroll.unrolling.forget_gradient import check_assumptions
from unroll.unrolling.taylor import removal_series, sum_series

SOLVERS = ("cg", "lissa", "arnoldi")


class Change(NamedTuple):
    """What leaving the forget set out changes.

    Attributes:
      terms: changes of the parameters, trees of float64 arrays, by order from 1 on.
      model_state: the other variables of the changed model.
      example_gradients: spent.
      info: JSON-able.
    """

    terms: list[Params]
    model_state: PyTree
    example_gradients: float
    info: dict[str, Any]


class Influence(Protocol):
    """The first step."""

    def __call__(
        self, key: jax.Array, problem: Problem, progress: Progress | None = None
    ) -> Change: ...


@dataclasses.dataclass(frozen=True)
class InverseCurvature:
    """`(H + damping I)^-1 v` at the original parameters; nothing is trained.

    Attributes:
      solver: `cg`, `lissa` or `arnoldi`, see `unroll.deletion.inverse_products`.
      curvature: `gauss_newton` or `hessian`.
      damping: added to the diagonal.
      examples: retained examples that H is of, drawn by the key; at most all.
      iterations: of the solver.
      tolerance: of `cg`.
      step: of `lissa`.
      rank: of `arnoldi`.
      batch_size: examples evaluated at once, and of one iteration of `lissa`.

    Raises:
      InputError: (when called) for a model with dropout, augmentation or running averages.
    """

    solver: Literal["cg", "lissa", "arnoldi"] = "cg"
    curvature: Literal["gauss_newton", "hessian"] = "gauss_newton"
    damping: float = 0.1
    examples: int = 1000
    iterations: int = 50
    tolerance: float = 1e-3
    step: float = 0.1
    rank: int = 20
    batch_size: int = 64

    def __post_init__(self):
        if self.solver not in SOLVERS:
            raise InputError(f"unknown solver {self.solver!r}; choose one of {SOLVERS}")

    def __call__(
        self, key: jax.Array, problem: Problem, progress: Progress | None = None
    ) -> Change:
        run, retain = problem.run, problem.retain
        # v and H are of the mean loss of what is retained, whatever the run divided by.
        as_mean = dataclasses.replace(run.spec, denominator="batch")
        check_assumptions(dataclasses.replace(run, spec=as_mean), "the inverse curvature")
        weights = run.weights[retain]
        data = problem.forget_data, problem.retain_data
        vector = mean_gradient_change(run.spec, run.state, *data, weights, self.batch_size)
        if self.examples < len(retain):
            drawn = np.asarray(jax.random.permutation(key, len(retain)))[: self.examples]
            retain = retain[np.sort(drawn)]
        solution, each = self._solve(problem, retain, vector)
        kind = 4 / 3 if self.curvature == "gauss_newton" else 2
        if progress is not None:
            progress(1, 1)
        terms = [shaped_like(run.state.params, solution.vector)]
        spent = len(run.dataset) + solution.products * kind * each
        info = {"examples": len(retain), **solution.info}
        return Change(terms, run.state.model_state, spent, info)

    def _solve(self, problem, ids, vector) -> tuple[Solution, float]:
        """The solution, and the examples that one of its products is of."""
        if self.solver == "lissa":
            parts = np.array_split(ids, -(-len(ids) // self.batch_size))
            operators = [self._operator(problem, part) for part in parts]
            options = dict(step=self.step, iterations=self.iterations)
            solution = lissa(operators, vector, self.damping, **options)
            return solution, len(ids) / len(parts)
        operator = self._operator(problem, ids)
        if self.solver == "arnoldi":
            options = dict(rank=self.rank, iterations=max(self.iterations, self.rank))
            return arnoldi(operator, vector, self.damping, **options), len(ids)
        options = dict(iterations=self.iterations, tolerance=self.tolerance)
        return conjugate_gradients(operator, vector, self.damping, **options), len(ids)

    def _operator(self, problem: Problem, ids: np.ndarray) -> Curvature:
        run = problem.run
        batch = CurvatureBatch(run.dataset, ids, run.weights[ids], chunk_size=self.batch_size)
        return Curvature(run.spec, run.state.params, batch, kind=self.curvature)


@dataclasses.dataclass(frozen=True)
class AlongTrajectory:
    """The Taylor series of the recorded run in the weights of the forget set.

    Attributes:
      order: number of terms; 1 is the tangent.
    """

    order: int = 1

    def __call__(
        self, key: jax.Array, problem: Problem, progress: Progress | None = None
    ) -> Change:
        del key
        series = removal_series(problem.run, problem.forget, self.order, progress)
        terms = [
            jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params)
            for state in series.coefficients[1:]
        ]
        state = sum_series(series.coefficients).model_state
        return Change(terms, state, series.example_gradients, {"start": series.start})


@dataclasses.dataclass(frozen=True)
class NewtonStep:
    """The first term, times `scale`; 1 is Newton's step."""

    scale: float = 1.0

    def __call__(self, params: Params, terms: list[Params]) -> Params:
        return _moved(params, [jax.tree.map(lambda leaf: self.scale * leaf, terms[0])])


@dataclasses.dataclass(frozen=True)
class TaylorSum:
    """The sum of all terms."""

    def __call__(self, params: Params, terms: list[Params]) -> Params:
        return _moved(params, terms)


def _moved(params: Params, terms: list[Params]) -> Params:
    def add(leaf, *changes):
        return (np.asarray(leaf, np.float64) + sum(changes)).astype(leaf.dtype)

    moved = jax.tree.map(add, params, *terms)
    if not tree.is_finite(moved):
        raise DivergenceError("the adjusted parameters are not finite; raise the damping")
    return moved


def shaped_like(params: Params, vector: np.ndarray) -> Params:
    """A flat vector `[P]`, in the order of `tree.flatten`, as a tree like the parameters."""
    leaves, structure = jax.tree.flatten(params)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    parts = np.split(np.asarray(vector, np.float64), ends)
    return structure.unflatten(
        [part.reshape(np.shape(leaf)) for part, leaf in zip(parts, leaves, strict=True)]
    )


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found, for the record of a deletion.

    Attributes:
      checks: each metric with its value, thresholds and verdict.
      statement: what the noise means, in a sentence.
      guarantee: (epsilon, delta) of the update, if it was accepted and a proved sensitivity covers
        it; else `None`.
      info: of the influence.
    """

    checks: tuple[Checked, ...]
    statement: str
    guarantee: tuple[float, float] | None
    info: dict[str, Any]

    def __str__(self) -> str:
        return "\n".join([*map(str, self.checks), self.statement])


@dataclasses.dataclass(frozen=True, eq=False)
class PipelineResult:
    """The outcome of a request.

    Attributes:
      accepted: whether the update passed; if not, the model is the old one.
      params: parameters to serve.
      model_state: the other variables to serve.
      report: what was found.
      cost: `example_gradients` and `seconds` without compilation, the checks not counted.
      candidate: parameters of the update, also where it was refused.
    """

    accepted: bool
    params: Params
    model_state: PyTree
    report: Report
    cost: dict[str, float]
    candidate: Params


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Influence, adjustment, noise, validation.

    Attributes:
      influence: `(key, problem, progress) -> Change`.
      adjustment: `(params, terms) -> params`.
      noise: `(key, problem, params, twin) -> Noisy`.
      validation: checks; none accepts everything.
    """

    influence: Influence = InverseCurvature()
    adjustment: Callable[[Params, list[Params]], Params] = NewtonStep()
    noise: NoNoise | OutputNoise = NoNoise()
    validation: tuple[Check, ...] = ()

    def run(
        self,
        key: jax.Array,
        problem: Problem,
        *,
        test: Dataset | None = None,
        twin: Params | None = None,
        progress: Progress | None = None,
    ) -> PipelineResult:
        """Serves a request, or keeps the old model.

        Args:
          key: typed key; of the noise, and of what the influence draws.
          problem: the request; its forget set is not empty.
          test: examples never trained on, for checks that ask for them.
          twin: parameters retrained without the forget set, likewise.
          progress: of the influence.

        Raises:
          InputError: if a check or the noise needs something that is not given, or a part does not
            fit the run.
          DivergenceError: if the influence or the adjusted parameters are not finite.
        """
        if not len(problem.forget):
            raise InputError("there is nothing to forget; give the problem at least one id")
        require(self.validation, test, twin)
        watch = Stopwatch()
        change = self.influence(jax.random.fold_in(key, 0), problem, progress)
        original = problem.run.state
        adjusted = self.adjustment(original.params, change.terms)
        noisy: Noisy = self.noise(jax.random.fold_in(key, 1), problem, adjusted, twin)
        cost = {"example_gradients": change.example_gradients, "seconds": watch.seconds()}
        candidate = Candidate(problem, noisy.params, change.model_state, test, twin)
        checks = tuple(check(candidate) for check in self.validation)
        accepted = noisy.covered and all(check.passed for check in checks)
        guarantee = noisy.guarantee if accepted else None
        info = dict(change.info)
        if noisy.distance is not None:
            info["distance"] = noisy.distance
        report = Report(checks, noisy.statement, guarantee, info)
        served = (noisy.params, change.model_state)
        if not accepted:
            served = (original.params, original.model_state)
        return PipelineResult(accepted, *served, report, cost, noisy.params)
