"""The aggregated prediction of a SISA system as one model, for whatever takes logits of a model.

    mean_logits        mean_k z_k
    mean_probability   log mean_k softmax(z_k)
    vote               log of the shares of `unroll.deletion.aggregation.aggregate`

The softmax of the last two is the share that the system gives to a class, so losses, confidences
and attacks read them like the logits of a single model.

Design: a linen module that applies one constituent after the other to stacked parameters, in a
loop, so the program and the memory are those of one constituent. It is never initialised; its
parameters come from `aggregated_variables`. Rejected: one submodule per constituent, which compiles
sixteen copies of a network; `vmap`, of which XLA makes slow grouped convolutions.
"""

from __future__ import annotations

import dataclasses
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unroll.deletion.aggregation import AGGREGATIONS
from unroll.deletion.sisa import Sisa
from unroll.errors import InputError
from unroll.training.spec import TrainSpec
from unroll.types import Params, PyTree

_MEMBERS = "constituents"
"""A level of its own in the tree, so that no stacked tree can pass for one of a single model."""


class Aggregated(nn.Module):
    """Log-scores `[B, C]` of constituents with stacked variables.

    Attributes:
      member: the model of one constituent.
      aggregation: one of `unroll.deletion.aggregation.AGGREGATIONS`.
    """

    member: nn.Module
    aggregation: str = "mean_probability"

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies all constituents to inputs `[B, ...]`, in evaluation mode."""
        member = self.member.clone(parent=None, name=None)
        accepted = inspect.signature(type(member).__call__).parameters
        options = {"train": False} if "train" in accepted else {}
        variables = {name: value[_MEMBERS] for name, value in self.variables.items()}
        logits = jax.lax.map(lambda own: member.apply(own, inputs, **options), variables)
        return log_scores(logits, self.aggregation)


def log_scores(logits: jax.Array, aggregation: str) -> jax.Array:
    """What `aggregate` gives, as logits `[B, C]`, from logits `[K, B, C]`; no share underflows."""
    count = logits.shape[0]
    if aggregation == "mean_logits":
        return logits.mean(axis=0)
    logs = jax.nn.logsumexp(jax.nn.log_softmax(logits, axis=-1), axis=0) - jnp.log(count)
    if aggregation == "mean_probability":
        return logs
    votes = jax.nn.one_hot(logits.argmax(axis=-1), logits.shape[-1]).sum(axis=0)
    return jnp.logaddexp(jnp.log(votes), logs - jnp.log(2.0)) - jnp.log(count + 0.5)


def aggregated_spec(spec: TrainSpec, aggregation: str) -> TrainSpec:
    """How an aggregated system of constituents of a specification predicts.

    Raises:
      InputError: on an unknown aggregation.
    """
    if aggregation not in AGGREGATIONS:
        raise InputError(f"unknown aggregation {aggregation!r}; choose one of {AGGREGATIONS}")
    return dataclasses.replace(spec, model=Aggregated(spec.model, aggregation))


def aggregated_variables(system: Sisa) -> tuple[Params, PyTree]:
    """Parameters and model state of all constituents that are present, stacked, on the host."""
    states = [each.state for each in system.present]

    def stacked(*trees: PyTree) -> PyTree:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)

    params = {_MEMBERS: stacked(*(state.params for state in states))}
    collections = stacked(*(state.model_state for state in states))
    return params, {name: {_MEMBERS: value} for name, value in collections.items()}
