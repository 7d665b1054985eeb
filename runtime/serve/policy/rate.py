"""An amount a second, exponentially forgotten."""

from __future__ import annotations

from math import exp, inf

MEMORY_S = 0.25
"""What it is averaged over: a few of the shortest deadlines that are common, so that bursts are seen."""


class Rate:
    """What has been added lately, a second."""

    __slots__ = ("_amount", "_at_s", "memory_s")

    def __init__(self, memory_s: float = MEMORY_S) -> None:
        self._amount = self._at_s = 0.0
        self.memory_s = memory_s

    def add(self, amount: float, now_s: float) -> None:
        """So much more."""
        self._amount = self._amount * exp((self._at_s - now_s) / self.memory_s) + amount
        self._at_s = now_s

    def per_s(self, now_s: float) -> float:
        """The rate now."""
        return self._amount * exp((self._at_s - now_s) / self.memory_s) / self.memory_s


FORECAST_S, FAR_FORECAST_S = 1.0, 4.0
"""What is still to come is reckoned from so much that has been, from half a second ahead on from the longer:
a burst of a few tenths of a second is not thought to go on, least of all for seconds. (Reckoned from
`MEMORY_S`, where requests came to one device in bursts, at 0.8 of what it can do, 82% of those with 200 ms
were on time, and so 87%. Of those with 2 s on the bench's devices 97% were, reckoned from 1 s, and so 99.9%.
Under steady overload neither makes a difference.)"""


LONG = 6.0
"""After so many times as long it is as if it had always been: within 0.3%."""


class Forecast:
    """What will come a second: what came lately, or since the first of it if that is more recent."""

    __slots__ = ("_began_s", "_far", "_near")

    def __init__(self) -> None:
        self._near, self._far = Rate(FORECAST_S), Rate(FAR_FORECAST_S)
        self._began_s = inf

    def add(self, amount: float, now_s: float) -> None:
        """So much more."""
        if self._began_s == inf:
            self._began_s = now_s
        self._near.add(amount, now_s)
        self._far.add(amount, now_s)

    def per_s(self, now_s: float, ahead_s: float) -> float:
        """The rate for so long from now on."""
        rate = self._near if 2 * ahead_s <= FORECAST_S else self._far
        per_s, memory_s = rate.per_s(now_s), rate.memory_s
        known_s = now_s - self._began_s
        if known_s < LONG * memory_s:
            per_s /= 1.0 - exp(-max(known_s, MEMORY_S) / memory_s)
        return per_s
