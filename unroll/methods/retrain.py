"""The twin: the whole run again, with the forget set at weight zero.

It is the oracle for distances between parameters, and the yardstick of cost.
"""

from __future__ import annotations

from unroll.problem import Method, Unlearned
from unroll.training.run import train


def retrain() -> Method:
    """Trains from scratch with the same key and schedule and forget weights of zero."""

    def unlearn(key, access):
        del key
        run = access.run
        twin = train(
            run.spec,
            run.dataset,
            run.schedule,
            seed=run.seed,
            weights=access.twin_weights,
            initial=None if run.initial is None else run.snapshots[0],
            store=access.store,
            progress=access.progress,
        )
        return Unlearned(
            twin.state.params, twin.state.model_state, twin.example_gradients, seconds=twin.seconds
        )

    return Method("retrain", {}, frozenset({"run"}), unlearn)
