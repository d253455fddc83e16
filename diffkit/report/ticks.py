"""Axes: positions and labels of ticks, and pixels of values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Axis:
    """An axis with ticks, from value `low` at pixel `start` to value `high` at pixel `end`; both > 0 if `log`."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, values: NDArray[np.float64] | Sequence[float] | float) -> NDArray[np.float64]:
        """Convert values to pixels, rounded to a tenth."""
        array = np.asarray(values, dtype=np.float64)
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        share = ((np.log10(array) if self.log else array) - low) / (high - low)
        return np.round(self.start + share * (self.end - self.start), 1)

    def labels(self) -> list[str]:
        """Return the text of each tick."""
        step = math.inf if self.log or len(self.ticks) < 2 else self.ticks[1] - self.ticks[0]
        power = not self.log and max((abs(tick) for tick in self.ticks), default=1.0) < 5e-3
        return [power_label(tick) if power else tick_label(tick, step) for tick in self.ticks]


def axis(low: float, high: float, start: float, end: float, *, log: bool = False, widen: bool = False) -> Axis:
    """Return an axis with two to nine ticks.

    Args:
        low: Smallest value.
        high: Largest value.
        start: Pixel of `low`.
        end: Pixel of `high`.
        log: Logarithmic; default False.
        widen: Move the ends out to the nearest ticks; default False.

    Returns:
        The axis.
    """
    if log:
        return _log_axis(low, high, start, end)
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) * 0.5 or 1.0
        low, high = low - margin, high + margin
    step = nice_step((high - low) / 4)
    if widen:
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(low, high, start, end, tuple(k * step for k in range(first, last + 1)))


def nice_step(rough: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5, 10 times a power of ten that is not below `rough` > 0."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if factor * power >= rough * (1 - 1e-9))


def _log_axis(low: float, high: float, start: float, end: float) -> Axis:
    """Return at most seven powers of ten as ticks; an axis of less than two decades also has 2 and 5 times them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if math.log10(high / low) < 2:
        steps = [m * 10.0**k for k in range(first, last + 1) for m in (1, 2, 5)]
        low = max(step for step in steps if step <= low * (1 + 1e-9))
        high = min(step for step in [*steps, 10.0 ** (last + 1)] if step >= high * (1 - 1e-9) and step > low)
        ticks = [step for step in steps if low <= step <= high]
    else:
        stride = math.ceil((last - first) / 6)
        low, high = 10.0**first, 10.0**last
        ticks = [10.0**k for k in range(first, last + 1, stride)]
    return Axis(low, high, start, end, tuple(ticks), log=True)


def tick_label(value: float, step: float = math.inf) -> str:
    """Format the value of a tick, such as "0.05", "2k" or "1e-5"; the distance `step` of ticks defines the decimals."""
    size = abs(value)
    if size < 1e-12 or (math.isfinite(step) and size < step * 1e-6):
        return "0"
    if size >= 1e6 or size < 1e-3:
        return power_label(value)
    if size >= 1e4 or (size >= 1000 and value % 100 == 0 and step >= 100):
        return f"{value / 1000:g}k".replace("-", "−")
    decimals = max(0, -math.floor(math.log10(step) + 1e-9) + (_odd(step))) if math.isfinite(step) else 6
    text = f"{value:.{decimals}f}"
    return (text if math.isfinite(step) else text.rstrip("0").rstrip(".")).replace("-", "−")


def power_label(value: float) -> str:
    """Format a small number: 0.00025 -> "2.5e−4"; a number that rounds to zero is "0"."""
    if abs(value) < 1e-300:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−")


def _odd(step: float) -> bool:
    """Return whether the step is 2.5 times a power of ten, which needs one more decimal."""
    return abs(step / 10.0 ** math.floor(math.log10(step) + 1e-9) - 2.5) < 1e-6
