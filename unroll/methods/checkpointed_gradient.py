"""Single-gradient unlearning, segment by segment (arXiv 2109.13398, the checkpointed experiments).

    w'' = w_T + sum_t R_t (1/B) sum_{x in x_f and batch t} omega[x] grad loss(w_c(t); x)

c(t) is the last recorded step at or before t: each use of a forgotten example is undone with its
gradient where training was, up to the distance of the snapshots, instead of at w_0. R_t is as in
`single_gradient`. With a snapshot of every step this is the sum of the gradients that training
really took out, and what is left of the error is the curvature that acted on them afterwards.

Design: one weighted gradient per segment, over the forgotten examples used in it, so the cost is
(forgotten examples) x (segments that use them). Rejected: undoing the segments one after the other
with the weights moved in between; the gradients would then be taken at weights that no run had.
"""

from __future__ import annotations

import itertools

import jax
import numpy as np

from unroll import tree
from unroll.errors import DivergenceError, InputError
from unroll.problem import Method, Unlearned
from unroll.training.run import Run
from unroll.unrolling.forget_gradient import check_assumptions, weighted_gradient
from unroll.unrolling.step_response import left_out, step_responses

_BATCH = 256


def checkpointed_gradient() -> Method:
    """Adds the forgotten examples' gradients, each at the last snapshot before its use.

    Raises (when called):
      InputError: as `single_gradient`, or if the run recorded nothing between its ends.
      DivergenceError: if a gradient is not finite.
    """

    def unlearn(key, access):
        del key
        run, ids = access.run, access.forget_ids
        check_assumptions(run, "checkpointed_gradient")
        responses = step_responses(run)
        _check_recorded(run)
        segments = _segments(run, ids, responses)
        if not segments:
            return Unlearned(run.state.params, run.state.model_state, example_gradients=0)
        width = max(len(used) for _, used, _ in segments)
        removed = jax.tree.map(np.zeros_like, run.state.params)
        for done, (step, used, weights) in enumerate(segments, start=1):
            # Padded with examples of weight 0 to one size: one compiled program for all segments.
            padding = (0, min(width, _BATCH * -(-len(used) // _BATCH)) - len(used))
            gradient = weighted_gradient(
                run.spec,
                run.snapshots[step].params,
                run.dataset.take(np.pad(used, padding, mode="edge")),
                np.pad(weights, padding),
                batch_size=_BATCH,
            )
            removed = jax.tree.map(np.add, removed, gradient)
            if access.progress is not None:
                access.progress(done, len(segments))
        params = jax.tree.map(lambda w, g: (w + g).astype(w.dtype), run.state.params, removed)
        if not tree.is_finite(params):
            raise DivergenceError("checkpointed_gradient: a gradient is not finite")
        return Unlearned(
            params,
            run.state.model_state,
            example_gradients=sum(len(used) for _, used, _ in segments),
            info={"segments": len(segments), **left_out(run)},
        )

    return Method("checkpointed_gradient", {}, frozenset({"run"}), unlearn)


def _check_recorded(run: Run) -> None:
    if run.steps > 1 and len(run.snapshots) <= 2:
        raise InputError(
            "checkpointed_gradient: the run recorded only its ends; train with "
            "record=Record(every=...), or choose single_gradient"
        )


def _segments(
    run: Run, ids: np.ndarray, responses: np.ndarray
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """For each segment that uses forgotten examples: its first step, their ids, their weights."""
    found = []
    for start, stop in itertools.pairwise(run.snapshots):
        schedule = run.schedule[start:stop]
        taken = np.isin(schedule, ids)
        used, position = np.unique(schedule[taken], return_inverse=True)
        if len(used):
            steps, _ = np.nonzero(taken)
            per_use = responses[start:stop][steps] / run.schedule.shape[1]
            weights = np.bincount(position, weights=per_use) * run.weights[used]
            found.append((start, used, weights))
    return found
