"""Do nothing: the row against which every other one is read."""

from __future__ import annotations

from unroll.problem import Method, Unlearned


def original() -> Method:
    """The original model, unchanged, at no cost."""

    def unlearn(key, access):
        del key
        state = access.original
        return Unlearned(state.params, state.model_state, example_gradients=0, seconds=0.0)

    return Method("original", {}, frozenset({"original"}), unlearn)
