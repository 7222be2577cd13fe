"""Unlearning methods. Each is a factory: hyper-parameters to `Method`.

A new method is one file with one factory, one entry in `METHODS`, and one row in the contract test.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from unroll.calls import parse_call
from unroll.errors import InputError
from unroll.methods.amnesiac import amnesiac
from unroll.methods.checkpointed_gradient import checkpointed_gradient
from unroll.methods.deltagrad import deltagrad
from unroll.methods.finetune import finetune
from unroll.methods.gradient_ascent import gradient_ascent
from unroll.methods.influence import influence
from unroll.methods.l1_sparse import l1_sparse
from unroll.methods.neggrad_plus import neggrad_plus
from unroll.methods.original import original
from unroll.methods.projected_gradient import projected_gradient
from unroll.methods.random_label import random_label
from unroll.methods.replay import replay
from unroll.methods.retrain import retrain
from unroll.methods.salun import salun
from unroll.methods.sampled import sampled
from unroll.methods.scrub import scrub
from unroll.methods.segments import segments
from unroll.methods.single_gradient import single_gradient
from unroll.methods.taylor import taylor
from unroll.problem import Method

METHODS: dict[str, Callable[..., Method]] = {
    "original": original,
    "retrain": retrain,
    "replay": replay,
    "single_gradient": single_gradient,
    "checkpointed_gradient": checkpointed_gradient,
    "amnesiac": amnesiac,
    "gradient_ascent": gradient_ascent,
    "projected_gradient": projected_gradient,
    "finetune": finetune,
    "l1_sparse": l1_sparse,
    "random_label": random_label,
    "neggrad_plus": neggrad_plus,
    "salun": salun,
    "scrub": scrub,
    "influence": influence,
    "sampled": sampled,
    "segments": segments,
    "deltagrad": deltagrad,
    "taylor": taylor,
}


def method(text: str) -> Method:
    """Builds a method from its name, or from a call such as `taylor(order=2)`.

    Raises:
      InputError: on an unknown method, an unknown hyper-parameter, or text that is no such call.

    >>> str(method("taylor(order=2)"))
    'taylor(order=2)'
    """
    name, arguments = parse_call(text)
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}; choose one of {sorted(METHODS)}")
    known = inspect.signature(METHODS[name]).parameters
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise InputError(f"method {name} has no {unknown[0]!r}; it takes {sorted(known)}")
    return METHODS[name](**arguments)


__all__ = [
    "METHODS",
    "amnesiac",
    "checkpointed_gradient",
    "deltagrad",
    "finetune",
    "gradient_ascent",
    "influence",
    "l1_sparse",
    "method",
    "neggrad_plus",
    "original",
    "projected_gradient",
    "random_label",
    "replay",
    "retrain",
    "salun",
    "sampled",
    "scrub",
    "segments",
    "single_gradient",
    "taylor",
]
