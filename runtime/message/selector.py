"""An asyncio event loop whose selector also watches MPI, so that an MPI request is awaited like a socket.

    loop iteration:   select(timeout) ──► run what became ready ──► select(timeout) ──► ...
                         │
                         ├─ test the outstanding MPI requests, complete their futures
                         ├─ look at the sockets, pipes and timers, as any asyncio loop does
                         └─ neither has anything: nap (see nap.py), and again

Everything else of asyncio works unchanged beside it: timers, sockets, subprocesses, executors, signals.

    loop = MpiLoop()
    loop.run_until_complete(main())        # weft.runtime.message.run(main) does this and the rest

Only the loop's thread calls MPI through it. Other threads use `loop.call_soon_threadsafe`, which
wakes a napping loop at once.
"""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from mpi4py import MPI

from ..errors import Mistake
from .doorbell import Doorbells
from .latency import ask_for_short_slice
from .nap import NapPolicy

# Polling in place, before a task suspends (see `linger`): an awake peer's answer takes 5 to 20 us,
# suspending and resuming a task costs 3 to 5 us, so it pays for about this long.
LINGER_S = 25e-6
# Sockets and timers are looked at least this often, however fast messages arrive.
FAIR_S = 200e-6
# select(2) takes descriptors below this only; it is the one call that sleeps for microseconds
# (epoll rounds up to a millisecond: a nap of 0.2 ms really took 1 ms).
FD_SETSIZE = 1024


LONGEST_TEXT = 500
"""Characters of what a collective or a wait is called: the names travel in reports, and nobody reads more."""

ONE_SIZE = "all ranks must give a collective arrays of one size"
ONE_TYPE = "all ranks must give a collective arrays of one type and order"


class Call(NamedTuple):
    """A collective as a rank called it. All ranks' calls of one number agree in all of it.

    `checksum` is that of the rest of all calls up to this one; `nbytes` are those that the rank gives, and
    `elements` is what they are: their type, and whether they are in Fortran order.
    """

    operation: str
    what: str
    checksum: int = 0
    nbytes: int = 0
    elements: str = ""


class Needs(NamedTuple):  # made for every collective: 0.2 us, a frozen dataclass 0.4 us
    """Without whom a wait cannot end, for stall reports: `peers`, ranks of the world; none if any may come.

    A collective is the `number`-th (from 1) on the communicator `group`. `patience_s` is how long the
    wait may last before it is reported (None: as the world says); `witnesses` are ranks that may wait for the
    same and are to leave the telling to one.
    """

    peers: tuple[int, ...] = ()
    group: str = ""
    number: int = 0
    call: Call | None = None
    patience_s: float | None = None
    witnesses: tuple[int, ...] = ()


NOBODY = Needs()


class Pending(Protocol):
    """What the selector calls when an MPI request ends."""

    what: str
    started: float
    standing: bool  # a persistent receive that starts itself again: not counted as being awaited
    needs: Needs

    def complete(self, status: MPI.Status) -> None:
        """The request ended well; `status` is valid only during this call."""

    def fail(self, error: MPI.Exception) -> None:
        """The request ended with an error."""


class Watch(Protocol):
    """What the selector looks at beside MPI, while somebody waits for it: see board.py."""

    def look(self) -> bool:
        """Whether something has come; what waits for it is called by `loop.call_soon`, not from here."""


class Turns(Protocol):
    """Who says when a rank may go into a call of MPI that blocks: see meeting.py."""

    def call(self, visit: Any) -> None:
        """This rank has called the collective before it."""

    def come(self, visit: Any) -> None:
        """All ranks have come for what `visit` is to make: it does when it is its turn."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One thing this rank waits for, as a stall report prints it. `since` is `time.monotonic()`."""

    what: str
    since: float
    needs: Needs = NOBODY


