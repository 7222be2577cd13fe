"""SalUn: random labels, taught to those parameters only that the forget set weighs on most.

    w <- w - eta m * grad L_random_label,    m = the entries of the largest |grad L_S(w_original)|

Source: Fan et al., *SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency* (arXiv
2310.12508). The gradient behind the mask is that of the forget set's mean loss with its own labels,
of the original model in evaluation mode. What is outside the mask keeps its bits; in the reference
implementation weight decay, added after the mask, moves it. The running averages of batch
normalisation are no parameters and follow the batches.

With a projection two restrictions meet whose intersection is mostly empty. The projection comes
last, as in all methods, and keeps its promise: what the mask let through is spread over a layer's
inputs again. `info["moved_outside_mask"]` is the share of the squared movement that it took there.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from unroll.checks import positive_number
from unroll.errors import InputError
from unroll.problem import Method, Unlearned
from unroll.training.relabelling import Relabelling, relabelled_sgd
from unroll.training.timing import Stopwatch
from unroll.tree import flatten
from unroll.unrolling.protection import protection
from unroll.unrolling.saliency import largest, moved_outside, saliency
from unroll.unrolling.subspaces import parse_projection


def salun(
    fraction: float = 0.5,
    learning_rate: float = 0.3,
    epochs: int = 2,
    batch_size: int = 64,
    retain: bool = True,
    redraw: bool = False,
    projection: str | None = None,
) -> Method:
    """`random_label` on the share of the parameters with the largest gradients of the forget set.

    The defaults are the best of 12 by tug of war on a subset of CIFAR-10, where they reach 0.72 and
    doing nothing 0.503 (configs/memorization/tuning_cifar10.py), fraction the largest tried; on
    digits the best were 0.1 and a rate of 1. RUM has 10 epochs, batches of 256, and SGD
    with rate 0.1, momentum 0.9 and weight decay 5e-4.

    Args:
      fraction: share of all parameters that may move, above 0; 1 is `random_label`, bit for bit.
      learning_rate: step size.
      epochs: passes over what is trained on.
      batch_size: examples per step.
      retain: whether to train on the retained examples too.
      redraw: whether every epoch draws labels anew.
      projection: keeps the steps out of the retained inputs' subspaces, as in `gradient_ascent`.

    Raises (when called):
      InputError: with a single class.
      DivergenceError: if a gradient, a loss or the final state is not finite.
    """
    protect = None if projection is None else parse_projection(projection)
    if positive_number("fraction", fraction) > 1:
        raise InputError(f"fraction must be at most 1, which is all parameters; got {fraction!r}")
    training = Relabelling(learning_rate, epochs, batch_size, retain, redraw)

    def unlearn(key, access):
        original = access.original
        if not len(access.forget_ids):
            return Unlearned(original.params, original.model_state, 0, seconds=0.0)
        parts = access.parts(retain)
        statistics = None if protect is None else access.statistics(protect.options)
        watch = Stopwatch()
        protected = protection(protect, statistics, access.spec, original, parts.forget)
        mask, facts, spent = None, {}, protected.example_gradients
        if fraction < 1:
            mask, threshold = largest(saliency(access.spec, original, parts.forget), fraction)
            facts = {"masked_parameters": int(flatten(mask).sum()), "threshold": threshold}
            spent += len(parts.forget)
        state = relabelled_sgd(
            training,
            access.spec,
            original,
            parts,
            key,
            bases=protected.bases,
            mask=mask,
            progress=access.progress,
        )
        if mask is not None:
            facts["moved_outside_mask"] = moved_outside(mask, original.params, state.params)
        spent += epochs * parts.count
        facts["parameters"] = sum(map(np.size, jax.tree.leaves(original.params)))
        return Unlearned(
            state.params,
            state.model_state,
            spent,
            {**protected.note, **facts},
            seconds=watch.seconds(),
        )

    needs = {"original", "forget"} | ({"retain"} if retain else set())
    return Method(
        "salun",
        {"fraction": fraction, **dataclasses.asdict(training), "projection": projection},
        frozenset(needs | ({"statistics"} if protect else set())),
        unlearn,
    )
