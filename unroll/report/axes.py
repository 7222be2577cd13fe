"""A logarithmic axis with a place for exact zeros, which replay and doing nothing both have."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from unroll.report.style import FAINT, MUTED

_PADDING = 1.6
# Distances as shares of the length of the logarithmic part.
_GAP_TO_ZERO = 0.12
_MARGIN = 0.06


@dataclasses.dataclass(frozen=True)
class LogAxisWithZero:
    """Positions on a logarithmic axis that is broken below its lowest value to show 0.

    Attributes:
      lowest: lowest positive value with a place.
      highest: highest value with a place.
      has_zero: whether zero needs a place.
    """

    lowest: float
    highest: float
    has_zero: bool

    @classmethod
    def around(cls, values: Iterable[float], room: float = 0.0) -> LogAxisWithZero:
        """Chooses limits around values that are zero or positive.

        Args:
          values: what must fit.
          room: space to leave free above the highest value, as a share of the range.

        Returns:
          The axis.
        """
        values = list(values)
        positive = [value for value in values if value > 0] or [1.0]
        low, high = min(positive) / _PADDING, max(positive) * _PADDING
        return cls(low, high * (high / low) ** room, min(values) <= 0)

    @property
    def zero(self) -> float:
        """Where exact zeros are drawn."""
        return self._below(_GAP_TO_ZERO)

    @property
    def start(self) -> float:
        """Lower limit of the axis."""
        return self._below(_GAP_TO_ZERO + _MARGIN) if self.has_zero else self.lowest

    def place(self, value: float) -> float:
        """Position of a value; zero has its own."""
        return self.zero if value == 0 else self.clip(value)

    def clip(self, value: float) -> float:
        """Moves a value, such as the end of an interval, into the logarithmic part."""
        return min(max(value, self.lowest), self.highest)

    def ticks(self) -> list[float]:
        """Positions of the ticks: decades, or 1, 2, 5 where there are few decades."""
        exponents = range(math.floor(math.log10(self.lowest)), math.ceil(math.log10(self.highest)))
        steps = (1,) if self._decades() > 2.2 else (1, 2, 5)
        candidates = [step * 10.0**exponent for exponent in exponents for step in steps]
        inside = [tick for tick in candidates if self.lowest <= tick <= self.highest]
        return [self.zero, *inside] if self.has_zero else inside

    def tick_text(self, position: float) -> str:
        """Text of a tick."""
        if self.has_zero and position == self.zero:
            return "0"
        exponent = round(math.log10(position))
        if abs(exponent) > 3 and math.isclose(position, 10.0**exponent):
            return f"$10^{{{exponent}}}$"
        return f"{position:.4g}"

    def apply(self, axes: Axes, direction: str) -> None:
        """Sets scale, limits, ticks and break marks of one direction (`x` or `y`)."""
        getattr(axes, f"set_{direction}scale")("log")
        getattr(axes, f"set_{direction}lim")(self.start, self.highest)
        axis = getattr(axes, f"{direction}axis")
        axis.set_major_locator(FixedLocator(self.ticks()))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda position, _: self.tick_text(position)))
        if self.has_zero:
            self._draw_zero(axes, direction)

    def _draw_zero(self, axes: Axes, direction: str) -> None:
        band = axes.axvspan if direction == "x" else axes.axhspan
        band(
            self.start, self._below(_GAP_TO_ZERO - _MARGIN), color=FAINT, alpha=0.35, lw=0, zorder=0
        )
        total = 1 + _GAP_TO_ZERO + _MARGIN
        for share in (0.0, 0.015):
            position = (_MARGIN * 2 + 0.02 + share) / total
            stroke = ([position - 0.006, position + 0.006], [-0.014, 0.014])
            xs, ys = stroke if direction == "x" else stroke[::-1]
            axes.plot(xs, ys, transform=axes.transAxes, color=MUTED, lw=1, clip_on=False, zorder=7)

    def _decades(self) -> float:
        return math.log10(self.highest / self.lowest)

    def _below(self, share: float) -> float:
        return self.lowest * 10 ** (-share * self._decades())
