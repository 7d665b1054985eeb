"""Finds portion size, credit and rule by measuring steps: a pure state machine, the same on every rank.

    tuner.next() ─> settings, two steps with them ─> the slowest rank's seconds of the second ─> tuner.told(…)

All ranks are told the same seconds, so all take the same way and need not talk about it. One setting after
the other is moved up and down by factors of two as long as that helps: size first, which matters most, then
credit, then the rule.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from .plan import RULES, Rule

STEPS = 20
"""Steps that tuning may take."""

STEPS_PER_TRIAL = 2
"""One to fill: its forward pass waits for portions of the settings before; and one that is timed."""

MARGIN = 0.02
"""What a change must gain to be taken up. Steps of equal settings differ by some percent, and a change that
gains less is worth less than the certainty of the default."""

SMALLEST_BYTES, LARGEST_BYTES = 128 << 10, 16 << 20
"""Of portions that are tried. Each costs the lane about 0.1 ms, what 16 kB take at 1 Gbit/s; at the other end
the lowest layer waits for at least one portion that does not concern it."""

MOST_CREDIT = 16


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be tuned: bytes of a portion, portions in flight, and which of them leaves first."""

    portion_bytes: int
    credit: int
    rule: Rule


DEFAULT = Settings(1 << 20, 2, "lower_layer_first")
"""Two portions in flight fill the wire where one leaves it idle between its rounds; more would only delay the
one that is wanted first."""


class Tuner:
    """Coordinate search from `first` over what is not in `fixed`, names of settings that stay as they are.

    The first settings are tried twice and the better time counts: a run begins with cold caches.
    """

    def __init__(self, first: Settings, fixed: Collection[str] = (), steps: int = STEPS) -> None:
        names = [field.name for field in fields(Settings)]
        if unknown := sorted(set(fixed) - set(names)):
            raise ValueError(f"cannot fix {', '.join(unknown)}; settings are {', '.join(names)}")
        self.best = first
        self._left = steps // STEPS_PER_TRIAL
        self._search = self._walk([name for name in names if name not in fixed])
        self._trial = next(self._search, None)

    def next(self) -> Settings | None:
        """The settings to run two steps with; None: tuning is over, and `best` is found."""
        return self._trial if self._left > 0 else None

    def told(self, seconds: float) -> None:
        """The time of a step with the settings that `next` gave."""
        if self.next() is None:
            raise ValueError(f"told {seconds} s, but tuning is over")
        self._left -= 1
        try:
            self._trial = self._search.send(seconds)
        except StopIteration:
            self._trial = None

    def _walk(self, names: Sequence[str]) -> Generator[Settings, float, None]:
        """Yields trials, is sent their seconds, and keeps `best`."""
        if not names:
            return
        least_s = min((yield self.best), (yield self.best))
        for name in names:
            for way in _ways(name, getattr(self.best, name)):
                before = self.best
                for value in way:
                    trial = replace(self.best, **{name: value})
                    seconds = yield trial
                    if seconds >= (1 - MARGIN) * least_s:
                        break
                    self.best, least_s = trial, seconds
                if self.best != before and name != "rule":
                    break  # what lies the other way is worse


def _ways(name: str, value: Any) -> list[list[Any]]:
    """The values to try of a setting, from its `value` on, in each direction."""
    if name == "rule":
        return [[rule] for rule in RULES if rule != value]
    least, most = (SMALLEST_BYTES, LARGEST_BYTES) if name == "portion_bytes" else (1, MOST_CREDIT)
    factors = [1 << power for power in range(1, 32)]
    down = [value // factor for factor in factors if value // factor >= least]
    return [down, [value * factor for factor in factors if value * factor <= most]]
