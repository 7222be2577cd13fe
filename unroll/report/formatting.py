"""Numbers as text: as many digits as the interval supports, and no more."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from unroll.report.summary import Interval, Row

_LONGEST_LABEL = 32
_MOST_DIGITS = 6


def format_number(value: float, signed: bool = False) -> str:
    """Prints a number without an interval, with four significant digits; exact zero is `0`."""
    if value == 0:
        return "0"
    text = f"{value:+.4g}" if signed else f"{value:.4g}"
    return _short_exponent(text)


def format_interval(interval: Interval, signed: bool = False) -> str:
    """Prints an interval as `mean ± half width`.

    Args:
      interval: the interval.
      signed: print `+` before positive means.

    Returns:
      `0.066 ± 0.004`; `0.066 (1 seed)` without an interval; the bare number where every seed
      gave the same one.
    """
    if interval.half_width is None:
        return f"{format_number(interval.mean, signed)} (1 seed)"
    half_width = interval.half_width
    # The rounding of a mean of equal numbers is not a spread.
    if half_width <= 1e-12 * abs(interval.mean):
        return format_number(interval.mean, signed)
    largest = max(abs(interval.mean), half_width)
    if largest < 1e-4 or largest >= 1e6:
        exponent = math.floor(math.log10(largest))
        scale = 10.0**exponent
        return f"({_fixed(interval.mean / scale, half_width / scale, signed)})e{exponent}"
    return _fixed(interval.mean, half_width, signed)


def display_labels(rows: Sequence[Row]) -> dict[str, str]:
    """Shortens long labels to the hyper-parameters that tell the variants of a method apart.

    Args:
      rows: rows of one section.

    Returns:
      The text to print, by label.
    """
    return {row.label: _display_label(row, rows) for row in rows}


def wrapped(label: str, width: int = 44) -> str:
    """Breaks a long label into lines, after its first bracket and its commas.

    >>> print(wrapped("projected_gradient(epochs=2, stop='fixed_epochs')", 24))
    projected_gradient(
    epochs=2,
    stop='fixed_epochs')
    """
    text = textwrap.fill(label.replace("(", "( ", 1), width, break_long_words=False)
    return text.replace("( ", "(")


def _display_label(row: Row, rows: Sequence[Row]) -> str:
    if len(row.label) <= _LONGEST_LABEL:
        return row.label
    variants = [other.hyperparameters for other in rows if other.method == row.method]
    distinct = {
        name: value
        for name, value in sorted(row.hyperparameters.items())
        if any(name not in variant or variant[name] != value for variant in variants)
    }
    if not distinct:
        return row.method
    arguments = ", ".join([*(f"{name}={value!r}" for name, value in distinct.items()), "…"])
    return f"{row.method}({arguments})"


def _fixed(mean: float, half_width: float, signed: bool) -> str:
    """Rounds the half width to one digit, to two where the first is 1, and the mean to match."""
    mantissa, _, exponent = f"{half_width:.1e}".partition("e")
    decimals = int(mantissa.startswith("1")) - int(exponent)
    if abs(mean) >= 10.0 ** (_MOST_DIGITS - decimals):
        return f"{format_number(mean, signed)} ± {_short_exponent(f'{half_width:.0e}')}"
    shown = max(decimals, 0)
    rounded = round(mean, decimals) + 0.0  # adding zero turns -0.0 into 0.0
    sign = "+" if signed and rounded > 0 else ""
    return f"{sign}{rounded:.{shown}f} ± {round(half_width, decimals):.{shown}f}"


def _short_exponent(text: str) -> str:
    mantissa, letter, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if letter else text
