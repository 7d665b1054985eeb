"""Who fails what others compute: left out, and tried again now and then.

A batch that raises is over soon, so a resource on which all do (for want of memory, say) is free most often
and would be given most of the work. What fails there is answered elsewhere (`Policy.alone`), and once half of
the batches have failed lately (its profile's availability) it is left out: for a second, and after each trial
that fails for twice as long, up to 16. A trial that fails delays an answer, and costs none.
"""

from __future__ import annotations

from math import inf

LEAST = 0.5
"""Of availability: from a clean record 14 failures running."""

FIRST_S, LAST_S = 1.0, 16.0


class Failing:
    """Resources and models, by (resource, model)."""

    def __init__(self) -> None:
        self._until_s: dict[tuple[str, str], float] = {}  # of those that are left out
        self._waits_s: dict[tuple[str, str], float] = {}  # the last one, until a trial goes well

    def __contains__(self, key: tuple[str, str]) -> bool:
        """Whether it is left out."""
        return key in self._until_s

    @property
    def due_s(self) -> float:
        """When one may be tried again."""
        return min(self._until_s.values(), default=inf)

    def leave_out(self, key: tuple[str, str], now_s: float) -> None:
        """From now on."""
        wait_s = self._waits_s[key] = min(LAST_S, 2 * self._waits_s.get(key, FIRST_S / 2))
        self._until_s[key] = now_s + wait_s

    def try_again(self, now_s: float) -> None:
        """Those whose time has come are not left out any more."""
        self._until_s = {key: until_s for key, until_s in self._until_s.items() if until_s > now_s}

    def well(self, key: tuple[str, str]) -> None:
        """It has computed a batch."""
        self._waits_s.pop(key, None)
