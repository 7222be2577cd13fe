"""How far a gradient that enters plain SGD at step t moves the final weights, curvature aside.

    R_t = - d w_T / d g_t    where    w_{s+1} = w_s - eta_s m_{s+1},
                                      m_{s+1} = mu m_s + g_s + lambda w_s

Two things act on a gradient after it has entered, and both are known exactly: the momentum trace
applies it again at every later step, and the l2 penalty, whose Hessian is lambda times the
identity, shrinks what it did. Without momentum R_t = eta_t prod_{s>t} (1 - eta_s lambda); without
the penalty it is `SGDRule.total_step_sizes`. The Hessian of the loss is left out: that is the
approximation of every method that uses these numbers (arXiv 2109.13398, section 4, where momentum
and weight decay are left out as well although the experiments train with them).

Design: one backward recursion for the derivatives of w_T by weights and trace, which covers both,
and Nesterov's form. Rejected: refusing runs with an l2 penalty, which would refuse the weight-decay
baseline of the paper.
"""

from __future__ import annotations

import numpy as np

from unroll.errors import InputError
from unroll.objectives import Objective, is_stateful
from unroll.training.run import Run
from unroll.unrolling.forget_gradient import sgd_of_run


def step_responses(run: Run) -> np.ndarray:
    """R_t of every step, `[T]` float64.

    The l2 penalty counts where the objective is an `Objective`; other penalties have a curvature
    of their own, which is left out like that of the loss.

    Raises:
      InputError: for an optimiser other than sgd.
    """
    rule = sgd_of_run(run)
    momentum = rule.momentum
    objective = run.spec.objective
    decay = objective.l2 if isinstance(objective, Objective) else 0.0
    again = momentum if rule.nesterov else 0.0

    responses = np.zeros(run.steps)
    by_weights, by_trace = 1.0, 0.0  # derivatives of w_T by the weights and the trace after step t
    for step in reversed(range(run.steps)):
        rate = rule.learning_rates[step]
        responses[step] = rate * (1.0 + again) * by_weights - by_trace
        by_trace = momentum * by_trace - rate * momentum * (again or 1.0) * by_weights
        by_weights -= decay * responses[step]
    return responses


def response_per_example(run: Run, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Sum of R_t / B over the uses of each example in the steps `start <= t < stop`, `[N]` float64.

    Unlike the uses, the responses run to the end of the run.

    Raises:
      InputError: for an optimiser other than sgd, or a stretch outside the run.
    """
    stop = run.steps if stop is None else stop
    if not 0 <= start <= stop <= run.steps:
        raise InputError(f"steps {start} to {stop} are outside the run of {run.steps} steps")
    schedule = run.schedule[start:stop]
    filled = schedule >= 0
    per_use = step_responses(run)[start:stop] / run.schedule.shape[1]
    total = np.zeros(len(run.dataset))
    np.add.at(total, schedule[filled], np.broadcast_to(per_use[:, None], filled.shape)[filled])
    return total


def left_out(run: Run) -> dict[str, str]:
    """A warning for `Unlearned.info` where an example has a gradient beside that of its loss."""
    if not is_stateful(run.spec.objective):
        return {}
    return {
        "warning": "the forgotten examples' share of the singular-value penalty is not undone, "
        "only that of the loss"
    }
