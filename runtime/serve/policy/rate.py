"""An amount a second, exponentially forgotten."""

from __future__ import annotations

from math import exp

MEMORY_S = 0.25
"""What it is averaged over: a few of the shortest deadlines that are common, so that bursts are seen."""


class Rate:
    """What has been added lately, a second."""

    __slots__ = ("_amount", "_at_s", "_memory_s")

    def __init__(self, memory_s: float = MEMORY_S) -> None:
        self._amount = self._at_s = 0.0
        self._memory_s = memory_s

    def add(self, amount: float, now_s: float) -> None:
        """So much more."""
        self._amount = self._amount * exp((self._at_s - now_s) / self._memory_s) + amount
        self._at_s = now_s

    def per_s(self, now_s: float) -> float:
        """The rate now."""
        return self._amount * exp((self._at_s - now_s) / self._memory_s) / self._memory_s