class MpiSelector(selectors.BaseSelector):
    """The selector of an `MpiLoop`: sockets by the system's best selector, requests by MPI's test."""

    def __init__(self, policy: NapPolicy | None = None) -> None:
        self._sockets = selectors.DefaultSelector()
        fd: int = self._sockets.fileno()
        self._fds = [fd]
        self._glance = select.poll()  # one look costs 0.3 us, a look by the selector itself 1.2 us
        self._glance.register(fd, select.POLLIN)
        #: How long to sleep between looks at MPI.
        self.policy = policy or NapPolicy()
        self._requests: list[MPI.Request] = []
        self._pendings: list[Pending] = []
        self._statuses: list[MPI.Status] = [MPI.Status()]
        self._standing = 0
        self._watches: tuple[Watch, ...] = ()  # replaced, never changed: `look` may take its own away
        self._testing = False
        #: When something last came, or was asked for.
        self.last_activity = 0.0
        #: When sockets and timers were last looked at.
        self.last_look = 0.0
        #: How long awaited operations took lately, in seconds; each counts for an eighth.
        self.pace_s = 0.0
        self.loop: MpiLoop
        #: The loop's thread, the only one that calls MPI.
        self.thread = threading.get_ident()
        #: Whether a kernel runs on this rank now; set by the owner of the lane.
        self.computing: Callable[[], bool] = lambda: False
        #: The same of others than the lane, that compute on threads of their own.
        self.beside: set[Callable[[], bool]] = set()
        #: Waits for what standing receives bring (a channel's receive).
        self.expecting = 0
        #: All communicators in use, in the order they were made: the same order on all their ranks.
        self.communicators: list[Any] = []
        #: How other ranks of this node can wake this one; set by whoever has them ring.
        self.bells: Doorbells | None = None
        #: In which order this rank goes into calls that block; set by whoever knows (None: as they come).
        self.meetings: Turns | None = None
        #: Further sources of `pending()`.
        self.reporters: list[Callable[[], Iterable[Waiting]]] = []

    # -- MPI requests -------------------------------------------------------------------------

    def check_thread(self) -> None:
        """Mistake on another thread than the loop's, such as that of a pool's task.

        What was begun there was begun in fact, to no good: its future is the loop's, to be awaited nowhere
        else, and the others met this rank's next collective in it.
        """
        if threading.get_ident() != self.thread:
            raise Mistake(
                f"MPI is called on thread {threading.current_thread().name!r}; messages and collectives are "
                "begun on the loop's thread alone. Have it do so: "
                "asyncio.run_coroutine_threadsafe(coroutine, world.loop).result(); or return it"
            )

    def add(self, request: MPI.Request, pending: Pending) -> None:
        """Watch `request`; when it ends, `pending.complete` or `pending.fail` is called."""
        self._requests.append(request)
        self._pendings.append(pending)
        if len(self._statuses) < len(self._requests):
            self._statuses.append(MPI.Status())
        if pending.standing:
            self._standing += 1
        self.last_activity = time.monotonic()

    def discard(self, pending: Pending) -> None:
        """Stop watching the requests of `pending`."""
        for index in reversed(range(len(self._pendings))):
            if self._pendings[index] is pending:
                self._remove(index)

    def watch(self, watch: Watch) -> None:
        """Look at `watch` in every test, as something that is awaited, until `unwatch`."""
        self._watches = (*self._watches, watch)

    def unwatch(self, watch: Watch) -> None:
        """Look at it no more."""
        self._watches = tuple(w for w in self._watches if w is not watch)

    def pending(self) -> list[Waiting]:
        """What this rank waits for, the oldest first; standing receives are left out."""
        waiting = [Waiting(p.what, p.started, p.needs) for p in self.outstanding()]
        for reporter in self.reporters:
            waiting.extend(reporter())
        return sorted(waiting, key=lambda w: w.since)

    def outstanding(self) -> list[Pending]:
        """What MPI works on, each once; standing receives are left out."""
        return list(dict.fromkeys(p for p in self._pendings if not p.standing))

    def test(self) -> bool:
        """Test all outstanding requests and watches once and complete what ended; whether anything did."""
        if self._testing:  # (a completion may cancel a receive, which tests)
            return False
        ended = False
        requests = self._requests
        count = len(requests)
        if count:
            self._testing = True
            try:
                ended = self._test(requests, count)
            finally:
                self._testing = False
        for watch in self._watches:
            if watch.look():
                ended = True
                self.last_activity = time.monotonic()
        return ended

    def _test(self, requests: list[MPI.Request], count: int) -> bool:
        try:
            if count == 1:  # 0.1 us, Testsome 0.3 us and 0.03 us more for each request
                indices = [0] if requests[0].Test(self._statuses[0]) else None
            else:
                indices = MPI.Request.Testsome(requests, self._statuses)
        except MPI.Exception as error:
            self._sort_out(error)
            return True
        if not indices:
            return False
        ended = [(self._pendings[i], status) for i, status in zip(indices, self._statuses, strict=False)]
        now = self.last_activity = time.monotonic()
        for i in sorted(indices, reverse=True):
            if not self._pendings[i].standing:
                self.pace_s += (now - self._pendings[i].started - self.pace_s) / 8
                self._remove(i)
        for pending, status in ended:
            self._complete(pending, status)
        return True

    def _complete(self, pending: Pending, how: MPI.Status | MPI.Exception) -> None:
        try:
            if isinstance(how, MPI.Exception):
                pending.fail(how)
            else:
                pending.complete(how)
        except Exception as error:  # a fault in Weft: not the fault of whichever task waits just now
            message = f"error while receiving: {pending.what}"
            self.loop.call_exception_handler({"message": message, "exception": error})

    def _remove(self, index: int) -> None:
        if self._pendings[index].standing:
            self._standing -= 1
        del self._requests[index], self._pendings[index]

    def _sort_out(self, error: MPI.Exception) -> None:
        """Some requests ended with an error: tell each its own.

        mpi4py keeps the indices to itself then, but a request that ended has become null, an ended
        persistent one is inactive (its test gives an empty status), and the statuses are in order.
        """
        ended = []
        for index, (request, pending) in enumerate(zip(self._requests, self._pendings, strict=True)):
            if request == MPI.REQUEST_NULL:
                ended.append(index)
            elif pending.standing:
                status = MPI.Status()
                if request.Test(status):
                    if status.source >= 0:
                        self._complete(pending, status)
                    else:
                        ended.append(index)
        told = [(self._pendings[i], status) for i, status in zip(ended, self._statuses, strict=False)]
        for i in reversed(ended):
            if not self._pendings[i].standing:
                self._remove(i)
        for pending, status in told:
            if error.Get_error_class() != MPI.ERR_IN_STATUS:
                self._complete(pending, error)
            elif status.error != MPI.SUCCESS:
                self._complete(pending, MPI.Exception(status.error))
            else:
                self._complete(pending, status)
        self.last_activity = time.monotonic()

    @property
    def busy(self) -> bool:
        """Whether a kernel runs on this rank now."""
        return self.computing() or any(each() for each in self.beside)

    def linger(self, future: asyncio.Future[Any]) -> None:
        """Look for `future`'s completion a few times before its awaiter suspends.

        Returns as soon as it is done, or the loop has other work, or `LINGER_S` are over. Suspending
        and resuming costs more than an awake peer's answer takes: this halves a channel's round trip.
        Never while a kernel computes, and never when sockets and timers have not been looked at for
        `FAIR_S`: then the caller suspends, and they get their turn.
        """
        ready = self.loop.ready
        now = self.last_activity = time.monotonic()  # what is awaited was asked for just now
        if ready or now - self.last_look > FAIR_S or self.busy:
            return
        end = now + LINGER_S
        test = self.test
        while True:
            if test() and (future.done() or ready):
                return
            if time.monotonic() > end:
                return

    # -- what asyncio calls -------------------------------------------------------------------

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Events on sockets, as asyncio wants them; returns early when MPI completed something."""
        if not self._requests and not self.expecting and not self._watches:
            events = self._sockets.select(timeout)
            self.last_look = time.monotonic()
            return events
        now = time.monotonic()
        deadline = float("inf") if timeout is None else now + timeout
        looks = 0
        while not self.test():
            remaining = deadline - now
            if remaining <= 0:
                break
            watched = bool(self._watches)
            nap = self.policy.nap(
                now - self.last_activity,
                awaited=len(self._requests) > self._standing or (watched and self.bells is None),
                watched=watched,
                expecting=self.expecting > 0,
                computing=self.busy,
                rung=self.bells is not None and self.bells.everyone,
                pace_s=self.pace_s,
            )
            if nap > 0:
                if self._nap(min(nap, remaining)):
                    break
            else:
                # Other ranks or threads may need this core. It also lets other threads have the GIL.
                os.sched_yield()
                looks += 1
                if looks % 8 == 0 and self._glance.poll(0):
                    break
            now = time.monotonic()
        self.last_look = time.monotonic()
        return self._sockets.select(0) if self._glance.poll(0) else []

    def _nap(self, seconds: float) -> bool:
        """Sleep until a socket or MPI has something, or the time is over; whether one of them has."""
        bells = self.bells
        if bells is not None:
            bells.nap()
        # For who looked at this rank's byte just before. And Open MPI's Testsome looks first, then moves
        # messages: what came during a nap was seen after the next (after a rest a trip took 3.2 ms, not 1.2).
        if bells is None:
            return self.test() or len(self._sleep(self._fds, seconds)) > 0
        something = self.test()
        ready = [] if something else self._sleep([*self._fds, bells.fd], seconds)
        bells.woke()
        if bells.fd in ready:
            bells.heard()
            self.last_activity = time.monotonic()  # the message may take a moment longer
        return something or self._fds[0] in ready

    def _sleep(self, fds: list[int], seconds: float) -> list[int]:
        if max(fds) < FD_SETSIZE:
            return select.select(fds, (), (), seconds)[0]
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        return [fd for fd, _ in poll.poll(seconds * 1e3)]  # rounds up to 1 ms

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """As in `selectors`."""
        return self._sockets.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """As in `selectors`."""
        return self._sockets.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """As in `selectors`."""
        return self._sockets.modify(fileobj, events, data)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """As in `selectors`."""
        return self._sockets.get_key(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """As in `selectors`."""
        return self._sockets.get_map()

    def close(self) -> None:
        """As in `selectors`."""
        self._sockets.close()


class MpiLoop(asyncio.SelectorEventLoop):
    """asyncio's own selector event loop, with an `MpiSelector` reachable as `loop.mpi`."""

    def __init__(self, policy: NapPolicy | None = None) -> None:
        self.mpi = MpiSelector(policy)
        super().__init__(self.mpi)
        self.mpi.loop = self

    def run_forever(self) -> None:
        """As in asyncio; this thread is to answer soon, whatever else computes on its core."""
        ask_for_short_slice()
        self.mpi.thread = threading.get_ident()
        super().run_forever()

    def _start_serving(self, protocol_factory: Any, sock: socket.socket, *args: Any) -> None:
        """As in asyncio, which calls it again a second after it could not accept for want of files.

        A server that was closed in that second was an error of the loop, which ended the job.
        """
        if sock.fileno() >= 0:
            super()._start_serving(protocol_factory, sock, *args)  # type: ignore[misc]

    @property
    def ready(self) -> Any:
        """The callbacks that are ready to run (asyncio's own queue); empty means the loop would sleep."""
        return self._ready  # type: ignore[attr-defined]
