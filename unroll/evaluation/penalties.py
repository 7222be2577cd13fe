"""What a penalty buys: curvature, distance travelled and verification error, at what accuracy.

*Unrolling SGD* (arXiv 2109.13398, section 5) penalises training so that unlearning later has a
lower verification error. Two horizons of one recipe are measured, since the single gradient is
worse than doing nothing where eta t sigma is large:

    training       T steps from the initialisation; run and twin from the same w_0
    fine-tuning    further steps at a small rate from the end of the *twin*, a model that never saw
                   the forget set, which is used now for the first time, as in the paper

Design: one row for each penalty, strength, seed and horizon; runs of one seed share initialisation
and batches, so a penalty is compared with no penalty in pairs. Rejected: a pretrained model of its
own for the second horizon; the twin is one already.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unroll import methods, tree
from unroll.checkpoint import Store
from unroll.data.dataset import Dataset
from unroll.errors import DivergenceError, InputError
from unroll.metrics.outputs import accuracy
from unroll.objectives import Objective
from unroll.problem import Problem, Unlearned
from unroll.training.loop import advance, device_examples
from unroll.training.optimizer import optax_call
from unroll.training.predict import predict
from unroll.training.record import Record
from unroll.training.run import Run, train
from unroll.training.spec import TrainSpec
from unroll.training.step import initial_state, start_state
from unroll.training.timing import Stopwatch
from unroll.unrolling.curvature import CurvatureBatch, largest_eigenvalue
from unroll.unrolling.forget_gradient import sgd_of_run
from unroll.unrolling.unlearning_error import unlearning_errors

NONE = "none"
PENALTIES = {
    "sd_gamma": "SD",
    "hessian_gamma": "softmax Hessian",
    "singular_gamma": "singular value",
    "l2": "weight decay",
}
"""The four penalties, by the field of `Objective` that weighs them."""
TRAINING, FINE_TUNING = "training", "fine-tuning"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One penalty at one strength, for one seed and horizon. Measured fields are `None` for a run
    that diverged; `note` says so.

    Attributes:
      dataset: name of the training set.
      model: call of the model.
      forget: call of the forget set.
      penalty: `none`, or one of the values of `PENALTIES`.
      strength: its weight in the objective.
      seed: training seed.
      horizon: `training` or `fine-tuning`.
      forget_size: number of forgotten examples.
      steps: t.
      learning_rate: eta, mean over the steps; with momentum mu divided by 1 - mu.
      accuracy: share of the test set that the original gets right.
      retrained_accuracy: the same of the twin.
      sigma: largest |eigenvalue| of the Hessian of the loss *without* penalty at w_t.
      training_sigma: the same with the penalty in the loss, except the singular-value penalty.
      displacement: `||w_t - w_0||`.
      no_unlearning: `||w_t - w'_t||`, the verification error of doing nothing.
      errors: verification error of each method, `None` where it failed.
      proxies: unlearning errors by name; empty where they were not asked for.
      step_cost: seconds of a training step over those of a step without penalty.
      note: why a number is missing, or what a method says about its result.
    """

    dataset: str
    model: str
    forget: str
    penalty: str
    strength: float
    seed: int
    horizon: str
    forget_size: int = 0
    steps: int = 0
    learning_rate: float | None = None
    accuracy: float | None = None
    retrained_accuracy: float | None = None
    sigma: float | None = None
    training_sigma: float | None = None
    displacement: float | None = None
    no_unlearning: float | None = None
    errors: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    proxies: Mapping[str, float] = dataclasses.field(default_factory=dict)
    step_cost: float | None = None
    note: str | None = None

    @property
    def cell(self) -> tuple:
        """What its rows of all horizons share."""
        return self.dataset, self.model, self.forget, self.penalty, self.strength, self.seed

    @property
    def eta_t_sigma(self) -> float | None:
        """`eta t sigma`, without a unit: from about 5 on, single gradients do harm."""
        if self.sigma is None or self.learning_rate is None:
            return None
        return self.learning_rate * self.steps * self.sigma

    def relative_error(self, method: str) -> float | None:
        """Verification error over the no-unlearning distance; `None` where it is missing."""
        error = self.errors.get(method)
        return None if error is None or not self.no_unlearning else error / self.no_unlearning


class Stage(NamedTuple):
    """One horizon of one seed: the run, its twin, and the ids to forget."""

    horizon: str
    run: Run
    twin: Run
    forget: np.ndarray


def penalty_of(objective: Objective) -> tuple[str, float]:
    """Name and strength of the one penalty of an objective, `("none", 0.0)` without.

    Raises:
      InputError: if it has more than one.
    """
    found = [(name, getattr(objective, field)) for field, name in PENALTIES.items()]
    found = [(name, strength) for name, strength in found if strength]
    if len(found) > 1:
        raise InputError(
            f"penalties are compared one at a time, but the objective has {len(found)}: "
            f"{', '.join(name for name, _ in found)}"
        )
    return found[0] if found else (NONE, 0.0)


