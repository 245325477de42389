"""Axes: round ticks, and where a value stands between the ends, in percent."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic axis."""

    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def percent(self, value: float) -> float:
        """Return where ``value`` stands: 0 at ``low``, 100 at ``high``, cut at both ends."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return round(100.0 * min(1.0, max(0.0, (value - low) / (high - low))), 3)


def nice_scale(low: float, high: float, *, num_ticks: int, is_tight: bool = False) -> Scale:
    """Return a linear axis with about ``num_ticks`` ticks at 1, 2 or 5 times a power of ten.

    The ends are ticks too, unless ``is_tight``: then they are the given values.
    """
    if not high > low:
        low, high = (low - 0.5, low + 0.5) if low else (0.0, 1.0)
    rough = (high - low) / max(1, num_ticks)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(n * step, 12) for n in range(first, last + 1))
    if is_tight:
        return Scale(low, high, tuple(t for t in ticks if low <= t <= high))
    return Scale(ticks[0], ticks[-1], ticks)


def log_scale(low: float, high: float) -> Scale:
    """Return a logarithmic axis from a power of ten to a power of ten around the values above 0."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    ticks = tuple(10.0**n for n in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], ticks, is_log=True)
