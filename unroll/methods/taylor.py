"""Taylor unlearning along the trajectory, order K (see `unroll.unrolling.taylor`)."""

from __future__ import annotations

from unroll.checks import whole_number
from unroll.problem import Method, Unlearned
from unroll.unrolling.differentiability import kink_warning
from unroll.unrolling.taylor import last_term_norm, removal_series, sum_series


def taylor(order: int = 1) -> Method:
    """Sums the Taylor series of the run in the forget weights, truncated after `order`.

    The run is expanded from the last snapshot before the first use of the forget set. Each step
    costs (order + 1)(order + 2)/2 gradients.

    Args:
      order: highest order K, at least 1 (order 0 is doing nothing).

    Raises (when called):
      InputError: for a run that computes in less than float32.
      DivergenceError: if a coefficient is not finite.
    """
    whole_number("order", order)

    def unlearn(key, access):
        del key
        series = removal_series(access.run, access.forget_ids, order, access.progress)
        state = sum_series(series.coefficients)
        info = {"start": series.start, "last_term_norm": last_term_norm(series.coefficients)}
        if warning := kink_warning(access.spec, "the series stalls; retrain"):
            info["warning"] = warning
        return Unlearned(state.params, state.model_state, series.example_gradients, info)

    return Method("taylor", {"order": order}, frozenset({"run"}), unlearn)
