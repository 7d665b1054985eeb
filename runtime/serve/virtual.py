"""Policies in virtual time: emulated devices, and jobs that arrive whether or not the last ones are answered.

The policy is the one that runs live. A device computes what is committed to it in turn, takes `fixed_s` and
`sample_s` for each sample, and scatters: most results by a few percent, one of `hiccup_every` by much more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from random import Random

from .policy import Batch, Job, Policy
from .request import Refused


@dataclass(frozen=True, slots=True)
class Cost:
    """What a batch of a model takes on an idle device."""

    fixed_s: float
    sample_s: float

    def seconds(self, samples: int) -> float:
        """Without scatter."""
        return self.fixed_s + self.sample_s * samples


@dataclass(frozen=True, slots=True)
class Device:
    """An emulated resource."""

    name: str
    costs: Mapping[str, Cost]  # by model
    kind: str = "cpu"
    scatter: float = 0.03  # standard deviation of a batch's time, relative
    hiccup_every: int = 2000  # batches, of which one takes `hiccup` times as long
    hiccup: float = 1.5
    link_s: float = 100e-6  # until a batch is there, and until its answer is back
    slower: Callable[[float], float] = field(default=lambda now_s: 1.0)  # factor at a time


@dataclass(slots=True)
class Outcome:
    """What became of a job: answered at a time, or refused for a reason at a time."""

    job: Job
    at_s: float
    refused: Refused | None = None
    batch: Batch | None = None

    @property
    def on_time(self) -> bool:
        """Whether it was answered within its deadline."""
        return self.refused is None and self.at_s <= self.job.deadline_s

    @property
    def late(self) -> bool:
        """Whether it was answered, but after its deadline."""
        return self.refused is None and self.at_s > self.job.deadline_s


Event = Callable[[float], None]


class Simulation:
    """A policy, its devices and a heap of what happens when."""

    def __init__(self, policy: Policy, devices: Sequence[Device], seed: int = 0) -> None:
        self.policy = policy
        self.outcomes: list[Outcome] = []
        self.batches: list[tuple[Batch, float, float]] = []  # begun and ended at
        self.now_s = 0.0
        self._random = Random(seed)
        self._devices = {device.name: device for device in devices}
        self._running: dict[str, deque[Batch]] = {device.name: deque() for device in devices}
        self._free_s = dict.fromkeys(self._devices, 0.0)
        self._answered_s = dict.fromkeys(self._devices, 0.0)
        self._lost: set[int] = set()  # numbers of batches whose device was down in between
        self._events: list[tuple[float, int, Event]] = []
        self._order = 0
        self._timer_s = inf
        for device in devices:
            policy.up(device.name, device.kind, device.costs, 0.0)

    def run(self, jobs: Iterable[Job], until_s: float = inf) -> list[Outcome]:
        """Let `jobs` arrive, in the order of their arrival, until all are answered or it is `until_s`."""
        arriving = iter(jobs)
        job = next(arriving, None)
        while True:
            event_s = self._events[0][0] if self._events else inf
            job_s = job.arrival_s if job is not None else inf
            now_s = min(event_s, job_s, self._timer_s)
            if now_s == inf or now_s > until_s:
                return self.outcomes
            self.now_s = now_s
            if event_s == now_s:
                heappop(self._events)[2](now_s)
            elif job is not None and job_s == now_s:
                refused = self.policy.arrive(job, now_s)
                if refused is not None:
                    self.outcomes.append(Outcome(job, now_s, refused))
                job = next(arriving, None)
            self._decide()

    def at(self, when_s: float, event: Event) -> None:
        """Have something happen: a device that goes down, a job that is cancelled."""
        self._order += 1
        heappush(self._events, (when_s, self._order, event))

    def down(self, name: str) -> None:
        """A device is lost with what it computes."""
        self._lost |= {batch.number for batch in self._running[name]}
        self._running[name].clear()
        self.policy.down(name, self.now_s)

    def up(self, name: str) -> None:
        """It is back."""
        device = self._devices[name]
        self._free_s[name] = self.now_s
        self.policy.up(name, device.kind, device.costs, self.now_s)

    def _decide(self) -> None:
        while isinstance(decision := self.policy.next(self.now_s), Batch):
            self._send(decision)
        if decision <= self.now_s:
            raise RuntimeError(f"{self.policy.name} asks to be asked again at {decision}, which is now")
        self._timer_s = decision
        for job, refused in self.policy.dropped():
            self.outcomes.append(Outcome(job, self.now_s, refused))

    def _send(self, batch: Batch) -> None:
        device = self._devices[batch.resource]
        began_s = max(self._free_s[device.name], self.now_s + device.link_s)
        seconds = device.costs[batch.model].seconds(batch.samples) * device.slower(began_s)
        seconds *= max(0.5, self._random.gauss(1.0, device.scatter))
        if self._random.random() * device.hiccup_every < 1.0:
            seconds *= device.hiccup
        self._free_s[device.name] = began_s + seconds
        self._running[device.name].append(batch)
        sent_s = self.now_s
        self.at(began_s + seconds + device.link_s, lambda now_s: self._ended(batch, sent_s, now_s))

    def _ended(self, batch: Batch, sent_s: float, now_s: float) -> None:
        if batch.number in self._lost:
            return
        # As the dispatcher sees it: from its sending, or from the answer to the last one, to its own.
        begun_s = max(sent_s, self._answered_s[batch.resource])
        self._answered_s[batch.resource] = now_s
        self._running[batch.resource].remove(batch)
        self.policy.ended(batch, begun_s, now_s)
        self.batches.append((batch, begun_s, now_s))
        self.outcomes += [Outcome(job, now_s, None, batch) for job in batch.jobs]
