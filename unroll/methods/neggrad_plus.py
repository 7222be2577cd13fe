"""NegGrad+: descend on the retain set and ascend on the forget set, in every step.

    w <- w - eta grad [ alpha L_R-batch - (1 - alpha) L_S-batch ]

Source: Kurmanji et al., *Towards Unbounded Machine Unlearning* (arXiv 2302.09880), with the weight
alpha of RUM (arXiv 2406.01257). An epoch is a pass over the retain set; the batches of the forget
set are cycled, each pass in a fresh order. At alpha 1 the steps are those of `finetune`, at 0 those
of `gradient_ascent`, and as there a penalty of the parameters counts once, whatever alpha.

The running averages of batch normalisation follow the retained batches alone, so that the forget
set leaves no mark there. Rejected: the reference's two training passes, whose second one moves them
towards the forget set with every step.
"""

from __future__ import annotations

from unroll.checks import positive_number, whole_number
from unroll.data.schedule import EMPTY, make_schedule
from unroll.errors import InputError
from unroll.problem import Method, Unlearned
from unroll.training.further import key_seed
from unroll.training.joint import Term, cycled_schedule, joint_sgd
from unroll.training.timing import Stopwatch
from unroll.unrolling.protection import protection
from unroll.unrolling.subspaces import parse_projection


def neggrad_plus(
    alpha: float = 0.8,
    learning_rate: float = 0.1,
    epochs: int = 2,
    batch_size: int = 64,
    projection: str | None = None,
) -> Method:
    """Plain SGD steps down the loss of retained examples and up that of forgotten ones.

    The defaults are the best of 12 by tug of war on a subset of CIFAR-10, where they reach 0.80 and
    doing nothing 0.503 (configs/memorization/tuning_cifar10.py), alpha the smallest tried; on
    digits the best alpha was 0.9, with the same rate. RUM has alpha from 0.95 to 0.99, 5 epochs,
    batches of 256, and SGD with rate 0.01, momentum 0.9 and weight decay 5e-4. The ascent is
    bounded nowhere: with a small alpha it diverges.

    Args:
      alpha: weight of the retained batch, in [0, 1]; that of the forgotten one is 1 - alpha.
      learning_rate: step size.
      epochs: passes over the retain set, whose examples have the weights of the run; a forgotten
        example counts once.
      batch_size: retained examples per step, and forgotten ones, at most those that there are.
      projection: keeps the steps out of the retained inputs' subspaces, as in `gradient_ascent`.

    Raises (when called):
      DivergenceError: if a loss or the final state is not finite.
    """
    protect = None if projection is None else parse_projection(projection)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise InputError(f"alpha must lie between 0 and 1; got {alpha!r}")
    positive_number("learning_rate", learning_rate)
    whole_number("epochs", epochs)
    whole_number("batch_size", batch_size)

    def unlearn(key, access):
        original = access.original
        if not len(access.forget_ids):
            return Unlearned(original.params, original.model_state, 0, seconds=0.0)
        parts = access.parts()
        statistics = None if protect is None else access.statistics(protect.options)
        watch = Stopwatch()
        protected = protection(protect, statistics, access.spec, original, parts.forget)
        seed, (retained, forgotten) = key_seed(key), (parts.retain_ids, parts.forget_ids)
        retain_slots = make_schedule(seed, retained, min(batch_size, len(retained)), epochs)
        forget_slots = cycled_schedule(
            seed, forgotten, min(batch_size, len(forgotten)), len(retain_slots)
        )
        examples, weights, _ = parts.joined()
        state = joint_sgd(
            access.spec,
            original,
            examples,
            weights,
            (Term(alpha, retain_slots), Term(alpha - 1, forget_slots)),
            key,
            learning_rate=learning_rate,
            bases=protected.bases,
            progress=access.progress,
        )
        uses = int((forget_slots != EMPTY).sum())
        return Unlearned(
            state.params,
            state.model_state,
            epochs * len(retained) + uses + protected.example_gradients,
            {**protected.note, "forget_passes": uses / len(forgotten)},
            seconds=watch.seconds(),
        )

    return Method(
        "neggrad_plus",
        {
            "alpha": alpha,
            "learning_rate": learning_rate,
            "epochs": epochs,
            "batch_size": batch_size,
            "projection": projection,
        },
        frozenset({"original", "forget", "retain"} | ({"statistics"} if protect else set())),
        unlearn,
    )
