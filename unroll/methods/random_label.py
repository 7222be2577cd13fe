"""Random labels: train on with wrong labels on the forget set, and the right ones elsewhere.

A baseline since Golatkar et al. (*Eternal Sunshine of the Spotless Net*, arXiv 1911.04933), and one
of the methods of RUM (arXiv 2406.01257). Batch normalisation sees both sets, as it would in
training; every example keeps the noise of its id. The model is taught a mistake on purpose: what
it says of a forgotten example is then unlike what a retrained model says.
"""

from __future__ import annotations

import dataclasses

from unroll.problem import Method, Unlearned
from unroll.training.relabelling import Relabelling, relabelled_sgd
from unroll.training.timing import Stopwatch
from unroll.unrolling.protection import protection
from unroll.unrolling.subspaces import parse_projection


def random_label(
    learning_rate: float = 0.1,
    epochs: int = 4,
    batch_size: int = 64,
    retain: bool = True,
    redraw: bool = False,
    projection: str | None = None,
) -> Method:
    """Plain SGD steps on forgotten examples with random labels, among the retained ones.

    The defaults are the best of 12 by tug of war on a subset of CIFAR-10, where they reach 0.89 and
    doing nothing 0.503 (configs/memorization/tuning_cifar10.py), as many epochs as were tried; on
    digits the best rate was 0.3. RUM has 10 epochs, batches of 256, and SGD with
    rate 0.1, momentum 0.9 and weight decay 5e-4.

    Args:
      learning_rate: step size.
      epochs: passes over what is trained on.
      batch_size: examples per step.
      retain: whether to train on the retained examples too, with the weights of the run; a
        forgotten example counts once.
      redraw: whether every epoch draws labels anew; by default an example has one.
      projection: keeps the steps out of the retained inputs' subspaces, as in `gradient_ascent`.

    Raises (when called):
      InputError: with a single class.
      DivergenceError: if a loss or the final state is not finite.
    """
    protect = None if projection is None else parse_projection(projection)
    training = Relabelling(learning_rate, epochs, batch_size, retain, redraw)

    def unlearn(key, access):
        original = access.original
        if not len(access.forget_ids):
            return Unlearned(original.params, original.model_state, 0, seconds=0.0)
        parts = access.parts(retain)
        statistics = None if protect is None else access.statistics(protect.options)
        watch = Stopwatch()
        protected = protection(protect, statistics, access.spec, original, parts.forget)
        state = relabelled_sgd(
            training,
            access.spec,
            original,
            parts,
            key,
            bases=protected.bases,
            progress=access.progress,
        )
        spent = epochs * parts.count + protected.example_gradients
        return Unlearned(
            state.params, state.model_state, spent, protected.note, seconds=watch.seconds()
        )

    needs = {"original", "forget"} | ({"retain"} if retain else set())
    return Method(
        "random_label",
        {**dataclasses.asdict(training), "projection": projection},
        frozenset(needs | ({"statistics"} if protect else set())),
        unlearn,
    )
