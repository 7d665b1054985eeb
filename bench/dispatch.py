"""What a decision costs with a thousand queued requests, and how well latency is predicted.

python -m bench dispatch
python -m bench dispatch --queued 4000

decision_p50_us, decision_p99_us
                   all that is decided at an event, a request that arrives or an answer that comes back:
                   whether the request is accepted, and what is sent, until there is nothing to send
send_p50_us        of that, events at which a batch is sent
learn_p50_us       what is learned from an answer, beside it
prediction_error   |measured - predicted| / measured, mean of 200 results after 50, sizes at random
relearned_batches  results until the prediction is within 5% again, of a resource that is 2 times slower

Weft's policy, two models, three classes, two emulated resources. Deadlines are long enough for so many
requests to wait. Every request must be in one batch, or be dropped and told, or there are no figures.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterator
from itertools import count
from math import inf
from random import Random

from bench._arrivals import CLASSES, MIX
from bench._emulated import COSTS, DEVICES, SETTINGS, measured
from bench.harness import Figure, check, positive
from weft.runtime.errors import Mistake
from weft.runtime.serve.policy import Batch, Job, Weft
from weft.runtime.serve.profile import Profile

SCATTER = 0.03
LARGEST = 32  # samples of a batch
FULL = 0.9
"""Of the requests that are to wait: events with fewer do not count."""
FEWEST = 700  # requests: with two batches less the queue is still full


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--queued", type=positive, default=1000, metavar="N", help="requests that wait (1000)")
    add("--events", type=positive, default=20000, metavar="N", help="in a repetition (20000)")
    add("--repetitions", type=positive, default=3, metavar="N", help="rounds (3)")


def main(args: argparse.Namespace) -> dict[str, Figure]:
    if args.queued < FEWEST:
        raise Mistake(f"--queued is {args.queued}; give {FEWEST} or more: a batch takes {LARGEST}")
    events = [Events(args.queued, seed) for seed in range(args.repetitions)]
    for each in events:
        each.run(args.events)
        each.finish()
    errors = [prediction_error(Random(seed)) for seed in range(args.repetitions)]
    relearned = [float(relearned_batches(Random(seed))) for seed in range(args.repetitions)]
    together = [sorted(each.others + each.sends) for each in events]
    return {
        "decision_p50_us": Figure.of([quantile(own, 0.50) for own in together], "us", 1e6),
        "decision_p99_us": Figure.of([quantile(own, 0.99) for own in together], "us", 1e6),
        "send_p50_us": Figure.of([quantile(sorted(each.sends), 0.50) for each in events], "us", 1e6),
        "learn_p50_us": Figure.of([quantile(sorted(each.learns), 0.50) for each in events], "us", 1e6),
        "prediction_error": Figure.of(errors, ""),
        "relearned_batches": Figure.of(relearned, "batches"),
    }


def quantile(ordered: list[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))]


class Events:
    """A policy in virtual time, with its queue kept at about so many requests; each event is timed."""

    def __init__(self, queued: int, seed: int) -> None:
        self._random = Random(seed)
        self._policy = Weft(SETTINGS, measured())
        for device in DEVICES:
            self._policy.up(device.name, device.kind, device.costs, 0.0)
        self._stretch = 40.0 * queued / 1000  # of deadlines
        self._queued = queued
        self._numbers = count()
        self._open: set[int] = set()
        self._running: list[tuple[float, Batch]] = []
        self._now_s = 0.0
        self.sends: list[float] = []  # seconds
        self.others: list[float] = []
        self.learns: list[float] = []

    def run(self, events: int) -> None:
        """Let so many events happen while the queue is full."""
        gc.collect()
        gc.disable()  # a collection takes milliseconds, and is not the policy's
        try:
            while len(self.others) + len(self.sends) < events or not (self.sends and self.learns):
                if len(self._open) >= self._queued:
                    self._event(self._end(), None)
                else:
                    self._event(None, self._job())
        finally:
            gc.enable()

    def finish(self) -> None:
        """Let all that waits be answered; what does not come out then has been lost."""
        while self._open:
            if self._running:
                self._event(self._end(), None)
                continue
            decision = self._policy.next(self._now_s)
            if isinstance(decision, Batch):
                self._book([decision])
                continue
            self._book([])  # takes note of what was dropped
            check(decision < inf, f"{len(self._open)} requests are lost, {min(self._open)} the first of them")
            self._now_s = max(self._now_s, decision)

    def _event(self, ended: Batch | None, arrived: Job | None) -> None:
        policy, now_s = self._policy, self._now_s
        refused = None
        sent = []
        begin = time.perf_counter()
        if ended is not None:
            policy.ended(ended, ended.start_s, now_s)
        learned = time.perf_counter()
        if arrived is not None:
            refused = policy.arrive(arrived, now_s)
        while isinstance(decision := policy.next(now_s), Batch):
            sent.append(decision)
        decided = time.perf_counter()
        if arrived is not None and refused is None:
            self._open.add(arrived.number)
        self._book(sent)
        if len(self._open) > FULL * self._queued:
            (self.sends if sent else self.others).append(decided - learned)
            if ended is not None:
                self.learns.append(learned - begin)

    def _book(self, sent: list[Batch]) -> None:
        for batch in sent:
            for job in batch.jobs:
                check(job.number in self._open, f"request {job.number} was in two batches")
                self._open.remove(job.number)
            cost = DEVICES[[device.name for device in DEVICES].index(batch.resource)].costs[batch.model]
            seconds = cost.seconds(batch.samples) * self._random.gauss(1.0, SCATTER)
            self._running.append((max(batch.start_s, self._now_s) + seconds, batch))
        self._open -= {job.number for job, _ in self._policy.dropped()}

    def _end(self) -> Batch:
        first = min(self._running, key=lambda each: each[0])
        self._running.remove(first)
        self._now_s = max(self._now_s, first[0])
        return first[1]

    def _job(self) -> Job:
        each = self._random.choices(CLASSES, MIX)[0]
        family = self._random.choice(list(COSTS))
        deadline_s = self._now_s + each.deadline_s * self._stretch
        return Job(next(self._numbers), family, self._now_s, deadline_s, each.name)


def results(random: Random, slower: float = 1.0) -> Iterator[tuple[int, float]]:
    """Sizes at random, and what they took."""
    cost = COSTS["vision"]
    while True:
        size = random.randint(1, LARGEST)
        yield size, slower * cost.seconds(size) * random.gauss(1.0, SCATTER)


def prediction_error(random: Random) -> float:
    profile, errors = Profile(LARGEST), []
    for number, (size, seconds) in zip(range(250), results(random), strict=False):
        if number >= 50:
            errors.append(abs(seconds - profile.expected_s(size)) / seconds)
        profile.measured(size, seconds, float(number))
    return sum(errors) / len(errors)


def relearned_batches(random: Random) -> int:
    """In batches of sizes at random; predicted for all sizes, without scatter."""
    profile = Profile(LARGEST)
    for number, (size, seconds) in zip(range(200), results(random), strict=False):
        profile.measured(size, seconds, float(number))
    for number, (size, seconds) in enumerate(results(random, slower=2.0)):
        profile.measured(size, seconds, 200.0 + number)
        off = [
            abs(1 - profile.expected_s(b) / (2 * COSTS["vision"].seconds(b))) for b in range(1, LARGEST + 1)
        ]
        if sum(off) / len(off) <= 0.05 or number > 500:
            return number + 1
    return 0
