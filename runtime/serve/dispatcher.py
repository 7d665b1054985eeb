"""Rank 0's dispatcher: the policy, driven by asyncio.

    infer ── Job ──> policy.arrive            refused: raised at once, with the reason
                          │
    pump  <── after every event, and when the policy's timer is due ──┐
      └── policy.next ── Batch ──> link ──> a rank's lane ── Done ────┘ ──> the callers' futures
      └── policy.dropped ──> Refused

The policy decides (policy/); here is only what a decision needs: whose arrays belong to which job, who waits
for which, timers, and what the workers say of themselves. All of it on the loop's thread.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

from ..errors import RequestError
from .catalog import Catalog, Served
from .link import BATCHES, Link
from .policy import Batch, Job, Policy
from .policy.rate import Rate
from .request import Array, InferRequest, InferResult, Reason, Refused
from .tally import Tally
from .watch import Watch
from .worker import Batch as Samples
from .worker import Done

REST_S = 0.001  # between looks at whether the last batch has ended
SHORTEST_TIMER_S = 1e-4  # the policy may ask again for "now", and the loop must go round in between


BUSY_S = 10.0
"""How busy a worker is, is averaged over so long."""

STUCK_S, STUCK_TIMES = 0.5, 10.0
"""What takes ten times as long as expected, and half a second, is not waited for any more: a lane hangs, or a
process was stopped."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A request whose caller waits."""

    job: Job
    request: InferRequest
    arrays: Sequence[Array]
    future: asyncio.Future[InferResult]
    served: Served  # the newest of what it names; a variant may answer


@dataclass(slots=True)
class Sent:
    """A batch on its way."""

    batch: Batch
    served: Served
    link: Link
    sent_s: float
    awake_s: float  # likewise, by `Watch.awake_s`


