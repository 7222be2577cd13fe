"""The specification of a run: everything about training except the data, the seed and the weights.

A `TrainSpec` is frozen and hashable. It is the static argument of every compiled function, so runs
that differ only in data, keys, schedules or example weights share one compiled program; that is
what makes a replay bit-equal to the run that it replays. Its description is part of the address of
a stored run.

Rejected: passing the functions (loss, optimiser, model.apply) themselves. Functions compare by
identity, so the same run would compile again in the next call and could not be recognised on disk.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import sys
from typing import Any, Literal

import flax.linen as nn
import jax

from unroll.errors import InputError
from unroll.objectives import AbstractObjective, Objective
from unroll.training.optimizer import OptaxCall, optax_call
from unroll.training.transforms import CropAndFlip, Normalize
from unroll.types import PyTree


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """How to train.

    Attributes:
      model: a hashable flax.linen module that maps inputs to logits. `train`, `example_keys` and
        `example_weights` are passed to its `__call__` if it takes them.
      objective: loss per example and penalties.
      optimizer: an optax expression, see `optax_call`.
      denominator: `batch` divides the weighted sum of gradients by the number of slots B,
        whatever the weights: removing an example removes its gradient term and nothing else.
        `renormalise` divides by the sum of the weights; then the few examples of a padded last
        batch weigh as much as a whole batch.
      preprocess: map from stored inputs to model inputs, for example `Normalize`.
      augmentation: random map of training inputs, keyed per example, for example `CropAndFlip`.

    Raises:
      InputError: if the model or the objective cannot be hashed, or the denominator is unknown.
    """

    model: nn.Module
    objective: AbstractObjective = Objective()
    optimizer: OptaxCall = optax_call("sgd", learning_rate=0.1)
    denominator: Literal["batch", "renormalise"] = "batch"
    preprocess: Normalize | None = None
    augmentation: CropAndFlip | None = None

    def __post_init__(self):
        if self.denominator not in ("batch", "renormalise"):
            raise InputError(
                f"unknown denominator {self.denominator!r}; choose batch or renormalise"
            )
        if not isinstance(self.optimizer, OptaxCall):
            raise InputError('describe the optimiser: optax_call("sgd", learning_rate=0.1)')
        self.describe()
        try:
            hash(self)
        except TypeError as error:
            raise InputError(
                f"the specification cannot be hashed ({error}); use tuples instead of lists"
            ) from None

    def describe(self) -> dict[str, Any]:
        """A JSON-able description that is equal exactly for equal specifications."""
        return {
            field.name: _describe(getattr(self, field.name)) for field in dataclasses.fields(self)
        }


def _describe(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_describe(item) for item in value]
    if dataclasses.is_dataclass(value):
        fields = {
            field.name: _describe_field(field, getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.name not in ("parent", "name") or not isinstance(value, nn.Module)
        }
        return {"type": _type_name(type(value)), **fields}
    if callable(value):
        return _importable_name(value)
    if type(value).__repr__ is object.__repr__:
        raise InputError(
            f"{type(value).__name__} in the specification has no description; make it a frozen "
            "dataclass, so that a stored run can be told apart from others"
        )
    return repr(value)


def _describe_field(field: dataclasses.Field, value: Any) -> Any:
    # The initialisers of flax's layers are closures; as defaults their class stands for them.
    return "default" if callable(value) and value is field.default else _describe(value)


def _importable_name(value: Any) -> str:
    """Module and name of a function, if they lead back to it.

    Two closures or lambdas of one scope share their name; a run stored under it could be read back
    as the result of the other.
    """
    name = getattr(value, "__qualname__", None)
    found = sys.modules.get(getattr(value, "__module__", None))
    for part in (name or "").split("."):
        found = getattr(found, part, None)
    if name is None or found is not value:
        raise InputError(
            f"{value!r} in the specification cannot be named; use a function defined at the top "
            "level of a module, or a string that the model looks up"
        )
    return _type_name(value)


def _type_name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def description_hash(description: Any) -> str:
    """SHA-256 of the canonical JSON form of a description."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def apply_model(
    spec: TrainSpec,
    params: PyTree,
    model_state: PyTree,
    inputs: jax.Array,
    *,
    train: bool,
    example_keys: jax.Array | None = None,
    example_weights: jax.Array | None = None,
) -> tuple[jax.Array, PyTree]:
    """Logits `[B, C]` and the new model state of a preprocessed batch.

    The module's `__call__` receives those of `train`, `example_keys` and `example_weights` that its
    signature names, so a module written for another code base works as it is.
    """
    offered = {"train": train, "example_keys": example_keys, "example_weights": example_weights}
    accepted = inspect.signature(type(spec.model).__call__).parameters
    arguments = {name: value for name, value in offered.items() if name in accepted}
    variables = {"params": params, **model_state}
    if train and model_state:
        return spec.model.apply(variables, inputs, mutable=list(model_state), **arguments)
    return spec.model.apply(variables, inputs, **arguments), model_state
