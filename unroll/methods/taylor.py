"""Taylor unlearning along the trajectory, order K (see `unroll.unrolling.taylor`)."""

from __future__ import annotations

from unroll.checks import whole_number
from unroll.data.schedule import first_use
from unroll.problem import Method, Unlearned
from unroll.unrolling.differentiability import kink_warning
from unroll.unrolling.taylor import last_term_norm, sum_series, taylor_coefficients, without


def taylor(order: int = 1) -> Method:
    """Sums the Taylor series of the run in the forget weights, truncated after `order`.

    The run is expanded from the last snapshot before the first use of the forget set. Each step
    costs (order + 1)(order + 2)/2 gradients: a product of two series up to order K has that many
    terms (1 + 2 for order 1: a gradient and a Hessian-vector product).

    Args:
      order: highest order K, at least 1 (order 0 is doing nothing).

    Raises (when called):
      InputError: for a run that computes in less than float32.
      DivergenceError: if a coefficient is not finite.
    """
    whole_number("order", order)

    def unlearn(key, access):
        del key
        run = access.run
        first = first_use(run.schedule, access.forget_ids)
        start = run.snapshots.last_at_or_before(run.steps if first is None else first)
        coefficients = taylor_coefficients(
            run, without(run, access.forget_ids), order, start=start, progress=access.progress
        )
        state = sum_series(coefficients)
        info = {"start": start, "last_term_norm": last_term_norm(coefficients)}
        if warning := kink_warning(run.spec, "the series stalls; retrain"):
            info["warning"] = warning
        return Unlearned(
            state.params,
            state.model_state,
            example_gradients=int((run.schedule[start:] >= 0).sum())
            * (order + 1)
            * (order + 2)
            / 2,
            info=info,
        )

    return Method("taylor", {"order": order}, frozenset({"run"}), unlearn)
