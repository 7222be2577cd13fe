"""Cheap proxies of memorization scores. Each is a factory: options to `Proxy`.

    proxy("holdout_retraining(epochs=5)")(Subject(run, held_out=others)).scores

A new proxy is one factory, one entry in `PROXIES` and one row in the contract test.
"""

from __future__ import annotations

from collections.abc import Callable

from unroll.calls import parse_call
from unroll.data.options import call_with_options
from unroll.errors import InputError
from unroll.memorization.gradient_norms import el2n, grand, self_influence
from unroll.memorization.holdout import holdout_retraining
from unroll.memorization.learning_events import (
    binary_accuracy,
    confidence,
    entropy,
    forgetting_events,
    max_confidence,
)
from unroll.memorization.loss_curvature import loss_curvature
from unroll.memorization.subject import Measurement, Proxy, ProxyResult, Subject

PROXIES: dict[str, Callable[..., Proxy]] = {
    "confidence": confidence,
    "max_confidence": max_confidence,
    "entropy": entropy,
    "binary_accuracy": binary_accuracy,
    "forgetting_events": forgetting_events,
    "el2n": el2n,
    "grand": grand,
    "holdout_retraining": holdout_retraining,
    "loss_curvature": loss_curvature,
    "self_influence": self_influence,
}


def proxy(text: str) -> Proxy:
    """Builds a proxy from a call such as `holdout_retraining(epochs=5)`.

    Raises:
      InputError: if the name, an option or its value is unknown.
    """
    name, options = parse_call(text)
    if name not in PROXIES:
        raise InputError(f"unknown proxy {name!r}; choose one of {sorted(PROXIES)}")
    return call_with_options(PROXIES[name], f"proxy {name}", **options)


__all__ = ["PROXIES", "Measurement", "Proxy", "ProxyResult", "Subject", "proxy"]
