"""One caller's connection: read a request, have it answered, write the answer, and again.

    reading ──whole──> answering ──> writing ──> reading ...                one request at a time, in order
       └─ too large, too slow, not HTTP ──> an error, and lingering until the caller has read it

The parser is httptools (llhttp), as in uvicorn. That server was tried, and is not used: it waits without end
for the head of a request, bounds neither head nor body, answers what is not HTTP in plain text, and that the
caller has left hears only who keeps a second task for it. A request that asks for nothing took one connection
79 us there and takes 36 us so; a bare asyncio protocol answers in 17 us.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections import deque
from contextlib import suppress
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Final, Protocol, cast

import httptools

from .messages import HttpRequest, HttpResponse
from .problem import Problem, unavailable, wrong
from .settings import HttpSettings

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
FOREVER: Final = float("inf")
SPARE_CONNECTIONS: Final = 64  # beyond the limit: those that are being told that it is reached


class House(Protocol):
    """What the connections of a server share."""

    settings: HttpSettings
    connections: set[Connection]
    held_bytes: int  # of bodies, all connections together

    @property
    def draining(self) -> bool:
        """Whether the server is about to end."""

    def makes_room(self) -> bool:
        """Whether a place gets free for a connection that is one too many."""

    def admit(self, request: HttpRequest) -> None:
        """Raise Problem where the body that follows this head is not wanted."""

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """Answer one request; an exception is none of its answers."""

    def unexpected(self, error: Exception) -> None:
        """Be told of an error that is no caller's fault."""


