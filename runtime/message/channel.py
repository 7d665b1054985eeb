"""Channels: messages of any content between ranks, by the channel's name, with requests and replies.

    channel = await world.channel("greetings")
    if world.rank == 0:
        answer = await channel.request(1, {"how": "are you"}, timeout=5.0)
        print(answer.body)                                   # "fine"
    else:
        message = await channel.receive()
        await message.reply("fine")

A body is what msgpack knows, arrays go behind it: `channel.send(1, {"step": 3}, weights, bias)`.

- **Order.** Messages from one rank on one channel are received in the order they were sent.
- **Channels need no opening elsewhere.** What arrives for a channel that this rank has not asked for yet
  waits until it does.
- **Arrays** are sent from their memory, without a copy if large: leave them unchanged until `send` returns,
  or until the reply to `request` is there.
- **Back-pressure.** A small message (up to 16 KiB) is taken by MPI at once, and waits at its receiver, whose
  memory alone is the limit: whoever sends faster than it is received should use `request`, which waits.
  The arrays of a large message stay with the sender, whose `send` waits, while more than 256 MiB of
  unreceived arrays lie at the receiver's end of the channel.
- **Timeouts** raise `TimeoutError` saying who did not answer what. **Cancelling** a `request` cancels its
  handler on the other rank; a reply that comes late is dropped. A cancelled `receive` loses no message. A
  cancelled `send` is sent all the same.
- **Errors.** What a handler raises is raised by the `request` as `RequestError`, with its rank and traceback;
  where nobody waits for a reply it goes to the loop's exception handler, which under `run` ends the job.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from numpy.typing import NDArray

from ..errors import Mistake, RequestError, WeftError
from .operation import Operation
from .receive import ANY
from .selector import FAIR_S
from .switchboard import CANCEL, ERROR, MESSAGE, REPLY, REQUEST, Incoming, Switchboard

#: Unreceived arrays that may lie at the receiver's end of a channel before senders have to wait.
BACKLOG_BYTES = 256 * 2**20

Handler = Callable[["Message"], Any]


class Message:
    """A received message: who sent it (`source`), its `body`, its `arrays` (new, yours)."""

    __slots__ = ("_channel", "_request", "arrays", "body", "source")

    def __init__(
        self, channel: Channel, source: int, body: Any, arrays: list[NDArray[Any]], request: int
    ) -> None:
        self.source = source
        self.body = body
        self.arrays = arrays
        self._channel = channel
        self._request = request  # 0: not a request, or replied to

    @property
    def wants_reply(self) -> bool:
        """Whether it is a request that has not been replied to."""
        return self._request != 0

    async def reply(self, body: Any = None, *arrays: NDArray[Any]) -> None:
        """Answer a request, once."""
        if not self._request:
            raise Mistake(
                f"a message from rank {self.source} on channel {self._channel.name!r} was replied to that is "
                "no request or has its reply already; ask with channel.request, and reply once"
            )
        operation = self._channel._post(REPLY, self._request, self.source, body, arrays)
        self._request = 0  # not before: a body that can't be sent is no reply
        await self._channel._sent(operation)

    def __repr__(self) -> str:
        kind = "request" if self._request else "message"
        return f"<{kind} from rank {self.source} on {self._channel.name!r}: {self.body!r:.60}>"


class Channel:
    """Messages between the ranks of a world under one name. Made by `await world.channel(name)`."""

    def __init__(self, board: Switchboard, name: str) -> None:
        self.name = name
        self.rank = board.comm.rank
        self.size = board.comm.size
        self._board = board
        self._selector = board.selector
        self._loop = board.loop
        # 64 bits of a hash: two names meet by chance once in 10^10 programs with 40,000 channels each.
        self._id = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        self._queue: deque[Message] = deque()  # here and not yet received
        self._receivers: list[tuple[int, asyncio.Future[Message]]] = []
        # Sources of which a large message is not all here, with what came behind it
        self._unfinished: dict[int, deque[Incoming]] = {}
        self._held: deque[Incoming] = deque()  # large messages left with their senders
        #: What the unreceived arrays at this end take in memory.
        self.backlog_bytes = 0
        self._handler: Handler | None = None
        self._handler_is_async = False
        self._tasks: set[asyncio.Task[None]] = set()  # of the handler
        self._answering: dict[tuple[int, int], asyncio.Task[None]] = {}  # by request, for its cancelling
        self._closed = False
        board.attach(self._id, self)

    # -- sending --------------------------------------------------------------------------------

    async def send(self, dest: int, body: Any = None, *arrays: NDArray[Any]) -> None:
        """Send a message to rank `dest`; returns when the arrays may be changed again."""
        await self._sent(self._post(MESSAGE, 0, dest, body, arrays))

    def post(self, dest: int, body: Any = None, *arrays: NDArray[Any]) -> None:
        """`send` for a callback of the loop, which cannot wait: leave the arrays unchanged for good."""
        self._post(MESSAGE, 0, dest, body, arrays)

    async def request(
        self, dest: int, body: Any = None, *arrays: NDArray[Any], timeout: float | None = None
    ) -> Message:
        """Send a request to rank `dest` and wait for its reply, at most `timeout` seconds.

        Raises TimeoutError, or RequestError if the handler there raised.
        """
        board = self._board
        number = board.next_number()
        self._post(REQUEST, number, dest, body, arrays)
        future: asyncio.Future[Incoming] = self._loop.create_future()
        board.replies[number] = future
        try:
            self._selector.linger(future)
            if not future.done():
                what = f"rank {dest} to reply to request {number} on channel {self.name!r}"
                await board.wait(future, timeout, what, board.comm.peer(dest))
            reply = future.result()
        finally:
            # Still there: timed out or cancelled. Nobody is interested in the reply any more.
            if board.replies.pop(number, None) is not None and not board.closing:
                board.post(CANCEL, self._id, number, dest, None, ())
        if reply.kind == ERROR:
            raise RequestError(self.name, reply.source, *reply.body)
        return Message(self, reply.source, reply.body, reply.arrays, 0)

    def _post(
        self, kind: int, number: int, dest: int, body: Any, arrays: Sequence[NDArray[Any]]
    ) -> Operation | None:
        self._check_open()
        self._check_rank(dest)
        return self._board.post(kind, self._id, number, dest, body, arrays)

    async def _sent(self, operation: Operation | None) -> None:
        if operation is not None:
            await operation
        elif self._selector.last_look + FAIR_S < time.monotonic():
            await asyncio.sleep(0)  # a stream of small sends must not keep timers and sockets waiting

    def _check_open(self) -> None:
        if self._closed or self._board.closing:
            raise WeftError(f"channel {self.name!r} is closed")

    def _check_rank(self, rank: int) -> None:
        if not 0 <= rank < self.size:
            raise Mistake(f"there is no rank {rank!r}: the world's ranks are 0 to {self.size - 1}")

    # -- receiving ------------------------------------------------------------------------------

    async def receive(self, source: int = ANY, timeout: float | None = None) -> Message:
        """The next message from rank `source` (or any), waiting at most `timeout` seconds for it."""
        if self._handler is not None:
            raise Mistake(
                f"channel {self.name!r} has a handler, which gets its messages; don't receive as well"
            )
        self._check_open()
        if source != ANY:
            self._check_rank(source)
        if (message := self._take(source)) is not None:
            if self._selector.last_look + FAIR_S < time.monotonic():
                await self._fairly(message)
            return message
        future: asyncio.Future[Message] = self._loop.create_future()
        receiver = (source, future)
        self._receivers.append(receiver)
        if self._held:
            self._pull_held()
        try:
            self._selector.linger(future)
            if not future.done():
                who = "any rank" if source == ANY else f"rank {source}"
                what = f"a message from {who} on channel {self.name!r}"
                await self._board.wait(future, timeout, what, self._board.comm.peer(source))
            return future.result()
        except BaseException:
            if not future.cancelled() and future.done() and future.exception() is None:
                self._give_back(future.result())  # cancelled, with the message already handed over
            raise
        finally:
            if receiver in self._receivers:
                self._receivers.remove(receiver)

    async def _fairly(self, message: Message) -> None:
        try:
            await asyncio.sleep(0)
        except BaseException:
            self._give_back(message)
            raise

    def _take(self, source: int) -> Message | None:
        for index, message in enumerate(self._queue):
            if source in (ANY, message.source):
                del self._queue[index]
                self._took(message)
                return message
        return None

    def _took(self, message: Message) -> None:
        if message.arrays:
            self.backlog_bytes -= sum(array.nbytes for array in message.arrays)
            self._pull_held()

    def _give_back(self, message: Message) -> None:
        if self._closed:
            self._refuse(message.source, message._request)
        elif self._handler is not None:  # since the receiver got it
            self._handle(self._handler, message)
        else:
            self.backlog_bytes += sum(array.nbytes for array in message.arrays)
            if not self._hand_over(message):
                self._queue.appendleft(message)

    def serve(self, handler: Handler) -> None:
        """Have `handler(message)` called for every message, now and from here on.

        A coroutine function runs as a task of its own, many at a time, and so does a coroutine that another
        function returns; a plain function runs in the loop at once, which saves a task's 6 us but must not
        take long. What it returns is the body of the reply, unless it called `message.reply` itself (a body
        with arrays, or an early reply).
        """
        if self._receivers:
            raise Mistake(f"somebody receives on channel {self.name!r}: it cannot have a handler as well")
        self._handler = handler
        self._handler_is_async = inspect.iscoroutinefunction(handler)
        while (message := self._take(ANY)) is not None:
            self._handle(handler, message)

    # -- from the switchboard -------------------------------------------------------------------

    def deliver(self, incoming: Incoming) -> None:
        """Take a message (called by the switchboard)."""
        source = incoming.source
        if incoming.kind == CANCEL:
            self._withdraw(source, incoming.number)
        elif self._closed:
            self._board.drop(incoming)
            self._refuse(source, incoming.number)
        elif not incoming.here:
            self._unfinished.setdefault(source, deque()).append(incoming)
            self._held.append(incoming)
            self._pull_held()
        elif source in self._unfinished:
            self._unfinished[source].append(incoming)
        else:
            self._ready(incoming)

    def _pull_held(self) -> None:
        """Receive held messages in their order while there is room.

        Without room, one that is the next of its source, if somebody waits for it. Nothing else may overtake:
        a message that is here takes room until those before it are here, so they must come first.
        """
        room = True
        for incoming in list(self._held):
            room = room and self.backlog_bytes + incoming.nbytes <= max(BACKLOG_BYTES, incoming.nbytes)
            if not room:
                if not self._receivers:
                    return
                if self._unfinished[incoming.source][0] is not incoming or not any(
                    source in (ANY, incoming.source) for source, _ in self._receivers
                ):
                    continue
            self._held.remove(incoming)
            self.backlog_bytes += incoming.nbytes
            self._board.pull(incoming, self._pulled)

    def _pulled(self, incoming: Incoming) -> None:
        """All of a large message is here: it and what waited behind it from that source are ready."""
        line = self._unfinished.get(incoming.source)
        if line is None:
            return  # closed meanwhile
        while line and line[0].here:
            self._ready(line.popleft())
        if not line:
            del self._unfinished[incoming.source]

    def _ready(self, incoming: Incoming) -> None:
        if incoming.kind == CANCEL:
            self.backlog_bytes -= incoming.nbytes
            self._pull_held()
            return
        message = Message(self, incoming.source, incoming.body, incoming.arrays, incoming.number)
        if incoming.nbytes and not incoming.tag:
            self.backlog_bytes += incoming.nbytes
        if self._handler is not None:
            self._took(message)
            self._handle(self._handler, message)
        elif not self._hand_over(message):
            self._queue.append(message)

    def _hand_over(self, message: Message) -> bool:
        """Give the message to the first receiver that waits for such; whether there is one."""
        for index, (source, future) in enumerate(self._receivers):
            if (source == ANY or source == message.source) and not future.done():
                del self._receivers[index]
                self._took(message)
                future.set_result(message)
                return True
        return False

    # -- answering ------------------------------------------------------------------------------

    def _handle(self, handler: Handler, message: Message) -> None:
        if self._handler_is_async:
            self._answer_in_task(functools.partial(handler, message), message)
        else:
            self._loop.call_soon(self._answer_at_once, handler, message)

    def _answer_in_task(self, answer: Callable[[], Coroutine[Any, Any, Any]], message: Message) -> None:
        task = self._loop.create_task(self._answer(answer, message))
        key = (message.source, message._request)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if message.wants_reply:
            self._answering[key] = task
            task.add_done_callback(lambda _: self._answering.pop(key, None))

    def _answer_at_once(self, handler: Handler, message: Message) -> None:
        try:
            body = handler(message)
            if inspect.iscoroutine(body):  # a lambda's, say: it was dropped, with a warning from Python alone
                self._answer_in_task(lambda: body, message)
            elif message.wants_reply:
                self._post(REPLY, message._request, message.source, body, ())
        except Exception as error:
            self._answer_error(message, error)

    async def _answer(self, answer: Callable[[], Coroutine[Any, Any, Any]], message: Message) -> None:
        key = (message.source, message._request)
        try:
            body = await answer()
            if message.wants_reply:
                await message.reply(body)
        except Exception as error:
            self._answer_error(message, error)
        except asyncio.CancelledError as error:
            if message.wants_reply and key in self._answering:  # not withdrawn: who asked still waits
                self._answer_error(message, error)
            raise

    def _answer_error(self, message: Message, error: BaseException) -> None:
        if message.wants_reply:
            trace = "".join(traceback.format_exception(error))
            self._refuse(message.source, message._request, trace)
        else:  # nobody waits for an answer: it is this rank's own failure
            what = f"handler of channel {self.name!r} failed with a message from rank {message.source}"
            self._loop.call_exception_handler({"message": what, "exception": error})

    def _refuse(self, source: int, number: int, why: str = "the channel is closed there") -> None:
        if number and not self._board.closing:
            self._board.post(ERROR, self._id, number, source, [socket.gethostname(), why], ())

    def _withdraw(self, source: int, number: int) -> None:
        """The request was cancelled by who made it."""
        for message in self._queue:
            if message.source == source and message._request == number:
                self._queue.remove(message)
                self._took(message)
                return
        for incoming in self._unfinished.get(source, ()):
            if incoming.number == number:
                # Not all here, or behind such: it was answered, to nobody. Its frames come all the same.
                incoming.kind = CANCEL
                if not incoming.tag:
                    self._unfinished[source].remove(incoming)
                return
        if (task := self._answering.pop((source, number), None)) is not None:
            task.cancel()

    # -- closing --------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop using the channel here: who waits on it gets a WeftError, what comes is dropped."""
        if self._closed:
            return
        self._closed = True
        for _, future in self._receivers:
            if not future.done():
                future.set_exception(WeftError(f"channel {self.name!r} was closed during a receive"))
        for source, number in self._answering:  # not by their tasks, of which some may not have begun
            self._refuse(source, number)
        self._answering.clear()
        for task in self._tasks:
            task.cancel()
        for message in self._queue:
            self._refuse(message.source, message._request)
        for line in self._unfinished.values():
            for incoming in line:
                self._refuse(incoming.source, incoming.number)
        for incoming in self._held:
            self._board.drop(incoming)
        self._queue.clear()
        self._unfinished.clear()
        self._held.clear()
        self._handler = None  # the world keeps the channel, and it kept a closed pool's all
