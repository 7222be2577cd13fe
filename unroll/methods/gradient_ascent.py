"""Gradient ascent on the forget set: the oldest baseline, and a warning.

Ascent is training with example weights of -1 on a schedule of forgotten examples. It is what RUM
(arXiv 2406.01257) and others call NegGrad, there with 5 epochs at a rate of 1e-4. It has no fixed
point to stop at, and can end farther from the retrained model than the original is (*Ascent Fails
to Forget*, arXiv 2509.26427).
"""

from __future__ import annotations

from unroll.checks import positive_number, whole_number
from unroll.problem import Method, Unlearned
from unroll.training.further import further_sgd
from unroll.training.timing import Stopwatch
from unroll.unrolling.subspaces import parse_projection, retained_bases


def gradient_ascent(
    learning_rate: float = 0.01,
    epochs: int = 4,
    batch_size: int = 64,
    projection: str | None = None,
) -> Method:
    """Plain SGD steps up the loss of the forgotten examples, from the original model.

    The defaults are the best of 12 by tug of war on a subset of CIFAR-10, where they reach 0.56 and
    doing nothing 0.503 (configs/memorization/tuning_cifar10.py); on digits the best rate was 0.03.
    At higher rates it diverges.

    Args:
      learning_rate: step size.
      epochs: passes over the forget set.
      batch_size: examples per step.
      projection: keeps the steps out of the retained inputs' subspaces, see `parse_projection`,
        for example `energy(threshold=0.95)`; by default they go anywhere.
    """
    protect = None if projection is None else parse_projection(projection)
    positive_number("learning_rate", learning_rate)
    whole_number("epochs", epochs)
    whole_number("batch_size", batch_size)

    def unlearn(key, access):
        spec, original = access.spec, access.original
        data = access.forget_data
        bases, spent, info, watch = None, 0, {}, None
        if protect is not None:
            statistics = access.statistics(protect.options)
            watch = Stopwatch()
            retained = retained_bases(
                statistics, spec, original.params, original.model_state, data, protect.rule
            )
            bases, spent, info = retained.bases, retained.example_gradients, retained.note
        state = further_sgd(
            spec,
            original,
            data,
            -1.0,
            key,
            learning_rate=learning_rate,
            epochs=epochs,
            batch_size=batch_size,
            bases=bases,
            progress=access.progress,
        )
        return Unlearned(
            state.params,
            state.model_state,
            epochs * len(data) + spent,
            info,
            seconds=None if watch is None else watch.seconds(),
        )

    return Method(
        "gradient_ascent",
        {
            "learning_rate": learning_rate,
            "epochs": epochs,
            "batch_size": batch_size,
            "projection": projection,
        },
        frozenset({"original", "forget"} | ({"statistics"} if protect else set())),
        unlearn,
    )
