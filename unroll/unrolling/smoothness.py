"""Whether metagradients of a recipe can be trusted: three trainings, two successive differences.

A derivative predicts what a small change of the weights does. It predicts a deletion only if the
run responds to the deletion as to a small change; where training is chaotic or has kinks, the
derivative is exact and useless. With trainings at `omega`, `omega + h v` and `omega + 2 h v`, final
parameters w_0, w_1, w_2, and d = |w_2 - w_0| entry by entry,

    score = sign(w_1 - w_0)^T diag(d / ||d||_1) sign(w_2 - w_1),

the empirical metasmoothness of arXiv 2503.13751, definition 2: 1 for a straight response, below 0
where the two steps point away from each other. Beside it, with losses l_0, l_1, l_2 of the examples
of a probe set,

    agreement = Spearman(l_1 - l_0, l_2 - l_1),

which asks the same of what is to be predicted.

Design: by default `omega + 2 h v` is a deletion, so the question asked is the one that matters, and
the recorded run is the first of the three trainings. Rejected: the score alone. Independent noise
in both steps scores about 0.45, since d favours the entries where the two add up; and a response
that is smooth but strongly curved at the size of a deletion scores high (SGD with rate 0.05 and
momentum 0.9 on the digits: score 0.9, agreement 0.5, datamodelling score 0.4).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.stats import rankdata

from unroll import tree
from unroll.checkpoint import Store
from unroll.data.dataset import Dataset
from unroll.data.forget import random_ids
from unroll.errors import InputError
from unroll.training.run import Progress, Run, part_of_progress, train
from unroll.types import Params
from unroll.unrolling.outcomes import evaluate, point_losses

LEAST_SCORE = 0.5
"""Metagradients are warned about below this score: independent noise scores about 0.45."""
LEAST_AGREEMENT = 0.6
"""... and below this agreement. Over 17 recipes on the digits (SGD at five rates, momentum, Adam;
gelu and relu) and four directions each, the two together warn in 26 of 28 cases where the
datamodelling score of 50 deletions of 1% is below 0.6, and in 3 of 40 where it is above 0.7."""
_PROBE_SIZE = 500


@dataclasses.dataclass(frozen=True)
class Smoothness:
    """How straight a run responds to a change of its example weights.

    Attributes:
      score: empirical metasmoothness of the final parameters in [-1, 1], 1 for a straight response.
      agreement: rank correlation of two successive changes of the probe's losses, in [-1, 1].
      cosine: of the two successive steps `w_1 - w_0` and `w_2 - w_1`.
      curvature: `||w_2 - 2 w_1 + w_0|| / ||w_1 - w_0||`, 0 for a straight response.
      warning: why metagradients of this recipe are not to be trusted; `None` if they are.
      trainings: trainings compared, the recorded run included.
      seconds: time spent in the other two, compilation not counted.
    """

    score: float
    agreement: float
    cosine: float
    curvature: float
    warning: str | None
    trainings: int
    seconds: float


def smoothness(
    run: Run,
    *,
    probe: Dataset | None = None,
    direction: np.ndarray | None = None,
    step: float = 0.5,
    fraction: float = 0.01,
    seed: int = 0,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Smoothness:
    """Trains twice more, along a direction in the example weights, and compares.

    Args:
      run: the first training, at omega; the others start from its seed's state or its `initial`.
      probe: examples whose losses are compared, of the kind that metagradients are wanted for; by
        default 500 training examples.
      direction: `[N]` v; by default it takes a random `fraction` of the examples out at
        `omega + v`.
      step: h.
      fraction: share of the examples in the default direction.
      seed: seed of the default direction.
      store: where the trainings live.
      progress: called with (steps done, steps in all) over both trainings.

    Raises:
      InputError: if the direction does not fit the run, nothing moves along it, or the probe has
        fewer than 3 examples.
      DivergenceError: if a training diverges.
    """
    probe, direction = _checked(run, probe, direction, step, fraction, seed)
    runs = [
        train(
            run.spec,
            run.dataset,
            run.schedule,
            seed=run.seed,
            weights=run.weights + np.float32(multiple * step) * direction,
            initial=None if run.initial is None else run.snapshots[0],
            store=store,
            progress=part_of_progress(progress, index, 2),
        )
        for index, multiple in enumerate((1, 2))
    ]
    states = [run.state, *(each.state for each in runs)]
    score, cosine, curvature = compare_steps(*(state.params for state in states))
    metric = point_losses(run.spec, probe, np.arange(len(probe)))
    agreement = compare_changes(*(evaluate(metric, state) for state in states))
    return Smoothness(
        score,
        agreement,
        cosine,
        curvature,
        _warning(score, agreement),
        trainings=3,
        seconds=sum(each.seconds for each in runs),
    )


def _checked(run, probe, direction, step, fraction, seed) -> tuple[Dataset, np.ndarray]:
    if not step > 0:
        raise InputError(f"the step must be above 0; got {step!r}")
    if probe is None:
        size = min(_PROBE_SIZE, len(run.dataset) - 1)
        probe = run.dataset.take(random_ids(run.dataset, size=size, seed=seed))
    if len(probe) < 3:
        raise InputError(f"the probe has {len(probe)} examples; give 3 or more to rank")
    if direction is None:
        direction = np.zeros_like(run.weights)
        chosen = random_ids(run.dataset, fraction=fraction, seed=seed)
        direction[chosen] = -run.weights[chosen]
    direction = np.asarray(direction)
    if direction.shape != run.weights.shape:
        raise InputError(
            f"the direction has shape {direction.shape}, the weights {run.weights.shape}; "
            "give one number per example"
        )
    if not np.isin(np.flatnonzero(direction), run.schedule).any():
        raise InputError("the run uses no example that the direction moves; choose others")
    return probe, direction


def compare_steps(start: Params, middle: Params, end: Params) -> tuple[float, float, float]:
    """Score, cosine and curvature of two successive steps in parameter space, in float64.

    Raises:
      InputError: if one of the steps is zero.
    """
    start, middle, end = (tree.flatten(params) for params in (start, middle, end))
    one, two = middle - start, end - middle
    lengths = np.linalg.norm(one), np.linalg.norm(two)
    if not all(lengths):
        raise InputError("the final parameters do not move along this direction; take a longer one")
    moved = np.abs(end - start)
    agreement = np.sign(one) * np.sign(two)
    score = float(moved @ agreement / moved.sum()) if moved.any() else -1.0
    cosine = float(one @ two / (lengths[0] * lengths[1]))
    return score, cosine, float(np.linalg.norm(two - one) / lengths[0])


def compare_changes(start: np.ndarray, middle: np.ndarray, end: np.ndarray) -> float:
    """Rank correlation of two successive changes of n numbers, `[n]` each.

    Raises:
      InputError: if one of the changes is the same for all numbers.
    """
    changes = middle - start, end - middle
    if any(np.ptp(change) == 0 for change in changes):
        raise InputError("the losses of the probe do not move along this direction; choose others")
    return float(np.corrcoef(*(rankdata(change) for change in changes))[0, 1])


def _warning(score: float, agreement: float) -> str | None:
    if score >= LEAST_SCORE and agreement >= LEAST_AGREEMENT:
        return None
    return (
        "metagradients of this recipe are not to be trusted: two successive steps in the example "
        f"weights agree with score {score:.2f} in the parameters (should exceed {LEAST_SCORE}) and "
        f"{agreement:.2f} in the losses ({LEAST_AGREEMENT}); lower the learning rate, or use gelu, "
        "average pooling and, with adam, eps_root > 0"
    )
