"""Finds portion size, credit and rule by measuring steps: a pure state machine, the same on every rank.

    tuner.next() ─> settings, two steps with them ─> what the second took ─> tuner.told(…)

All ranks are told the same, the slowest rank's seconds, so all take the same way and need not talk about it.
One setting after the other moves as long as that helps: size first, which matters most, then credit, then the
rule. Size moves by factors of 4 before 2, since a large step shows its effect above the noise of a single
measurement: with times that vary by 2%, in simulations of ten networks at 0.1 to 10 Gbit/s, 5 of 600 searches
ended more than 5% above the best of the grid; with factors of 2 alone, 12 of 600.

Where a neighbour on the machine slows some steps down by a half, what was tried meanwhile looks bad, and what
was tried next looks good. Hence two precautions. With a trial every rank tells how long work that is the same
in all of them took its processor: a trial in which that was much longer than in another was disturbed; it
moves nothing, and is made again while steps are left. And the first settings and the best are tried again at
the end, each counts by its least time, and the first stay where they are as good. With seven of ten trials
slowed by 30 to 100%, none of 500 searches ended more than 8% too far off; without the first precaution six
ended 10 to 16% too far off.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

from .plan import RULES, Rule

STEPS = 20
"""Steps that tuning may take."""

STEPS_PER_TRIAL = 2
"""One to fill: its forward pass waits for portions of the settings before; and one that is timed."""

CONFIRMED = 2
"""Trials that are kept for the end."""

MARGIN = 0.01
"""What a change must gain to be taken up, so that noise moves less of what is as good as anything else. With
2%, 8 of those 600 searches ended too far off."""

SMALLEST_BYTES, LARGEST_BYTES = 128 << 10, 16 << 20
"""Of portions that are tried. At the lower end the lane's cost of a portion, about 0.1 ms, is a tenth of its
time at 1 Gbit/s; at the upper end the lowest layer waits there 0.15 s for a portion of another."""

DISTURBED = 1.15
"""Times its least that the same work may take a rank in a trial that counts; jitter alone makes it 1.05."""

ATTEMPTS = 3
"""At settings of which no trial counts, one after the other."""

MOST_CREDIT = 16


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be tuned: bytes of a portion, portions in flight, and which of them leaves first."""

    portion_bytes: int
    credit: int
    rule: Rule


Move = Callable[[Settings], Settings]


@dataclass(frozen=True, slots=True)
class Trial:
    """Seconds of a step, and by rank those of work that is the same in every trial."""

    seconds: float
    same_work_s: tuple[float, ...]


DEFAULT = Settings(1 << 20, 2, "lower_layer_first")
"""Two portions in flight fill the wire where one leaves it idle between its rounds; more would only delay the
one that is wanted first."""


class Tuner:
    """Coordinate search from `first` over what is not in `fixed`, names of settings that stay as they are.

    The first settings are tried twice and the better time counts: a run begins with cold caches and a guessed
    plan. Of sizes that hold the whole gradient, `gradient_bytes`, at most one is tried.
    """

    def __init__(
        self,
        first: Settings,
        fixed: Collection[str] = (),
        steps: int = STEPS,
        gradient_bytes: int = LARGEST_BYTES,
    ) -> None:
        names = [field.name for field in fields(Settings)]
        if unknown := sorted(set(fixed) - set(names)):
            raise ValueError(f"cannot fix {', '.join(unknown)}; settings are {', '.join(names)}")
        self.best = first
        self._gradient_bytes = gradient_bytes
        self._trials: dict[Settings, list[Trial]] = {}
        self._left = steps // STEPS_PER_TRIAL
        self._search = self._walk([name for name in names if name not in fixed])
        self._trial = next(self._search, None)

    def next(self) -> Settings | None:
        """The settings to run two steps with; None: tuning is over, and `best` is found."""
        return self._trial if self._left > 0 else None

    def told(self, seconds: float, same_work_s: Sequence[float] = ()) -> None:
        """The time of a step with the settings that `next` gave, and what the same work took each rank in it.

        Every rank has work of its own: what one rank says of several trials is compared. 0: it cannot tell.
        """
        if (settings := self.next()) is None:
            raise ValueError(f"told {seconds} s, but tuning is over")
        self._left -= 1
        self._trials.setdefault(settings, []).append(Trial(seconds, tuple(same_work_s)))
        self._trial = next(self._search, None)

    def _walk(self, names: Sequence[str]) -> Iterator[Settings]:
        """Yields what is to be tried next, and keeps `best`."""
        if not names:
            return
        first = self.best
        yield from (first, first)
        for move in (move for name in names for move in MOVES[name]):
            while (
                self._left > CONFIRMED
                and (trial := move(self.best)) not in self._trials
                and self._is_sensible(trial)
            ):
                yield from self._until_undisturbed(trial)
                yield from self._until_undisturbed(self.best)  # as which it may not have shown before
                if not self._faster(trial, self.best, MARGIN):
                    break
                self.best = trial
        if self.best != first:
            yield from (first, self.best)
            if not self._faster(self.best, first):
                self.best = first

    def _is_sensible(self, settings: Settings) -> bool:
        size = settings.portion_bytes
        in_bounds = SMALLEST_BYTES <= size <= LARGEST_BYTES and 1 <= settings.credit <= MOST_CREDIT
        return in_bounds and size < 2 * self._gradient_bytes

    def _until_undisturbed(self, settings: Settings) -> Iterator[Settings]:
        for _ in range(ATTEMPTS):
            if self._left > CONFIRMED and not self._undisturbed_s(settings):
                yield settings

    def _faster(self, one: Settings, other: Settings, margin: float = 0.0) -> bool:
        """Whether that is known: both have trials that count."""
        found, known = self._undisturbed_s(one), self._undisturbed_s(other)
        return bool(found and known) and min(found) < (1 - margin) * min(known)

    def _undisturbed_s(self, settings: Settings) -> list[float]:
        """Seconds of the trials of these settings that count, as far as is known by now."""
        told = zip(*(trial.same_work_s for trials in self._trials.values() for trial in trials), strict=True)
        least_s = [min(of_rank) for of_rank in told]
        return [
            trial.seconds
            for trial in self._trials.get(settings, [])
            if all(
                not least or s <= DISTURBED * least
                for s, least in zip(trial.same_work_s, least_s, strict=True)
            )
        ]


def _size_times(numerator: int, denominator: int, settings: Settings) -> Settings:
    return replace(settings, portion_bytes=settings.portion_bytes * numerator // denominator)


def _credit_times(numerator: int, denominator: int, settings: Settings) -> Settings:
    return replace(settings, credit=settings.credit * numerator // denominator)


def _with_rule(rule: Rule, settings: Settings) -> Settings:
    return replace(settings, rule=rule)


MOVES: dict[str, list[Move]] = {
    "portion_bytes": [partial(_size_times, *factor) for factor in ((1, 4), (4, 1), (1, 2), (2, 1))],
    "credit": [partial(_credit_times, *factor) for factor in ((2, 1), (1, 2))],
    "rule": [partial(_with_rule, rule) for rule in RULES],
}
"""By setting, in the order in which they are tried; each is repeated for as long as it helps."""
