"""L1-sparse: fine-tuning on the retain set under a penalty that pulls weights towards zero.

    w <- w - eta grad [ L_R-batch(w) + a_t ||w||_1 ],    a_t = alpha (1 - t / T),  t = 0, ..., T - 1

t is the epoch, so the last epoch has alpha / T. Source: Jia et al., *Model Sparsity Can Simplify
Machine Unlearning* (arXiv 2304.04934), with the decay of RUM's code (arXiv 2406.01257). The
penalty enters by its subgradient, 0 at 0: weights come near zero and are never set to it, and
nothing is pruned.

Design: the penalty is an objective whose memory counts the steps, so that training, its loop and
its checks are those of `finetune`, and one program serves all epochs. Rejected: an objective for
each epoch, which compiles one program for each; and the proximal step, which is another method.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from unroll.checks import positive_number, whole_number
from unroll.data.schedule import steps_per_epoch
from unroll.errors import InputError
from unroll.objectives import AbstractObjective, DataLoss, is_stateful, losses_at
from unroll.problem import Method, Unlearned
from unroll.training.further import further_sgd
from unroll.types import Params, PyTree

NEAR_ZERO = 1e-3
"""Weights below this magnitude count as near zero in the info."""


def l1_sparse(
    alpha: float = 1e-2,
    learning_rate: float = 0.1,
    epochs: int = 2,
    batch_size: int = 64,
    over: str = "all",
) -> Method:
    """`finetune` with an L1 penalty that decays linearly over the epochs.

    The defaults are the best of 12 by tug of war on a subset of CIFAR-10, where they reach 0.65 and
    doing nothing 0.503 (configs/memorization/tuning_cifar10.py), alpha the largest tried; on digits
    the best rate was 0.3, with the same alpha. RUM has 10 epochs, batches of 256, and SGD with rate
    0.01, momentum 0.9 and weight decay 5e-4. The info tells which share of the penalised weights
    is below `NEAR_ZERO`, before and after.

    Args:
      alpha: weight of the penalty in the first epoch; 0 is `finetune`, bit for bit.
      learning_rate: step size.
      epochs: passes over the retain set, T.
      batch_size: examples per step.
      over: what is penalised: `all` parameters, as published, or `kernels`, those of two axes or
        more, which leaves out biases and normalisations.

    Raises (when called):
      DivergenceError: if a loss or the final state is not finite.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha < math.inf:
        raise InputError(f"alpha must be a finite number, 0 or more; got {alpha!r}")
    positive_number("learning_rate", learning_rate)
    whole_number("epochs", epochs)
    whole_number("batch_size", batch_size)
    if over not in ("all", "kernels"):
        raise InputError(f"over must be 'all' or 'kernels'; got {over!r}")

    def unlearn(key, access):
        original = access.original
        if not len(access.forget_ids):
            return Unlearned(original.params, original.model_state, 0, seconds=0.0)
        spec, data = access.spec, access.retain_data
        if alpha:
            steps = steps_per_epoch(len(data), min(batch_size, len(data)))
            objective = DecayingL1(spec.objective, alpha, epochs, steps, over)
            spec = dataclasses.replace(spec, objective=objective)
        state = further_sgd(
            spec,
            original,
            data,
            1.0,
            key,
            learning_rate=learning_rate,
            epochs=epochs,
            batch_size=batch_size,
            progress=access.progress,
        )
        shares = {
            name: near_zero(params, over)
            for name, params in (("before", original.params), ("after", state.params))
        }
        info = {"near_zero": {"threshold": NEAR_ZERO, **shares}}
        return Unlearned(state.params, state.model_state, epochs * len(data), info)

    return Method(
        "l1_sparse",
        {
            "alpha": alpha,
            "learning_rate": learning_rate,
            "epochs": epochs,
            "batch_size": batch_size,
            "over": over,
        },
        frozenset({"original", "retain"}),
        unlearn,
    )


def penalised(params: Params, over: str) -> list[jax.Array]:
    """The leaves that the penalty acts on."""
    return [leaf for leaf in jax.tree.leaves(params) if over == "all" or np.ndim(leaf) > 1]


def near_zero(params: Params, over: str) -> float:
    """Share of the penalised weights of a magnitude below `NEAR_ZERO`."""
    leaves = [np.asarray(leaf) for leaf in penalised(params, over)]
    small = sum(int((np.abs(leaf) < NEAR_ZERO).sum()) for leaf in leaves)
    return small / sum(leaf.size for leaf in leaves)


@dataclasses.dataclass(frozen=True)
class DecayingL1:
    """An objective with `alpha (1 - t / epochs) ||w||_1` added, t the epoch of the step.

    Attributes:
      objective: what the penalty is added to.
      alpha: weight in the first epoch.
      epochs: T.
      steps: steps of an epoch.
      over: see `l1_sparse`.
    """

    objective: AbstractObjective
    alpha: float
    epochs: int
    steps: int
    over: str = "all"
    stateful = True

    def example_losses(
        self, logits: jax.Array, labels: jax.Array, step: int | jax.Array = 0
    ) -> jax.Array:
        return losses_at(self.objective, logits, labels, step)

    def penalty(self, params: Params) -> jax.Array:
        return self.objective.penalty(params)

    def initial_state(self, key: jax.Array, params: Params) -> PyTree:
        """Steps taken, and the memory of the objective itself where it has one."""
        inner = self.objective.initial_state(key, params) if is_stateful(self.objective) else ()
        return {"steps": jnp.zeros((), jnp.int32), "inner": inner}

    def weight(self, step: int | jax.Array) -> jax.Array:
        """a_t at a step, a scalar."""
        return self.alpha * (self.epochs - jnp.asarray(step) // self.steps) / self.epochs

    def value_and_gradient(
        self, loss: DataLoss, params: Params, state: PyTree
    ) -> tuple[jax.Array, Params, PyTree, PyTree]:
        inner = state["inner"]
        if is_stateful(self.objective):
            found = self.objective.value_and_gradient(loss, params, inner)
            value, gradient, model_state, inner = found
        else:
            differentiate = jax.value_and_grad(loss, has_aux=True)
            (value, model_state), gradient = differentiate(params)
        weight = self.weight(state["steps"])

        def l1(params):
            return sum(jnp.abs(leaf).sum() for leaf in penalised(params, self.over))

        size, slope = jax.value_and_grad(l1)(params)
        gradient = jax.tree.map(
            lambda own, sign: own + (weight * sign).astype(own.dtype), gradient, slope
        )
        memory = {"steps": state["steps"] + 1, "inner": inner}
        return value + (weight * size).astype(value.dtype), gradient, model_state, memory