class Dispatcher:
    """Answers requests through the links' workers, as `policy` decides."""

    def __init__(self, links: Sequence[Link], catalog: Catalog, policy: Policy) -> None:
        self.policy = policy
        self.tally = Tally()
        self.draining = False
        self.watch = Watch(links, self._overdue, self.up, self.down)
        self._catalog = catalog
        self._links = {link.resource: link for link in links}
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Waiting] = {}  # by the job's number
        self._sent: dict[int, Sent] = {}  # by the batch's number
        self._lost: dict[int, Sent] = {}  # likewise, whose jobs have been given to others
        self._last_end_s = dict.fromkeys(self._links, 0.0)
        self._last_awake_s = dict.fromkeys(self._links, 0.0)
        self._busy = {resource: Rate(BUSY_S) for resource in self._links}
        self._started_s = time.monotonic()
        self._pump_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    # -- requests -----------------------------------------------------------------------------------------

    async def infer(self, request: InferRequest) -> InferResult:
        """Answer; Refused, UnknownModel, WrongInput, RequestError. Cancelling withdraws the request."""
        now_s = time.monotonic()
        served = self._catalog.find(request.model, request.version)
        samples, arrays = served.samples(request)
        arrival_s = now_s if request.arrival_s is None else request.arrival_s
        job = self._job(request, served, samples, arrival_s)
        refused = self._closed() or self.policy.arrive(job, now_s)
        if refused is not None:
            self.tally.refused(served.name, job.service_class, refused.reason)
            await asyncio.sleep(0)  # who asks again at once must not keep the loop from what would admit it
            raise refused
        waiting = Waiting(job, request, arrays, self._loop.create_future(), served)
        self._waiting[job.number] = waiting
        served.open += 1
        self._idle.clear()
        if self._sent:
            self.pump_soon()
        else:
            self._pump()  # nothing is under way that could be joined: a round of the loop would only delay it
        try:
            return await waiting.future
        except asyncio.CancelledError:
            if self.policy.cancel(job):
                self.pump_soon()
            if waiting.future.cancelled():  # else it had been answered, or refused, and was counted as that
                self.tally.refused(served.name, job.service_class, Reason.CANCELLED)
            raise
        finally:
            self._leave(job.number)

    def _job(self, request: InferRequest, served: Served, samples: int, arrival_s: float) -> Job:
        qos = request.qos
        service_class, deadline_s = self._catalog.qos(served, qos)
        return Job(
            number=next(self._numbers),
            family=served.name if request.version else served.open_family,
            arrival_s=arrival_s,
            deadline_s=inf if deadline_s is None else arrival_s + deadline_s,
            service_class=service_class,
            samples=samples,
            client=qos.client,
            accuracy=qos.accuracy,
            cost=qos.cost,
            best_effort=qos.best_effort,
            priority=qos.priority,
        )

    def _closed(self) -> Refused | None:
        if self.draining:
            return Refused(Reason.DRAINING, "the server is about to end and takes no new requests")
        if not self.watch.ready:
            return Refused(Reason.NO_WORKER, "no rank can serve now: see the server's status")
        return None

    def _leave(self, number: int) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            waiting.served.open -= 1
            if not self._waiting:
                self._idle.set()

    # -- the pump -----------------------------------------------------------------------------------------

    def pump_soon(self) -> None:
        """Let the policy decide once what has happened in this round of the loop is known to it."""
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_s = time.monotonic()
        while isinstance(decision := self.policy.next(now_s), Batch):
            self._send(decision, now_s)
        for job, refused in self.policy.dropped():
            waiting = self._waiting.get(job.number)
            if waiting is not None and not waiting.future.done():
                self.tally.refused(waiting.served.name, job.service_class, refused.reason)
                waiting.future.set_exception(refused)
        if decision < inf:
            due_s = max(decision, now_s + SHORTEST_TIMER_S)
            self._timer = self._loop.call_at(due_s, self._pump)

    def _send(self, batch: Batch, now_s: float) -> None:
        served = self._catalog.named(batch.model)
        link = self._links[batch.resource]
        arrays = [self._waiting[job.number].arrays for job in batch.jobs]
        pieces = [list(each) for each in zip(*arrays, strict=True)]
        served.open += 1
        self._sent[batch.number] = sent = Sent(batch, served, link, now_s, self.watch.awake_s())
        link.run(Samples(batch.number, served.key, batch.samples, pieces), partial(self._done, sent))

    def _done(self, sent: Sent, done: Done) -> None:
        now_s = time.monotonic()
        batch, resource = sent.batch, sent.link.resource
        started_s = max(sent.sent_s, self._last_end_s[resource])
        self._last_end_s[resource], self._last_awake_s[resource] = now_s, self.watch.awake_s()
        self._busy[resource].add(now_s - started_s, now_s)
        sent.served.open -= 1
        # Before anybody is answered: who asks again at once is to find the worker free. It costs 40 us.
        if done.error:
            self.policy.failed(batch, now_s)
        else:
            self.policy.ended(batch, started_s, now_s)
        if self._lost.pop(batch.number, None) is not None:
            pass  # the worker has come to itself
        elif done.error:
            self._fail(sent, done.error, now_s)
        else:
            self._answer(sent, done, started_s, now_s)
        self._sent.pop(batch.number, None)
        self.pump_soon()

    def _answer(self, sent: Sent, done: Done, started_s: float, now_s: float) -> None:
        batch, served, at = sent.batch, sent.served, 0
        self.tally.computed(served.name, batch.samples, done.compute_s, len(batch.jobs))
        for job in batch.jobs:
            rows = slice(at, at + job.samples)
            at += job.samples
            waiting = self._waiting.get(job.number)
            if waiting is None or waiting.future.done():
                continue  # its caller has left
            self.tally.answered(served.name, job, started_s, now_s)
            waiting.future.set_result(
                InferResult(
                    model=served.version.model,
                    version=served.version.title,
                    outputs=_outputs(waiting, served, done.outputs, rows),
                    resource=batch.resource,
                    queue_s=max(0.0, started_s - job.arrival_s),
                    compute_s=done.compute_s,
                    batch=batch.samples,
                    labels=served.labels,
                )
            )

    def _fail(self, sent: Sent, trace: str, now_s: float) -> None:
        """It may have been another request's mistake, such as an index that is not there, or the worker's."""
        for job in sent.batch.jobs:
            waiting = self._waiting.get(job.number)
            if waiting is None or waiting.future.done():
                continue  # its caller has left
            if (again := self.policy.alone(sent.batch, job, now_s)) is not None:
                self._send(again, now_s)
                continue
            self.tally.failed(sent.served.name, job, now_s)
            waiting.future.set_exception(RequestError(BATCHES, sent.link.rank, sent.link.host, trace))

    # -- workers and models -------------------------------------------------------------------------------

    def up(self, link: Link) -> None:
        """A worker has come (back), or has other models now."""
        models = [served.name for served in self._catalog.all()]
        self.policy.up(link.resource, link.resource.split()[-1], models, time.monotonic())
        self.pump_soon()

    def down(self, link: Link) -> None:
        """A worker does not answer: its jobs go elsewhere, and what it may still answer is ignored."""
        lost = {number: sent for number, sent in self._sent.items() if sent.link is link}
        self.policy.down(link.resource, time.monotonic())
        for number, sent in lost.items():
            self._lost[number] = self._sent.pop(number)
            for job in sent.batch.jobs:
                if job.number not in self._waiting:  # its caller has left
                    self.policy.cancel(job)
        self.pump_soon()

    def reconfigure(self) -> None:
        """The catalog has changed."""
        for link in self._links.values():  # first: nobody may have what the policy is not to know any more
            if not self.watch.given_up(link):
                self.up(link)
        self.policy.configure(self._catalog.policy_settings(), time.monotonic())

    def _overdue(self, link: Link) -> bool:
        """Whether the batch that a worker is at takes far longer than any should, given to others or not."""
        if not self._sent and not self._lost:
            return False
        batches = itertools.chain(self._lost.values(), self._sent.values())  # a worker's in its order
        sent = next((sent for sent in batches if sent.link is link), None)
        if sent is None:
            return False
        started_s = max(sent.awake_s, self._last_awake_s[link.resource])
        return self.watch.awake_s() - started_s > max(STUCK_S, STUCK_TIMES * sent.batch.expected_s)

    async def rest(self) -> None:
        """Return when nothing is asked and nothing computed."""
        await self._idle.wait()
        while any(served.open for served in self._catalog.all()):
            await asyncio.sleep(REST_S)

    async def drain(self) -> None:
        """Take no new requests, and return when all accepted ones are answered."""
        self.draining = True
        await self._idle.wait()

    def give_up(self, why: str) -> None:
        """Refuse all that is still waited for."""
        for waiting in list(self._waiting.values()):
            self.policy.cancel(waiting.job)
            if not waiting.future.done():
                self.tally.refused(waiting.served.name, waiting.job.service_class, Reason.DRAINING)
                waiting.future.set_exception(Refused(Reason.DRAINING, why))
        self.pump_soon()

    # -- what is told -------------------------------------------------------------------------------------

    def status(self) -> Mapping[str, Any]:
        """As Service.status says."""
        now_s = time.monotonic()
        uptime_s = now_s - self._started_s
        sent: dict[str, int] = dict.fromkeys(self._links, 0)
        for each in self._sent.values():
            sent[each.link.resource] += each.batch.samples
        on_their_way = {job.number for each in self._sent.values() for job in each.batch.jobs}
        oldest: dict[str, float] = {}  # requests are in the order of arrival
        for waiting in self._waiting.values():
            if (job := waiting.job).number not in on_their_way:
                oldest.setdefault(job.service_class, now_s - job.arrival_s)
        return {
            "uptime_s": uptime_s,
            "draining": self.draining,
            "ranks": len(self._links),
            "workers": [
                {
                    "resource": resource,
                    "state": self.watch.state(link),
                    "models": [served.name for served in self._catalog.all()],
                    "busy_share": min(1.0, self._busy[resource].per_s(now_s)),
                    "queued": sent[resource],
                }
                for resource, link in self._links.items()
            ],
            "queues": [
                {"class": name, "queued": queued, "oldest_s": oldest.get(name, 0.0)}
                for name, queued in self.policy.queued.items()
            ],
            "classes": self.tally.describe(),
            "profiles": [
                {
                    "resource": resource, "model": model, "batch": size,
                    "p50_ms": 1e3 * profile.percentile_s(size, 0.5),
                    "p99_ms": 1e3 * profile.percentile_s(size, 0.99),
                    "per_s": profile.per_s(size), "error": profile.error,
                    "availability": profile.availability,
                }
                for (resource, model), profile in self.policy.profiles.items()
                if resource in self._links  # others are known from a server with more ranks
                for size in profile.sizes
            ],
        }  # fmt: skip


def _outputs(waiting: Waiting, served: Served, outputs: Sequence[Array], rows: slice) -> dict[str, Array]:
    """A request's part of a batch, under the names of the model that it asked for."""
    wanted = waiting.request.outputs
    names = [info.name for info in waiting.served.outputs]
    return {
        name: array[rows] if info.shape[:1] == (-1,) else array.copy()  # else several callers' own
        for name, info, array in zip(names, served.outputs, outputs, strict=True)
        if not wanted or name in wanted
    }
