"""Single-gradient unlearning (Thudi et al., *Unrolling SGD*, arXiv 2109.13398, section 4).

The paper adds back what plain SGD took out along the forget batch, with the gradient frozen at the
weights w_0 from which the run is unrolled:

    w'' = w_t + (eta m / b) sum_{x in x_f} grad L(w_0; x)

for a forget batch of size b seen once in each of m epochs. Here every forgotten example may sit
anywhere in the schedule, any number of times, among others:

    w'' = w_T + sum_t R_t (1/B) sum_{x in x_f and batch t} omega[x] grad loss(w_start; x)

R_t is how far a gradient that enters at step t moves the final weights: eta_t for plain SGD; with
momentum the trace applies it again and again, and an l2 penalty shrinks it afterwards by
prod_{s>t} (1 - eta_s lambda). Both factors are exact (`unrolling.step_response`). The curvature of
the loss is ignored altogether; that is the method, and the reason why it ends farther away than
doing nothing once eta * t * sigma is large.

Design: `start` may be a later recorded step, as the paper's w_0 is a pretrained model; run and twin
must still agree there. Rejected: counting only the uses from `start` on, which would leave the
earlier ones in the model and say nothing.
"""

from __future__ import annotations

import jax

from unroll import tree
from unroll.checks import whole_number
from unroll.data.schedule import uses
from unroll.errors import DivergenceError, InputError
from unroll.problem import Method, Unlearned
from unroll.training.run import Run
from unroll.unrolling.forget_gradient import check_assumptions, weighted_gradient
from unroll.unrolling.step_response import left_out, response_per_example


def single_gradient(start: int = 0) -> Method:
    """Adds the forgotten examples' gradients at w_start, scaled by their step responses.

    Args:
      start: recorded step at which the gradients are taken; 0 is the start of the run.

    Raises (when called):
      InputError: for an optimiser other than sgd, a `renormalise` denominator, augmentation,
        dropout, a model with running statistics (see `forget_gradient.check_assumptions`), a
        `start` that is not recorded, or one after the first use of a forgotten example.
      DivergenceError: if a gradient is not finite.
    """
    whole_number("start", start, least=0)

    def unlearn(key, access):
        del key
        run, ids = access.run, access.forget_ids
        check_assumptions(run, "single_gradient")
        weights = response_per_example(run)[ids] * run.weights[ids]
        _check_start(run, ids, start)
        if not len(ids):
            return Unlearned(run.state.params, run.state.model_state, example_gradients=0)
        gradient = weighted_gradient(
            run.spec, run.snapshots[start].params, run.dataset.take(ids), weights
        )
        params = jax.tree.map(lambda w, g: (w + g).astype(w.dtype), run.state.params, gradient)
        if not tree.is_finite(params):
            raise DivergenceError(f"single_gradient: a gradient at step {start} is not finite")
        return Unlearned(params, run.state.model_state, len(ids), info=left_out(run))

    return Method("single_gradient", {"start": start}, frozenset({"run"}), unlearn)


def _check_start(run: Run, ids, start: int) -> None:
    if start not in list(run.snapshots):  # `in` alone would read the state from the store
        raise InputError(
            f"single_gradient: step {start} is not recorded; train with "
            f"record=Record(steps=({start},)) or choose one of {list(run.snapshots)[:8]}"
        )
    if len(ids) and uses(run.schedule[:start], ids).any():
        raise InputError(
            f"single_gradient: forgotten examples are used before step {start}; choose an earlier "
            "start, or train the second stage as a run of its own with initial=..."
        )