def without_penalty(spec: TrainSpec) -> TrainSpec:
    """The same recipe with the bare loss."""
    return dataclasses.replace(spec, objective=Objective(loss=spec.objective.loss))


def train_stage(
    horizon: str,
    spec: TrainSpec,
    dataset: Dataset,
    schedule: np.ndarray,
    forget: np.ndarray,
    seed: int,
    *,
    start: Run | None = None,
    store: Store | None = None,
) -> Stage:
    """Trains the run and its twin.

    Args:
      horizon: its name.
      spec: how to train.
      dataset: the training set.
      schedule: int32 `[T, B]`.
      forget: ids to forget.
      seed: of the run's key.
      start: finished run whose parameters are w_0, with a fresh state of the optimiser; none by
        default: w_0 is drawn from the seed.
      store: where finished runs live.

    Raises:
      DivergenceError: if one of the two diverges.
    """
    weights = np.ones(len(dataset), np.float32)
    weights[forget] = 0.0
    initial = None
    if start is not None:
        state = start.state
        initial = start_state(spec, jax.random.key(seed), state.params, state.model_state)
    middle = max(len(schedule) // 2, 1)
    run, twin = (
        train(
            spec,
            dataset,
            schedule,
            seed=seed,
            initial=initial,
            store=store,
            weights=omega,
            record=Record(steps=kept),
        )
        for omega, kept in ((None, (middle,)), (weights, ()))
    )
    return Stage(horizon, run, twin, forget)


def unlearn(stage: Stage, texts: Sequence[str]) -> tuple[dict[str, Unlearned | None], str | None]:
    """Applies methods, given as calls; `None` for one that failed, with the reasons in a note."""
    problem = Problem(stage.run, stage.forget)
    found, notes = {}, []
    for text in texts:
        method = methods.method(text)
        try:
            result = method(jax.random.key(stage.run.seed), problem)
            if not tree.is_finite(result.params):
                raise DivergenceError(f"{method}: the unlearned parameters are not finite")
        except (DivergenceError, InputError) as error:
            found[text] = None
            notes.append(str(error))
            continue
        found[text] = result
        notes += [f"{method}: {result.info['warning']}"] if "warning" in result.info else []
    return found, "; ".join(notes) or None


def accuracy_on(run: Run, test: Dataset) -> float:
    """Share of the test set that the final model of a run gets right, in [0, 1]."""
    # The objective and the rate do not matter here, and each would compile a program of its own.
    spec = _curvature_spec(without_penalty(run.spec))
    return accuracy(predict(spec, run.state.params, run.state.model_state, test), test.labels)


def measure(
    stage: Stage, test: Dataset, texts: Sequence[str], batch: CurvatureBatch, *, proxies: bool
) -> dict[str, Any]:
    """The measured fields of an `Outcome`, all but the cost of a step.

    Args:
      stage: the runs.
      test: test set.
      texts: methods, as calls.
      batch: the examples that curvature is measured on.
      proxies: whether to measure the unlearning errors too, with sigma at the start and the end.

    Raises:
      InputError: if run and twin are equal.
      DivergenceError: if the curvature is not finite.
    """
    run, twin = stage.run, stage.twin
    scale = tree.distance(run.state.params, twin.state.params)
    if scale == 0:
        raise InputError("the original and the retrained model are equal: nothing was forgotten")
    unlearned, note = unlearn(stage, texts)
    rule = sgd_of_run(run)
    sigmas = [
        largest_eigenvalue(
            _curvature_spec(spec),
            run.state.params,
            batch,
            model_state=run.state.model_state,
            step=run.steps,
        ).sigma
        for spec in (without_penalty(run.spec), run.spec)
    ]
    return dict(
        forget_size=len(stage.forget),
        steps=run.steps,
        learning_rate=float(rule.learning_rates.mean() / (1.0 - rule.momentum)),
        accuracy=accuracy_on(run, test),
        retrained_accuracy=accuracy_on(twin, test),
        sigma=sigmas[0],
        training_sigma=sigmas[1],
        displacement=tree.distance(run.state.params, run.snapshots[0].params),
        no_unlearning=scale,
        errors={
            text: None
            if result is None
            else _finite(tree.distance(result.params, twin.state.params))
            for text, result in unlearned.items()
        },
        proxies=_proxies(stage, batch) if proxies else {},
        note=note,
    )


def _curvature_spec(spec: TrainSpec) -> TrainSpec:
    """The same function of the weights for any optimiser, so that one program serves all."""
    objective = dataclasses.replace(spec.objective, singular_gamma=0.0)
    return dataclasses.replace(
        spec, objective=objective, optimizer=optax_call("sgd", learning_rate=1.0)
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _proxies(stage: Stage, batch: CurvatureBatch) -> dict[str, float]:
    found = unlearning_errors(stage.run, stage.forget, batch, steps=(stage.run.steps,))
    return dict(found.rows[-1].proxies)


def step_cost(spec: TrainSpec, run: Run, *, steps: int = 20, repetitions: int = 4) -> float:
    """Seconds of a training step over those of a step without penalty.

    Both are timed in turns and the fastest stretch of each counts, so that other work on the
    machine falls on both.

    Args:
      spec: the recipe with its penalty.
      run: a run of that recipe, for data, schedule and key.
      steps: steps of a stretch.
      repetitions: stretches of each.
    """
    plain = without_penalty(spec)
    if plain == spec:
        return 1.0
    examples = device_examples(run.dataset)
    operands = examples, jnp.asarray(run.weights), run.key, jnp.asarray(run.schedule)
    stop = min(steps, run.steps)
    seconds = {plain: [], spec: []}
    for turn in range(repetitions + 1):
        for recipe, times in seconds.items():
            state = initial_state(recipe, run.key, examples.inputs)
            losses = jnp.zeros(run.steps, jnp.float32)
            jax.block_until_ready(state)
            watch = Stopwatch()
            jax.block_until_ready(advance(recipe, state, losses, *operands, 0, stop))
            if turn:  # the first turn compiles
                times.append(watch.seconds())
    return min(seconds[spec]) / min(seconds[plain])


@dataclasses.dataclass(frozen=True)
class Matched:
    """A penalty where it costs a given accuracy, compared with no penalty seed by seed.

    Attributes:
      penalty: its name.
      strength: interpolated between two measured strengths, or the strongest measured.
      reached: whether the penalty costs as much accuracy anywhere; if not, this is the strongest.
      accuracy_loss: accuracy without it less accuracy with it, one number for each seed.
      ratios: for each measured quantity the ratio to that without penalty, one for each seed.
    """

    penalty: str
    strength: float
    reached: bool
    accuracy_loss: tuple[float, ...]
    ratios: Mapping[str, tuple[float, ...]]


def quantities(row: Outcome) -> dict[str, float | None]:
    """What penalties are compared by: all of these are better if smaller."""
    return {
        "sigma": row.sigma,
        "displacement": row.displacement,
        "no_unlearning": row.no_unlearning,
        **row.errors,
        **{f"relative {name}": row.relative_error(name) for name in row.errors},
    }


def match_accuracy(rows: Iterable[Outcome], tolerance: float) -> list[Matched]:
    """Each penalty at the strength at which it costs `tolerance` in mean accuracy.

    Strengths are walked from 0 upwards; at the first crossing every quantity is interpolated
    linearly between the two neighbours. A penalty that never costs as much is taken at its
    strongest; strengths at which a run diverged, or a quantity is missing that is there without
    penalty, end the walk.

    Args:
      rows: of one data set, model, forget set and horizon, `none` among them.
      tolerance: accuracy that may be lost, for example half the width of the interval of the
        accuracy without penalty.

    Raises:
      InputError: if there is no row without penalty, or it diverged.
    """
    by_setting: dict[tuple[str, float], dict[int, Outcome]] = {}
    for row in rows:
        by_setting.setdefault((row.penalty, row.strength), {})[row.seed] = row
    base = by_setting.pop((NONE, 0.0), None)
    if base is None or any(row.accuracy is None for row in base.values()):
        raise InputError("penalties are compared with none: add the variant without penalty")
    found = []
    for penalty in dict.fromkeys(name for name, _ in by_setting):
        path = [(0.0, *_against(base, base))]
        for (name, strength), members in sorted(by_setting.items()):
            if name != penalty or members.keys() != base.keys():
                continue
            if any(row.accuracy is None for row in members.values()):
                break
            lost, ratios = _against(members, base)
            if ratios.keys() != path[0][2].keys():
                break
            path.append((strength, lost, ratios))
        found.append(_at(penalty, path, tolerance))
    return found


def _against(members, base) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Accuracy lost `[seeds]` and ratios of all quantities `[seeds]`, seed by seed."""
    seeds = sorted(base)
    lost = np.array([base[seed].accuracy - members[seed].accuracy for seed in seeds])
    own = {seed: quantities(members[seed]) for seed in seeds}
    bare = {seed: quantities(base[seed]) for seed in seeds}
    names = [
        name
        for name in bare[seeds[0]]
        if all(bare[seed][name] and own[seed].get(name) is not None for seed in seeds)
    ]
    return lost, {name: np.array([own[s][name] / bare[s][name] for s in seeds]) for name in names}


def _at(penalty: str, path: list, tolerance: float) -> Matched:
    strength, lost, ratios = path[-1]
    reached = bool(lost.mean() >= tolerance)
    for (low, lost_low, ratios_low), (high, lost_high, ratios_high) in zip(
        path[:-1], path[1:], strict=True
    ):
        if lost_low.mean() <= tolerance < lost_high.mean():
            share = (tolerance - lost_low.mean()) / (lost_high.mean() - lost_low.mean())
            strength = low + share * (high - low)
            lost = lost_low + share * (lost_high - lost_low)
            ratios = {
                name: ratios_low[name] + share * (ratios_high[name] - ratios_low[name])
                for name in ratios_high
            }
            reached = True
            break
    return Matched(
        penalty,
        float(strength),
        reached,
        tuple(map(float, lost)),
        {name: tuple(map(float, values)) for name, values in ratios.items()},
    )
