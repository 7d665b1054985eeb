"""How long a resource takes for a batch of a model: measured, predicted for sizes never seen, and relearned.

    size      1      2      4      8     16     32        each measured size has a mean of its own,
    mean    3.3 ms         5.6           15.1             the others lie on a line through them,
    says    3.3    4.1     5.6    8.7    15.1   27.4      a + c · size; never less than for a smaller batch

A resource that has become slower, because somebody else computes there too, is slower at every size. So when
results are off to the same side several times running, all means are scaled by the median of these results,
and not learned anew size by size: a resource that became two times slower is known to be after five batches.
Where only one size is off, its own five last results correct it.
Clockwork (Gujarati et al., "Serving DNNs like Clockwork: Performance Predictability from the Bottom Up", OSDI
2020) keeps the last ten results of each size, of which every one would have to notice by itself. A size that
is not asked for any more follows those that are in all they learn: scaled down with them when a few results
running were quick, and not learned up again with them, it would end at nothing.

How far results scatter around the means is kept as ratios, of all sizes together: tails are rare, and a
deadline is met with a p99.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import accumulate
from math import inf
from statistics import median
from typing import Any

SHIFT, RUNNING = 1.15, 5
"""A resource has changed when so many results running are off by more than this factor, to one side. With a
scatter of 5% that happens by chance once in 10^14 results. One that is further off moves its size's mean
as if it were just so far."""

OWN_FROM = 3
"""Results after which a size has a mean of its own that others are judged by."""

YOUNG = 2 * RUNNING
"""A size with fewer results that is an outlier against any larger one takes no longer than that: it may have
had two hiccups running. With more, its own last five have corrected that. (What is within the scatter stays:
held to the least of all larger ones it cost 0.6% of the goodput in overload.)"""

GAIN = 0.1
"""What a result moves its size's mean by, once there are ten: it counts the last twenty."""

OUTLIER = 1.5
"""A result is at most this much off in the distribution: five that are more are a change, and no tail."""

WINDOW = 256
"""Ratios that the distribution is taken from: below a hundred, a p99 is only the greatest."""

STALE = 32
"""A size that none of the last results was of follows the others."""

LOOK, LENIENT = 16, 4.0
"""Means are held against so many results, and may be off what these allow by this factor: a batch that no
longer fits into a cache takes more than its part. 256 samples of 64 kB took three times theirs for a chain of
additions, and at a factor of 2 were forgotten to do so as soon as nobody had asked for so many."""

PRIOR = (*(1.0,) * 15, 1.15)
"""What the distribution is before anything was measured."""

GUESS_S = 10e-3
"""For a sample, where nothing is known at all."""

MOST_BATCH = 2**16
"""Samples of a batch: of every size there are a latency here and a program on every rank, all made when a
model is loaded. Of a billion, which any load request might ask for, the list alone has more than 100 GB."""

GREATEST = 1e100
"""Of seconds, or their part, in a file that is not damaged: their squares are numbers."""


