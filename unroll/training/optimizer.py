"""Optimisers as values: a frozen description of an optax expression.

An `optax.GradientTransformation` is a pair of closures: it can neither be compared nor hashed, so
it can be no part of what identifies a run. `OptaxCall` describes the expression instead and builds
it on demand:

    optax_call("sgd", learning_rate=0.1, momentum=0.9)
    optax_call("adamw", learning_rate=optax_call("cosine_decay_schedule", 1e-3, 1000))
    optax_call("chain", optax_call("clip_by_global_norm", 1.0), optax_call("sgd", 0.1))

Rejected: a closed list of optimisers with our own options, which would trail behind optax.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unroll.errors import InputError


@dataclasses.dataclass(frozen=True)
class OptaxCall:
    """The expression `optax.<name>(*args, **kwargs)`; arguments may be calls themselves.

    Use `optax_call` to make one: it checks the name and the arguments.
    """

    name: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    def build(self) -> Any:
        """Evaluates the expression."""
        return getattr(optax, self.name)(
            *map(_build, self.args), **{key: _build(value) for key, value in self.kwargs}
        )

    def bound(self) -> dict[str, Any]:
        """Arguments by parameter name, defaults filled in."""
        arguments = inspect.signature(getattr(optax, self.name)).bind(
            *self.args, **dict(self.kwargs)
        )
        arguments.apply_defaults()
        return dict(arguments.arguments)

    def __str__(self) -> str:
        inside = [str(a) for a in self.args] + [f"{k}={v}" for k, v in self.kwargs]
        return f"{self.name}({', '.join(inside)})"


def _build(value: Any) -> Any:
    return value.build() if isinstance(value, OptaxCall) else value


def optax_call(name: str, *args: Any, **kwargs: Any) -> OptaxCall:
    """Describes `optax.<name>(*args, **kwargs)`.

    Args:
      name: a public function of optax: an optimiser, a transformation or a schedule.
      *args: positional arguments: numbers, strings, booleans, None or calls.
      **kwargs: keyword arguments of the same kinds.

    Raises:
      InputError: if optax has no such function or it does not take these arguments.
    """
    function = getattr(optax, name, None)
    if not callable(function):
        raise InputError(f"optax has no function {name!r}; see the optax documentation for names")
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"optax.{name} does not take these arguments: {error}") from None
    call = OptaxCall(name, args, tuple(sorted(kwargs.items())))
    try:
        hash(call)
    except TypeError:
        raise InputError(
            f"arguments of optax.{name} must be numbers, strings, tuples or optax_call(...)"
        ) from None
    return call


@dataclasses.dataclass(frozen=True)
class SGDRule:
    """Plain SGD read off an `OptaxCall`: learning rate per step, momentum, Nesterov."""

    learning_rates: np.ndarray
    momentum: float
    nesterov: bool

    def total_step_sizes(self) -> np.ndarray:
        """How far a gradient entering at step t moves the final weights, `[steps]`.

        With momentum mu a gradient g_t keeps acting: the trace carries it into every later step.
        Its total effect without curvature is `-sum_{s>=t} eta_s mu^(s-t) g_t`, and with Nesterov's
        form `-(eta_t + mu * that sum) g_t`. Without momentum it is `-eta_t g_t`.
        """
        total = np.zeros_like(self.learning_rates)
        carried = 0.0
        for step in reversed(range(len(total))):
            carried = self.learning_rates[step] + self.momentum * carried
            if self.nesterov:
                total[step] = self.learning_rates[step] + self.momentum * carried
            else:
                total[step] = carried
        return total


def sgd_rule(optimizer: OptaxCall, steps: int) -> SGDRule:
    """Reads learning rates and momentum of `sgd(...)`.

    Raises:
      InputError: for any other optimiser: its steps are not a fixed multiple of the gradients.
    """
    if optimizer.name != "sgd":
        raise InputError(
            f"needs plain sgd, but the run was trained with {optimizer}; "
            'train with optax_call("sgd", ...) or choose taylor, which differentiates any optimiser'
        )
    arguments = optimizer.bound()
    rate = _build(arguments["learning_rate"])
    rates = jax.vmap(rate)(jnp.arange(steps)) if callable(rate) else np.full(steps, rate)
    return SGDRule(
        learning_rates=np.asarray(rates, np.float64),
        momentum=float(arguments["momentum"] or 0.0),
        nesterov=bool(arguments["nesterov"]),
    )
