"""Gradient ascent on the forget set: the oldest baseline, and a warning.

Ascent is training with example weights of -1 on a schedule of forgotten examples. It has no fixed
point to stop at, and can end farther from the retrained model than the original is (*Ascent Fails
to Forget*, arXiv 2509.26427).
"""

from __future__ import annotations

from unroll.checks import positive_number, whole_number
from unroll.problem import Method, Unlearned
from unroll.training.further import further_sgd


def gradient_ascent(learning_rate: float = 0.01, epochs: int = 1, batch_size: int = 32) -> Method:
    """Plain SGD steps up the loss of the forgotten examples, from the original model.

    Args:
      learning_rate: step size.
      epochs: passes over the forget set.
      batch_size: examples per step.
    """
    positive_number("learning_rate", learning_rate)
    whole_number("epochs", epochs)
    whole_number("batch_size", batch_size)

    def unlearn(key, access):
        data = access.forget_data
        state = further_sgd(
            access.spec,
            access.original,
            data,
            -1.0,
            key,
            learning_rate=learning_rate,
            epochs=epochs,
            batch_size=batch_size,
            progress=access.progress,
        )
        return Unlearned(state.params, state.model_state, epochs * len(data))

    return Method(
        "gradient_ascent",
        {"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size},
        frozenset({"original", "forget"}),
        unlearn,
    )
