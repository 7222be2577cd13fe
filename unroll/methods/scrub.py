"""SCRUB: drive the model away from the original on the forget set, and hold it there elsewhere.

    while e < E_max:  a pass over S down  -KD(w)
    always:           a pass over R down  gamma L_R-batch(w) + beta KD(w)
    KD = T^2 KL( original || w )  at temperature T, a mean over the batch

for epochs e = 0, 1, ... Source: Kurmanji et al., *Towards Unbounded Machine Unlearning* (arXiv
2302.09880). The teacher is the original model; its logits are computed once, in evaluation mode.

At w = original KD has its minimum and no slope. Without dropout, augmentation and batch
normalisation the first ascending pass therefore stands still (`info["forget_divergence"]` shows it:
its first entry is rounding), and with one epoch SCRUB is fine-tuning: use two or more.

The running averages of batch normalisation follow the retained batches alone, as in `neggrad_plus`.
Rejected: the comparison of one public implementation, which counts epochs from 0 and passes
`e <= E_max`: one ascending pass more than it was asked for.
"""

from __future__ import annotations

import math

import numpy as np

from unroll.checks import positive_number, whole_number
from unroll.data.schedule import make_schedule
from unroll.errors import InputError
from unroll.problem import Method, Unlearned
from unroll.training.distillation import Pass, distillation_sgd
from unroll.training.further import key_seed
from unroll.training.joint import Parts
from unroll.training.predict import predict
from unroll.training.spec import TrainSpec
from unroll.types import TrainState


def scrub(
    learning_rate: float = 0.01,
    epochs: int = 4,
    maximisation_epochs: int = 2,
    batch_size: int = 64,
    forget_batch_size: int = 64,
    temperature: float = 4.0,
    gamma: float = 1.0,
    beta: float = 1.0,
) -> Method:
    """Plain SGD steps, ascending on the forget set and descending on the retain set in turn.

    The defaults are the best of 12 by tug of war on a subset of CIFAR-10 and on digits
    (configs/memorization/tuning_*.py), where they are no better than doing nothing: plain SGD
    diverges at the larger rates, since the divergence is multiplied by the square of the
    temperature. RUM has 5 epochs, 4 of them ascending, temperature 4, batches of
    256, and SGD with rate 0.005, momentum 0.9 and weight decay 5e-4. The ascent is bounded nowhere.

    Args:
      learning_rate: step size of both.
      epochs: passes over the retain set, whose examples have the weights of the run; a forgotten
        example counts once.
      maximisation_epochs: passes over the forget set, in the first epochs; at most `epochs`.
      batch_size: retained examples per step, at most those that there are.
      forget_batch_size: forgotten ones per step; fewer than `batch_size` cost a step as much.
      temperature: T.
      gamma: weight of the training loss in the descent, 0 or more.
      beta: weight of KD in the descent, 0 or more.

    Raises (when called):
      InputError: if the run was trained with the singular-value penalty.
      DivergenceError: if a loss or the final state is not finite.
    """
    positive_number("learning_rate", learning_rate)
    positive_number("temperature", temperature)
    whole_number("batch_size", batch_size)
    whole_number("forget_batch_size", forget_batch_size)
    if whole_number("maximisation_epochs", maximisation_epochs, 0) > whole_number("epochs", epochs):
        raise InputError("maximisation_epochs must be at most epochs: there is one in an epoch")
    for name, value in (("gamma", gamma), ("beta", beta)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf:
            raise InputError(f"{name} must be a finite number, 0 or more; got {value!r}")

    def unlearn(key, access):
        original = access.original
        if not len(access.forget_ids):
            return Unlearned(original.params, original.model_state, 0, seconds=0.0)
        parts = access.parts()
        seed, retained, forgotten = key_seed(key), parts.retain_ids, parts.forget_ids
        passes = alternating_passes(
            epoch_batches(seed, forgotten, forget_batch_size, maximisation_epochs),
            epoch_batches(seed, retained, batch_size, epochs),
            gamma,
            beta,
        )
        examples, weights, _ = parts.joined()
        state, means = distillation_sgd(
            access.spec,
            original,
            examples,
            weights,
            teacher_logits(access.spec, original, parts),
            passes,
            key,
            learning_rate=learning_rate,
            temperature=temperature,
            progress=access.progress,
        )
        ascending = [each.soft < 0 for each in passes]
        info = {
            "maximisation_passes": sum(ascending),
            "forget_divergence": [m for m, up in zip(means, ascending, strict=True) if up],
            "retain_divergence": [m for m, up in zip(means, ascending, strict=True) if not up],
        }
        # The teacher's forward pass is a third of a gradient.
        spent = epochs * len(retained) + maximisation_epochs * len(forgotten) + parts.count / 3
        return Unlearned(state.params, state.model_state, spent, info)

    return Method(
        "scrub",
        {
            "learning_rate": learning_rate,
            "epochs": epochs,
            "maximisation_epochs": maximisation_epochs,
            "batch_size": batch_size,
            "forget_batch_size": forget_batch_size,
            "temperature": temperature,
            "gamma": gamma,
            "beta": beta,
        },
        frozenset({"original", "forget", "retain"}),
        unlearn,
    )


def epoch_batches(seed: int, ids: np.ndarray, batch_size: int, epochs: int) -> list[np.ndarray]:
    """Batches of each epoch through the ids, int32 `[steps, B]`: on R those of `finetune`."""
    if not epochs:
        return []
    return np.split(make_schedule(seed, ids, min(batch_size, len(ids)), epochs), epochs)


def alternating_passes(
    ascending: list[np.ndarray], descending: list[np.ndarray], gamma: float, beta: float
) -> list[Pass]:
    """The ascending pass of each epoch, while there are any, before its descending one."""
    passes = []
    for epoch, slots in enumerate(descending):
        if epoch < len(ascending):
            passes.append(Pass(ascending[epoch], hard=0.0, soft=-1.0, follow=False))
        passes.append(Pass(slots, hard=gamma, soft=beta))
    return passes


def teacher_logits(spec: TrainSpec, state: TrainState, parts: Parts) -> np.ndarray:
    """Logits `[N, C]` of the original, in evaluation mode, in the order of the training set."""
    logits = [
        predict(spec, state.params, state.model_state, data)
        for data in (parts.forget, parts.retain)
    ]
    place = np.argsort(np.concatenate([parts.forget_ids, parts.retain_ids]))
    return np.concatenate(logits)[place]
