"""Who fails what others compute: left out, and tried again now and then.

A batch that raises is over soon, so a resource on which all do (for want of memory, say) is free most often
and would be given most of the work. What fails there is answered elsewhere (`Policy.alone`), and once half of
the batches have failed lately (its profile's availability) it is left out: for a second, and after each trial
that fails for twice as long, up to 16. A trial that fails delays an answer, and costs none.

Batches that were under way when it was left out are no trials of it. And one that was left out for a batch
with a job that fails elsewhere, too, is taken back: else who sends such jobs would keep out a resource that
has recovered, for each may be its trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from .job import Batch

LEAST = 0.5
"""Of availability: from a clean record 14 failures running."""

FIRST_S, LAST_S = 1.0, 16.0


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Until when, and for which batch's failure."""

    until_s: float
    batch: Batch


class Failing:
    """Resources and models, by (resource, model)."""

    def __init__(self) -> None:
        self._left_out: dict[tuple[str, str], LeftOut] = {}
        self._waits_s: dict[tuple[str, str], float] = {}  # the last one, until a trial goes well

    def __contains__(self, key: tuple[str, str]) -> bool:
        """Whether it is left out."""
        return key in self._left_out

    @property
    def due_s(self) -> float:
        """When one may be tried again."""
        return min((each.until_s for each in self._left_out.values()), default=inf)

    def leave_out(self, batch: Batch, now_s: float) -> None:
        """From now on who failed `batch`, unless it is left out already."""
        key = (batch.resource, batch.model)
        if key not in self._left_out:
            wait_s = self._waits_s[key] = min(LAST_S, 2 * self._waits_s.get(key, FIRST_S / 2))
            self._left_out[key] = LeftOut(now_s + wait_s, batch)

    def take_back(self, batch: Batch) -> bool:
        """Who is left out for `batch`, as if it had not been; False: nobody is."""
        key = (batch.resource, batch.model)
        if key not in self._left_out or self._left_out[key].batch is not batch:
            return False
        del self._left_out[key]
        if key in self._waits_s:
            self._waits_s[key] /= 2  # and the next one is as long as this was to be
        return True

    def try_again(self, now_s: float) -> None:
        """Those whose time has come are not left out any more."""
        self._left_out = {key: each for key, each in self._left_out.items() if each.until_s > now_s}

    def well(self, key: tuple[str, str]) -> None:
        """It has computed a batch."""
        self._waits_s.pop(key, None)
