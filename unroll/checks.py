"""Checks of arguments that many places share; each raises one clear line."""

from __future__ import annotations

from unroll.errors import InputError


def whole_number(name: str, value: object, least: int = 1) -> int:
    """Returns an integer argument.

    Raises:
      InputError: if it is no integer, or below `least`.

    >>> whole_number("epochs", 3)
    3
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number, {least} or more; got {value!r}")
    return value


def positive_number(name: str, value: object) -> float:
    """Returns a number above zero.

    Raises:
      InputError: if it is anything else.

    >>> positive_number("learning_rate", 0.1)
    0.1
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InputError(f"{name} must be a number above 0; got {value!r}")
    return value


def seed_number(value: object) -> int:
    """Returns a seed: a whole number below 2**32, beyond which jax's keys repeat.

    Raises:
      InputError: if it is anything else.

    >>> seed_number(7)
    7
    """
    if whole_number("seed", value, least=0) >= 2**32:
        raise InputError(f"seed must be below 2**32; got {value!r}")
    return value
