"""An amount a second, exponentially forgotten."""

from __future__ import annotations

from math import exp, inf

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


FORECAST_S = 1.0
"""What is still to come is reckoned from so much that has been: a burst of a few tenths of a second is not
thought to go on. (Reckoned from `MEMORY_S`, where requests came to one device in bursts, at 0.8 of what it
can do, 82% of those with 200 ms were on time, and so 87%; under steady overload it makes no difference.)"""


LONG = 6.0
"""After so many times as long it is as if it had always been: within 0.3%."""


class Forecast(Rate):
    """What will come a second: what came in the last one, or since the first of it if that is more recent."""

    __slots__ = ("_began_s",)

    def __init__(self) -> None:
        super().__init__(FORECAST_S)
        self._began_s = inf

    def add(self, amount: float, now_s: float) -> None:
        """So much more."""
        if self._began_s == inf:
            self._began_s = now_s
        Rate.add(self, amount, now_s)

    def per_s(self, now_s: float) -> float:
        """The rate now."""
        per_s = self._amount * exp((self._at_s - now_s) / FORECAST_S) / FORECAST_S
        known_s = now_s - self._began_s
        if known_s < LONG * FORECAST_S:
            per_s /= 1.0 - exp(-max(known_s, MEMORY_S) / FORECAST_S)
        return per_s