class Profile:
    """One resource and one model."""

    def __init__(self, max_batch: int, like: Profile | None = None) -> None:
        """`like` is believed until something has been measured here."""
        self.max_batch = max_batch
        self.results = 0
        self.error = 0.0  # |measured - expected| / measured, averaged over the last twenty or so
        self.availability = 1.0  # the share of batches that did not fail, likewise
        self.failures = 0  # running, whoever's fault
        self.slowdown = 1.0  # against the fastest it has been
        self._means: dict[int, float] = {}
        self._counts: dict[int, int] = {}
        self._first: dict[int, list[float]] = {}  # by size: what it took, as long as these are few
        self._last: dict[int, int] = {}  # by size: the number of its last result
        self._last_s: dict[int, float] = {}  # and when it came
        self._here: dict[int, int] = {}  # results that no earlier server has stored: of the machine as it is
        self._recent: dict[int, deque[float]] = {}  # the last ones
        # Of the last results, with the size of those that are not in `_ratios`, too: it had few results then.
        self._off: deque[tuple[float, int | None]] = deque(maxlen=RUNNING)
        self._sure: deque[bool] = deque(maxlen=RUNNING)  # of the same: they tell of a change by themselves
        self._lately: list[tuple[int, float]] = []  # up to `LOOK` results: samples, seconds
        self._ratios = deque(PRIOR)
        self._sorted = sorted(PRIOR)
        self._tail = PRIOR[-1]
        self._line: tuple[float, float] = (0.0, GUESS_S) if like is None else like._line
        self._latency: list[float] = []  # by size; [0] is not used
        self._tabulate()

    # ---- what it says -------------------------------------------------------------------------------------

    def expected_s(self, samples: int) -> float:
        """The latency to be expected of a batch of so many samples."""
        return self._latency[samples]

    def safe_s(self, samples: int) -> float:
        """The latency that 99 of 100 batches keep to."""
        return self._latency[samples] * self._tail

    def largest(self, within_s: float) -> int:
        """The largest batch that takes no longer than `within_s`, 99 times of 100; 0 where none does."""
        return bisect_right(self._latency, within_s / self._tail, lo=1) - 1

    def percentile_s(self, samples: int, share: float) -> float:
        """The latency that this share of batches keeps to: 0.5 for the median."""
        return self._latency[samples] * _quantile(self._sorted, share)

    def per_s(self, samples: int) -> float:
        """Samples a second, in batches of this size one after another."""
        return samples / self._latency[samples]

    @property
    def fixed_s(self) -> float:
        """What a batch costs however small it is: what is saved by joining two."""
        return self._line[0]

    @property
    def sample_s(self) -> float:
        """What each sample adds to that."""
        return self._line[1]

    @property
    def sizes(self) -> list[int]:
        """The batch sizes that have been measured."""
        return sorted(self._means)

    def here(self, samples: int) -> int:
        """How many results of batches as large, or larger, this server has had."""
        return sum(count for size, count in self._here.items() if size >= samples)

    def last_s(self, samples: int) -> float | None:
        """When the last of these came; None if there is no result of any size."""
        if not self.results:
            return None
        return max((s for size, s in self._last_s.items() if size >= samples), default=-inf)

    # ---- what it learns from ------------------------------------------------------------------------------

    def measured(self, samples: int, seconds: float, now_s: float) -> None:
        """A batch of so many samples took so long; its result came at `now_s`."""
        ratio = seconds / self._latency[samples]
        self.results += 1
        self._here[samples] = self._here.get(samples, 0) + 1
        self._last_s[samples] = now_s
        self.failures = 0
        self.availability += 0.05 * (1.0 - self.availability)
        self.error += max(0.05, 1 / self.results) * (abs(1.0 - 1.0 / ratio) - self.error)
        known = self._counts.get(samples, 0) >= OWN_FROM
        # Of a size that is not known yet too much may have been expected; too little tells of a change, too.
        if known or (self._means and ratio > 1 / SHIFT):
            self._off.append((ratio, None if known else samples))
            self._sure.append(known or seconds > SHIFT * self._at_most(samples))
            if self._shifted():
                factor = median(ratio for ratio, _ in self._off)
                self._scale(factor)
                ratio = seconds / self._means[samples] if known else ratio / factor
            elif known:
                self._spread(ratio)
                self._correct(samples, seconds)
        elif self._off and self._off[-1][0] > 1.0:
            self._off.clear()  # a quick one: those before it were hiccups, and not running
            self._sure.clear()
        self._learn(samples, seconds, ratio)
        self._lately.append((samples, seconds))
        if len(self._lately) == LOOK:
            self._bound()
        self._tabulate()

    def failed(self) -> None:
        """A batch failed, or was lost with its resource."""
        self.failures += 1
        self.availability -= 0.05 * self.availability

    def forgive(self) -> None:
        """A failure was the request's own.

        `failures` keeps it, which tell who is asked next where somebody has failed: he who has computed
        something since his own last failure. Where two of three fail everything, what one fails the other
        does, too, and is forgiven; with nothing kept of it, nobody would ever have asked the third.
        """
        self.availability = min(1.0, self.availability / 0.95)

    def _shifted(self) -> bool:
        off = [ratio for ratio, _ in self._off]
        # Sizes that are all new may be off because latencies lie on no line: where 8 samples took as long as
        # 32 and no other had been looked at, others' results were a change of all sizes, which were then
        # thought to take 2.2 times as long as they did.
        sure = sum(self._sure) > 1
        return len(off) == RUNNING and sure and (min(off) > SHIFT or max(off) < 1 / SHIFT)

    def _at_most(self, samples: int) -> float:
        """What a batch takes at most that is as fast as ever, on whatever curve: a larger one's mean."""
        larger = (size for size in self._means if size > samples and self._counts[size] > 1)
        return min((self._means[size] for size in larger), default=inf)

    def _scale(self, factor: float) -> None:
        *before, _ = self._off
        new = {size for _, size in before}  # what these took, they took after the change
        self._first = {size: first for size, first in self._first.items() if size in new}
        self._means = {size: mean * factor for size, mean in self._means.items()} | {
            size: first[(len(first) - 1) // 2] for size, first in self._first.items()
        }
        self.slowdown = max(1.0, self.slowdown * factor)
        for _, size in before:
            if size is None:  # it told of the change, not of the scatter
                self._forget(self._ratios.pop())
        self._off.clear()
        self._sure.clear()
        self._recent.clear()

    def _correct(self, samples: int, seconds: float) -> None:
        """A size of which the last results are all off to one side is as they are."""
        recent = self._recent.setdefault(samples, deque(maxlen=RUNNING))
        recent.append(seconds)
        mean = self._means[samples]
        if len(recent) == RUNNING and (min(recent) > SHIFT * mean or max(recent) < mean / SHIFT):
            self._means[samples] = median(recent)
            recent.clear()

    def _spread(self, ratio: float) -> None:
        ratio = min(ratio, OUTLIER)  # three results of a change would make a tail that lets no more come
        self._ratios.append(ratio)
        insort(self._sorted, ratio)
        if len(self._ratios) > WINDOW:
            self._forget(self._ratios.popleft())
        self._tail = _quantile(self._sorted, 0.99)

    def _forget(self, ratio: float) -> None:
        del self._sorted[bisect_left(self._sorted, ratio)]

    def _learn(self, samples: int, seconds: float, ratio: float) -> None:
        count = self._counts[samples] = self._counts.get(samples, 0) + 1
        self._last[samples] = self.results
        if count <= OWN_FROM:
            self._begin(samples, seconds, ratio, count)
            return
        before_s = self._means[samples]
        seconds = before_s * min(max(ratio, 1 / SHIFT), SHIFT)
        self._means[samples] += max(GAIN, 1 / count) * (seconds - before_s)
        factor = self._means[samples] / before_s
        for size in self._means:
            if self.results - self._last.get(size, 0) > STALE:
                self._means[size] *= factor

    def _begin(self, samples: int, seconds: float, ratio: float, count: int) -> None:
        """The mean of a size's first results: of three that in the middle, of two the smaller one.

        One alone is believed as far as other sizes allow. It may be a hiccup: the machine did something else.
        Taken as it was, one of 40 ms had all batches as large, or larger, thought impossible for deadlines
        of 5 ms, and no result came that told otherwise. Of requests for a model that takes half a
        millisecond, with one hiccup in 20, 46% were on time; first come, first served had 87%.
        """
        if count == 1:
            self._first[samples] = [seconds]
            self._means[samples] = seconds * min(1.0, OUTLIER / ratio) if self._means else seconds
            return
        first = self._first.pop(samples, [self._means[samples]] * (count - 1))
        insort(first, seconds)
        self._means[samples] = first[(count - 1) // 2]
        if count < OWN_FROM:
            self._first[samples] = first

    def _bound(self) -> None:
        """Hold the means to what the last results allow: more samples take longer, at most in proportion.

        A size that is seldom asked for is scaled with the others, time and again, and its own few results
        correct none of that. Where results scattered by factors, one ended at 4e-16 s. Five results of that
        size were then a change of all sizes, to 2.5e8 s, and every deadline was impossible.
        """
        for size, mean in self._means.items():
            least = min(seconds * min(1.0, size / samples) for samples, seconds in self._lately) / LENIENT
            most = max(seconds * max(1.0, size / samples) for samples, seconds in self._lately) * LENIENT
            self._means[size] = min(max(mean, least), most)
        self._lately.clear()

    def _tabulate(self) -> None:
        """The line through the means, and latency by size."""
        self._line = a, c = self._fitted()
        own = [a + c * size for size in range(self.max_batch + 1)]
        least = inf
        for size in sorted(self._means, reverse=True):
            mean = self._means[size]
            if self._counts[size] < YOUNG and mean > OUTLIER * least:
                mean = least
            own[size] = mean
            least = min(least, mean)
        own[0] = 0.0
        self._latency = list(accumulate(own, max))

    def _fitted(self) -> tuple[float, float]:
        """Least squares of relative errors; a size counts by its results, up to ten."""
        if not self._means:
            return self._line
        n = x = xx = y = xy = 0.0
        for size, mean in self._means.items():
            weight = min(self._counts[size], 10) / (mean * mean)
            n += weight
            x += weight * size
            xx += weight * size * size
            y += weight * mean
            xy += weight * size * mean
        # One size alone: nothing is known of the fixed cost, and to think it none is to be careful.
        spread = n * xx - x * x
        c = (n * xy - x * y) / spread if spread > 1e-9 * n * xx else xy / xx
        a = (y - c * x) / n
        if a < 0.0:
            return 0.0, xy / xx
        return (a, c) if c > 0.0 else (y / n, 0.0)

    # ---- stored and reloaded ------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "max_batch": self.max_batch,
            "results": self.results,
            "availability": self.availability,
            "error": self.error,
            "sizes": [[size, self._means[size], self._counts[size]] for size in self.sizes],
            "ratios": list(self._ratios),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Profile:
        """What `to_dict` gave; KeyError, TypeError or ValueError where it did not."""
        if not 1 <= stored["max_batch"] <= MOST_BATCH:
            raise ValueError(f"batches of up to {stored['max_batch']} samples")
        profile = cls(int(stored["max_batch"]))
        results, availability, error = stored["results"], stored["availability"], stored["error"]
        if not (0 <= results < inf and 0.0 <= availability <= 1.0 and 0.0 <= error < inf):
            raise ValueError(f"{results} results, availability {availability}, error {error}")
        profile.results, profile.availability, profile.error = int(results), float(availability), float(error)
        for size, mean, count in stored["sizes"]:
            possible = 1 <= size <= profile.max_batch and 1 / GREATEST <= mean <= GREATEST
            if not (possible and 0 < count < inf):
                raise ValueError(f"a batch of {size} samples took {mean} s in {count} results")
            profile._means[int(size)], profile._counts[int(size)] = float(mean), int(count)
        profile._ratios = deque(float(ratio) for ratio in stored["ratios"])
        if not profile._ratios or not all(0.0 < ratio < inf for ratio in profile._ratios):
            raise ValueError(f"{len(profile._ratios)} ratios, of which all must be above 0, and some there")
        profile._sorted = sorted(profile._ratios)
        profile._tail = _quantile(profile._sorted, 0.99)
        profile._tabulate()
        return profile


class Profiles:
    """The profiles of all resources and models."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], Profile] = {}

    def of(self, resource: str, model: str, max_batch: int = 32) -> Profile:
        """That of `model` on `resource`; a new one begins with what is known of the model elsewhere."""
        profile = self._of.get((resource, model))
        if profile is None or profile.max_batch < max_batch:  # loaded anew, with larger batches
            known = [p for (_, name), p in self._of.items() if name == model and p.results]
            slowest = max(known, key=lambda p: p.expected_s(1), default=None)
            profile = self._of[resource, model] = Profile(max_batch, slowest)
        return profile

    def items(self) -> Iterable[tuple[tuple[str, str], Profile]]:
        """By resource and model."""
        return self._of.items()

    def to_list(self) -> list[dict[str, Any]]:
        """As JSON has it."""
        return [{"resource": r, "model": m, **profile.to_dict()} for (r, m), profile in self._of.items()]

    @classmethod
    def from_list(cls, stored: Iterable[Mapping[str, Any]]) -> Profiles:
        """What `to_list` gave; KeyError, TypeError or ValueError where it did not."""
        profiles = cls()
        for each in stored:
            profiles._of[str(each["resource"]), str(each["model"])] = Profile.from_dict(each)
        return profiles


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
