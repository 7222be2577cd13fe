"""Exact deletion from the nearest stored state.

Up to the first step that uses a forgotten example, the run and its twin are the same run. So the
twin is had by replaying from the last snapshot before that step, bit for bit, at the cost of the
remaining steps. With one pass over the data this saves half of the run on average; with many
passes the first use comes early, and little is saved.
"""

from __future__ import annotations

from unroll.data.schedule import first_use
from unroll.problem import Method, Unlearned
from unroll.training.run import fit


def replay() -> Method:
    """Replays the run with forget weights of zero from the last snapshot before their first use."""

    def unlearn(key, access):
        del key
        run = access.run
        first = first_use(run.schedule, access.forget_ids)
        start = run.snapshots.last_at_or_before(run.steps if first is None else first)
        state = fit(
            run.spec,
            run.dataset,
            run.snapshots[start],
            run.schedule,
            access.twin_weights,
            run.key,
            start=start,
            progress=access.progress,
        )
        return Unlearned(
            state.params,
            state.model_state,
            example_gradients=int((run.schedule[start:] >= 0).sum()),
            info={"start": start, "first_use": first},
        )

    return Method("replay", {}, frozenset({"run"}), unlearn)
