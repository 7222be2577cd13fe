"""Calling a function with options that come from a config, with readable errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from unroll.errors import InputError


def call_with_options(function: Callable, name: str, *arguments: Any, **options: Any) -> Any:
    """Calls `function(*arguments, **options)`, after checking the options against its signature.

    Raises:
      InputError: an option is unknown or a required one is missing; the message lists the known
        ones. Errors from inside the function pass through.
    """
    known = list(inspect.signature(function).parameters.values())[len(arguments) :]
    names = [parameter.name for parameter in known]
    unknown = [option for option in options if option not in names]
    listed = ", ".join(names) or "none"
    if unknown:
        raise InputError(f"{name}: unknown option {unknown[0]!r}; the options are {listed}")
    missing = [
        parameter.name
        for parameter in known
        if parameter.default is parameter.empty and parameter.name not in options
    ]
    if missing:
        raise InputError(f"{name}: option {missing[0]!r} is required; the options are {listed}")
    return function(*arguments, **options)