class Connection(asyncio.Protocol):
    """The server's end of one connection; `check`, called now and then, ends what takes too long."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._settings = house.settings
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        #: Answers requests now; None while none is whole.
        self.task: asyncio.Task[None] | None = None
        self._waiting: deque[HttpRequest | Problem] = deque()
        self._deadline = FOREVER
        self._reads = True  # further requests may come; else what comes is thrown away
        self._flushed = asyncio.Event()
        self._flushed.set()
        self._held_bytes = 0
        self._inflated_bytes = 0  # of these, what the request that is being answered took in decompressing
        self._begin()

    def _begin(self) -> None:
        self._in_head = True
        self._begun = False  # its first byte is here, perhaps in the packet that the last request ended in
        self._received = 0  # bytes, as the caller sent them, behind that packet
        self._target = b""
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0

    @property
    def idle(self) -> bool:
        """Whether no request is being read or answered."""
        return self.task is None and not self._begun

    @property
    def idle_since_s(self) -> float:
        """Since when it is idle, by `time.monotonic()`; FOREVER where it is not, or is about to end."""
        return self._deadline - self._settings.idle_s if self.idle and self._reads else FOREVER

    def close(self) -> None:
        """End the connection when what is written has left."""
        self._reads = False
        self._deadline = time.monotonic() + self._settings.send_s
        self._transport.close()

    def abort(self) -> None:
        """End the connection now."""
        self._transport.abort()

    def check(self, now: float) -> None:
        """End what takes too long or has lost its caller; `now` is `time.monotonic()`."""
        if self.task is not None and not self._transport.is_reading() and self._has_left():
            self.abort()
        if now < self._deadline:
            return
        if self.idle and self._reads:
            self.close()
        elif self._reads and self.task is None:
            self._refuse(Problem(408, f"the request is not whole after {self._settings.receive_s:g} s"))
        else:
            self.abort()

    def _has_left(self) -> bool:
        """Whether the caller has closed; while reading is paused, asyncio does not see it."""
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    # -- asyncio's calls ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A caller has connected."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(0)  # `_flushed` means: all of it
        self._deadline = time.monotonic() + self._settings.idle_s
        connections, limit = self._house.connections, self._settings.max_connections
        connections.add(self)
        if len(connections) > limit + SPARE_CONNECTIONS:
            self.abort()
        elif len(connections) > limit and not self._house.makes_room():
            self._refuse(unavailable(f"{limit} connections are open, which is the limit"))

    def connection_lost(self, error: Exception | None) -> None:
        """The caller has left, and nobody waits for the answer any more."""
        self._house.connections.discard(self)
        self._let_go(self._held_bytes)
        self._flushed.set()
        if self.task is not None:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        if not self._reads:
            return
        if self.idle and not self._received:  # ends of lines begin no request, and may drip for ever
            self._deadline = time.monotonic() + self._settings.receive_s
        self._received += len(data)
        try:
            self._parse(memoryview(data))
        except httptools.HttpParserError as error:
            self._refuse(wrong(f"this is not HTTP/1.1: {error}"))
        head, body = self._settings.max_head_bytes, self._settings.max_body_bytes
        if self._in_head and self._received > head:
            self._refuse_head()
        elif self._received > head + 2 * body:  # in tiny chunks, or with trailers without end
            self._refuse(Problem(413, "the request takes far more bytes than its body has"))

    def _parse(self, data: memoryview) -> None:
        while data and self._reads:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as pause:
                data = data[pause.args[0] :]
                if self._offers_another_protocol():
                    self._parse_without_offer()

    def _offers_another_protocol(self) -> bool:
        """Whether the request says `Upgrade`, as Java's client does; a tunnel offers nothing but itself."""
        upgrades: bool = self._parser.should_upgrade()
        return upgrades and self._parser.get_method() != b"CONNECT"

    def _parse_without_offer(self) -> None:
        """Read the head again without the offer, which a server may overlook.

        httptools takes what follows an offer for the other protocol, be it the request's own body.
        """
        method, version = self._parser.get_method().decode("latin-1"), self._parser.get_http_version()
        lines = [f"{method} {self._target.decode('latin-1')} HTTP/{version}"]
        lines += [f"{name}: {value}" for name, value in self._headers.items() if name != "upgrade"]
        self._target, self._headers, self._in_head, self._head_bytes = b"", {}, True, 0
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def eof_received(self) -> None:
        """The caller sends nothing more: taken for leaving, since asyncio could not tell it later."""

    def pause_writing(self) -> None:
        """The caller takes the answer more slowly than it is written."""
        self._flushed.clear()

    def resume_writing(self) -> None:
        """The answer has left."""
        self._flushed.set()

    # -- the parser's calls -------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._begun = True

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        self._target += url
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, whole; what a trailer says comes too late."""
        if self._in_head:
            self._head_bytes += len(name) + len(value) + 4
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            if key not in self._headers:
                self._headers[key] = text
            elif key == "host":  # whoever is between may have gone by the other one
                self._refuse(wrong("the request has two Host headers"))
            else:
                self._headers[key] += f", {text}"  # a list in several lines (RFC 9110, 5.3)

    def on_headers_complete(self) -> None:
        """The body follows, if there is one."""
        if not self._reads or self._offers_another_protocol():
            return
        self._in_head = False
        limit, announced = self._settings.max_body_bytes, int(self._headers.get("content-length", "0"))
        encoding = self._headers.get("transfer-encoding", "chunked").strip()
        if self._head_bytes > self._settings.max_head_bytes:  # came in one packet: else it is refused before
            self._refuse_head()
        elif "host" not in self._headers and self._parser.get_http_version() != "1.0":  # RFC 9112, 3.2
            self._refuse(wrong("the request has no Host header: send one (only HTTP/1.0 may lack it)"))
        elif encoding.lower() != "chunked":  # httptools would hand over what is compressed as the body
            self._refuse(Problem(501, f"Transfer-Encoding: {encoding:.40}: a request may be chunked only"))
        elif announced > limit:
            self._refuse(Problem(413, f"a body of {announced} bytes: the limit is {limit}"))
        elif announced or "transfer-encoding" in self._headers:
            try:
                self._house.admit(self._request(b""))
            except Problem as problem:
                self._refuse(problem)
            else:
                waits = self._headers.get("expect", "").lower() == "100-continue"
                if waits and self._parser.get_http_version() != "1.0":  # there it would be the whole answer
                    self._transport.write(CONTINUE)

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        if not self._reads:
            return
        self._body.append(data)
        self._body_bytes += len(data)
        if self._body_bytes > self._settings.max_body_bytes:
            self._refuse(Problem(413, f"the body exceeds the limit of {self._settings.max_body_bytes} bytes"))
        try:
            self._hold(len(data))
        except Problem as problem:
            self._refuse(problem)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if not self._reads or self._offers_another_protocol():
            return
        self._reads = self._parser.should_keep_alive() and not self._parser.should_upgrade()
        arrival_s = time.monotonic()
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        request = self._request(body, arrival_s)
        self._begin()
        self._hand_over(request)

    def _request(self, body: bytes, arrival_s: float | None = None) -> HttpRequest:
        method, target = self._parser.get_method().decode("latin-1"), self._target.decode("latin-1")
        return HttpRequest(method, target, self._headers, body, arrival_s, self._hold_inflated)

    # -- answering ----------------------------------------------------------------------------------------

    def _refuse(self, problem: Problem) -> None:
        """Read nothing more, and say why, behind what is being answered."""
        if self._reads:
            self._reads = False
            self._hand_over(problem)

    def _refuse_head(self) -> None:
        limit = self._settings.max_head_bytes
        self._refuse(Problem(431, f"request line and headers exceed the limit of {limit} bytes"))

    def _hand_over(self, what: HttpRequest | Problem) -> None:
        if self.task is None:
            self._deadline = FOREVER
            self.task = self._loop.create_task(self._answer(what), name="an HTTP request")
        else:
            # A caller who does not wait for answers: no more is read than has come already.
            self._waiting.append(what)
            self._transport.pause_reading()

    async def _answer(self, what: HttpRequest | Problem) -> None:
        """Answer this, and what has come meanwhile."""
        try:
            while True:
                if isinstance(what, Problem):
                    response = HttpResponse.of(what)
                else:
                    response = await self._house.answer(what)
                    self._let_go(len(what.body) + self._inflated_bytes)
                    self._inflated_bytes = 0
                ends = response.closes or not (self._waiting or (self._reads and not self._house.draining))
                without_body = isinstance(what, HttpRequest) and what.method == "HEAD"
                self._transport.writelines(written(response, ends=ends, without_body=without_body))
                if not self._flushed.is_set():
                    self._deadline = time.monotonic() + self._settings.send_s
                    await self._flushed.wait()
                    self._deadline = FOREVER
                if ends or not self._waiting:
                    break
                await asyncio.sleep(0)  # 2,000 in one packet kept the loop from all others for seconds
                what = self._waiting.popleft()
        except asyncio.CancelledError:
            self.abort()
            raise
        except Exception as error:
            self.abort()
            self._house.unexpected(error)
            return
        finally:
            self.task = None
        self._transport.resume_reading()
        if not ends:
            self._deadline = time.monotonic() + (
                self._settings.idle_s if self.idle else self._settings.receive_s
            )
        elif isinstance(what, Problem):
            self._linger()
        else:
            self.close()

    def _linger(self) -> None:
        """Close, but not before the caller has had time to read why.

        A socket that is closed with bytes unread resets the connection, and a caller who is still sending
        would find that instead of the answer.
        """
        self._deadline = time.monotonic() + self._settings.linger_s
        with suppress(OSError):  # the caller has reset it, and asyncio does not know yet
            self._transport.write_eof()

    def _hold(self, count: int) -> None:
        self._held_bytes += count
        self._house.held_bytes += count
        if self._house.held_bytes > self._settings.max_held_bytes:
            raise unavailable("the bodies of all requests together take as much memory as they may")

    def _hold_inflated(self, count: int) -> None:
        self._inflated_bytes += count
        self._hold(count)

    def _let_go(self, count: int) -> None:
        self._held_bytes -= count
        self._house.held_bytes -= count


def written(response: HttpResponse, *, ends: bool, without_body: bool) -> list[bytes]:
    """The answer's bytes, in parts."""
    head = [
        f"HTTP/1.1 {response.status} {_PHRASES[response.status]}\r\n{_date(int(time.time()))}"
        f"Content-Type: {response.content_type}\r\nContent-Length: {sum(map(len, response.body))}\r\n"
    ]
    head += [f"{name}: {value}\r\n" for name, value in response.headers.items()]
    # A caller of HTTP/1.0 who asked for it to be kept takes it for closed unless told.
    head.append(f"Connection: {'close' if ends else 'keep-alive'}\r\n\r\n")
    return ["".join(head).encode("latin-1"), *(() if without_body else response.body)]


_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return f"Date: {formatdate(second, usegmt=True)}\r\n"
