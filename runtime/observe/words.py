"""Numbers as people read them, the same on the terminal, in the report and in the pictures."""

from __future__ import annotations

import math


def figure(value: float) -> str:
    """A loss or a rate of any size: 1.4e+31 · 5,120 · 34.20 · 2.3026 · 0.0421 · 3.2e-05."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1e7:
        return f"{value:.1e}"
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.2f}"
    return f"{value:.4f}" if size >= 0.001 or size == 0 else f"{value:.1e}"


def speed(per_s: float) -> str:
    """Samples per second: 5,120 · 34.2 · 7.45 samples/s."""
    digits = 0 if per_s >= 100 else 1 if per_s >= 10 else 2
    return f"{per_s:,.{digits}f} samples/s"


def duration(seconds: float) -> str:
    """A time that a person can plan with: 12 s · 3 min 20 s · 2 h 05 min."""
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
