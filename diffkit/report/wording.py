"""Format numbers, durations and sizes for reading."""

from __future__ import annotations

import math
from datetime import datetime

import numpy as np

_SUPER = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_HUGE = 1e300


def number(value: object) -> float | None:
    """Convert a finite real number to float; return None for anything else (texts, flags, nan, inf)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return None
    try:
        result = float(value)
    except (OverflowError, TypeError):
        return None
    return result if math.isfinite(result) and abs(result) < _HUGE else None


def count(value: object) -> str:
    """Format a count: 1234567 -> "1,234,567"."""
    found = number(value)
    return "unknown" if found is None else f"{round(found):,}"


def figure(value: object, digits: int = 3) -> str:
    """Format a measured number with `digits` significant digits: "0.127", "1,240", "3.2 × 10⁻⁵"."""
    found = number(value)
    if found is None:
        return "n/a"
    if found == 0:
        return "0"
    exponent = int(f"{found:.{digits - 1}e}".split("e")[1])
    if exponent < -3 or exponent >= 7:
        mantissa, power = f"{found:.{digits - 1}e}".split("e")
        return f"{mantissa} × 10{str(int(power)).translate(_SUPER)}".replace("-", "−")
    decimals = max(0, digits - 1 - exponent)
    return f"{found:,.{decimals}f}".replace("-", "−")


def large(value: object) -> str:
    """Format a large number: 35746307 -> "35.7 M"."""
    found = number(value)
    if found is None:
        return "unknown"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(found) >= size:
            return f"{found / size:.3g} {unit}"
    return f"{found:.0f}"


def duration(seconds: object) -> str:
    """Format seconds: 151.3 -> "2 min 31 s"."""
    found = number(seconds)
    if found is None or found < 0:
        return "unknown"
    if found < 10:
        return f"{found:.2g} s" if found < 1 else f"{found:.1f} s"
    whole = round(found)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def memory(size: object) -> str:
    """Format bytes: 431898624 -> "412 MiB"."""
    found = number(size)
    if found is None or found < 0:
        return "unknown"
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if found >= limit:
            return f"{found / limit:.3g} {unit}" if found < 1000 * limit else f"{found / limit:.0f} {unit}"
    return f"{found:.0f} B"


def moment(text: object, seconds: bool = False) -> str:
    """Format an ISO 8601 time as "2025-01-31 12:00 UTC"; any other text is returned unchanged."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    return f"{found:%Y-%m-%d %H:%M:%S}" if seconds else f"{found:%Y-%m-%d %H:%M %Z}".rstrip()
