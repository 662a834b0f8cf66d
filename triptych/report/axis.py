"""Axes of a chart: from values to coordinates, and where the ticks stand."""

from __future__ import annotations

import math
from dataclasses import dataclass

_LOG_FROM_RATIO = 30.0
_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
_MAX_LOG_TICKS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A linear or logarithmic axis.

    Attributes:
        low: Value at `start_px`.
        high: Value at `end_px`, above `low`.
        start_px: Coordinate of `low`.
        end_px: Coordinate of `high`; below `start_px` on an axis that points up.
        ticks: Values to mark, all within the axis.
        is_log: Whether distances are ratios.
    """

    low: float
    high: float
    start_px: float
    end_px: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Return the coordinate of a value; one that no logarithm has stands far below."""
        if self.is_log:
            value = max(value, self.low / 1000)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start_px + share * (self.end_px - self.start_px)


def build_value_axis(lowest: float, highest: float, start_px: float, end_px: float) -> Axis:
    """Return an axis over the values, with round ends.

    It is logarithmic where the highest is 30 times the lowest or more. A linear one begins at 0,
    unless the values lie in the upper half of what it would show then.
    """
    if lowest > 0 and highest / lowest >= _LOG_FROM_RATIO:
        return _build_log_axis(lowest, highest, start_px, end_px)
    if 0 < lowest <= highest / 2 or lowest == highest > 0:
        lowest = 0.0
    step = round_step(highest - lowest, 5)
    first, last = math.floor(lowest / step + 1e-9), math.ceil(highest / step - 1e-9)
    last = max(last, first + 1)
    ticks = tuple(round(index * step, 12) for index in range(first, last + 1))
    return Axis(low=ticks[0], high=ticks[-1], start_px=start_px, end_px=end_px, ticks=ticks)


def build_step_axis(first: int, last: int, start_px: float, end_px: float) -> Axis:
    """Return a linear axis from the first to the last step, with round ticks between."""
    last = max(last, first + 1)
    step = max(1, round(round_step(last - first, 5)))
    ticks = tuple(float(tick) for tick in range(-(-first // step) * step, last + 1, step))
    return Axis(low=first, high=last, start_px=start_px, end_px=end_px, ticks=ticks)


def round_step(length: float, max_parts: int) -> float:
    """Return the least of 1, 2, 2.5 and 5 times a power of ten that cuts into `max_parts`."""
    if length <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(length / max_parts))
    return next(part * power for part in _ROUND if part * power * max_parts >= length * (1 - 1e-9))


def format_tick(value: float) -> str:
    """Return a tick's label: no needless zeros, thousands as k."""
    if abs(value) >= 10_000 and value % 100 == 0:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def _build_log_axis(lowest: float, highest: float, start_px: float, end_px: float) -> Axis:
    bottom, top = math.floor(math.log10(lowest)), math.ceil(math.log10(highest))
    fine = [part * 10.0**power for power in range(bottom, top + 1) for part in (1, 2, 5)]
    low = max(tick for tick in fine if tick <= lowest * (1 + 1e-9))
    high = min(tick for tick in fine if tick >= highest * (1 - 1e-9))
    ticks = [tick for tick in fine if low <= tick <= high]
    if len(ticks) > _MAX_LOG_TICKS:
        powers = [10.0**power for power in range(bottom, top + 1) if low <= 10.0**power <= high]
        ticks = powers[:: -(-len(powers) // _MAX_LOG_TICKS)]
    return Axis(
        low=low, high=high, start_px=start_px, end_px=end_px, ticks=tuple(ticks), is_log=True
    )
