"""A connection without a network: whatever bytes come, in whatever pieces, what goes back is HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving import Fake
from weft.runtime.serve.http import HttpServer, HttpSettings
from weft.runtime.serve.http.connection import Connection
from weft.runtime.serve.http.messages import HttpRequest, HttpResponse

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}).encode()
NAMELESS = b"POST /v2/models/echo/infer HTTP/1.1\r\n"
INFER = NAMELESS + b"Host: localhost\r\n"
REQUESTS = [
    b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    INFER + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
    INFER + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    b"HEAD /metrics HTTP/1.0\r\n\r\n",
    INFER + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY,
    INFER + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
]


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""

    def writelines(self, parts: list[bytes]) -> None:
        self.written += b"".join(parts)

    def write(self, data: bytes) -> None:
        self.written += data

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


async def exchange(pieces: list[bytes], kind: type[HttpServer] = HttpServer) -> bytes:
    """What a connection says to these bytes."""
    server = kind(Fake(), HttpSettings(max_body_bytes=2000, max_head_bytes=300))
    connection, wire = Connection(server), Wire()
    connection.connection_made(wire)  # type: ignore[arg-type]
    for piece in pieces:
        connection.data_received(piece)
        await asyncio.sleep(0)
    while connection.task is not None:
        await connection.task
    connection.check(float("inf"))
    while connection.task is not None:
        await connection.task
    connection.connection_lost(None)
    assert server.held_bytes == 0
    assert not server.connections
    return wire.written


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(REQUESTS) | st.binary(max_size=40), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3),
    st.integers(1, 200),
)
def test_any_bytes_are_answered_with_http_or_nothing(
    parts: list[bytes], damage: list[tuple[int, int]], length: int
):
    sent = bytearray(b"".join(parts))
    for place, byte in damage:
        if place < len(sent):
            sent[place] = byte
    pieces = [bytes(sent[start : start + length]) for start in range(0, len(sent), length)]
    written = asyncio.run(exchange(pieces))
    assert written == b"" or written.startswith(b"HTTP/1.1 ")


def test_undamaged_requests_are_all_answered():
    written = asyncio.run(exchange([request for request in REQUESTS if b"1.0" not in request]))
    assert [int(answer[:3]) for answer in written.split(b"HTTP/1.1 ")[1:]] == [200, 200, 200, 200, 400]


@pytest.mark.parametrize("length", [10_000, 100, 1], ids=["in one packet", "in several", "byte by byte"])
@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param(
            b"GET /v2 HTTP/1.1\r\nHost:\r\nA: %s\r\n\r\n" % (b"a" * 200), 200, id="a head within the limit"
        ),
        pytest.param(b"GET /v2 HTTP/1.1\r\nHost:\r\nA: %s\r\n\r\n" % (b"a" * 400), 431, id="a long header"),
        pytest.param(b"GET /v2 HTTP/1.1\r\n%s\r\n" % (b"A: a\r\n" * 80), 431, id="many headers of one name"),
        pytest.param(b"GET /v2?%s HTTP/1.1\r\n\r\n" % (b"a" * 400), 431, id="a long target"),
    ],
)
def test_a_head_is_too_long_however_it_comes(head: bytes, status: int, length: int):
    pieces = [head[start : start + length] for start in range(0, len(head), length)]
    written = asyncio.run(exchange(pieces))
    assert [int(answer[:3]) for answer in written.split(b"HTTP/1.1 ")[1:]] == [status]


@pytest.mark.parametrize(
    ("headers", "status", "text"),
    [
        pytest.param(b"Host: b\r\n", 400, b"two Host headers", id="two hosts"),
        pytest.param(
            b"Host: b\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n",
            400,
            b"two Host headers",
            id="two hosts and an offer",
        ),
        pytest.param(b"Transfer-Encoding: gzip, chunked\r\n", 501, b"gzip, chunked", id="compressed chunks"),
        pytest.param(
            b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
            501,
            b"gzip, chunked",
            id="compressed chunks in two lines",
        ),
        pytest.param(b"Transfer-Encoding: gzip\r\n", 501, b"gzip", id="compressed without chunks"),
        pytest.param(b"Transfer-Encoding: Chunked\r\n", 200, b"", id="chunked"),
    ],
)
def test_what_leaves_the_target_or_the_body_in_doubt_is_refused(headers: bytes, status: int, text: bytes):
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY) if b"ransfer" in headers else b""
    written = asyncio.run(exchange([INFER + headers + b"\r\n" + body]))
    assert [int(answer[:3]) for answer in written.split(b"HTTP/1.1 ")[1:]] == [status]
    assert text in written


@pytest.mark.parametrize("length", [10_000, 1], ids=["in one packet", "byte by byte"])
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(b"GET /v2 HTTP/1.1\r\n\r\n", 400, id="without Host"),
        pytest.param(NAMELESS + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY, 400, id="with a body"),
        pytest.param(
            b"GET /v2 HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 400, id="with an offer"
        ),
        pytest.param(b"GET /v2 HTTP/1.1\r\nHost:\r\n\r\n", 200, id="with an empty one"),
        pytest.param(b"GET /v2 HTTP/1.0\r\n\r\n", 200, id="without, in HTTP/1.0"),
    ],
)
def test_a_request_names_its_host(request_: bytes, status: int, length: int):
    pieces = [request_[at : at + length] for at in range(0, len(request_), length)]
    written = asyncio.run(exchange(pieces))
    assert [int(answer[:3]) for answer in written.split(b"HTTP/1.1 ")[1:]] == [status]
    assert (b"has no Host header" in written) == (status == 400)


@pytest.mark.parametrize("length", [10_000, 1], ids=["in one packet", "byte by byte"])
def test_a_list_may_come_in_several_headers(length: int):
    lists = b"Accept-Encoding: gzip;q=0\r\nAccept-Encoding: deflate\r\n"
    head = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n" + lists + b"\r\n"
    kept: list[str] = []

    class Listening(HttpServer):
        async def answer(self, request: HttpRequest) -> HttpResponse:
            kept.append(request.header("accept-encoding"))
            return await super().answer(request)

    written = asyncio.run(exchange([head[at : at + length] for at in range(0, len(head), length)], Listening))
    assert written.startswith(b"HTTP/1.1 200 ")
    assert kept == ["gzip;q=0, deflate"]


@pytest.mark.parametrize("least_s", [0.0, 1e9], ids=["long enough", "for a moment"])
def test_who_comes_where_all_places_are_taken_gets_that_of_the_longest_idle_one(least_s: float):
    """Connections that were kept and did nothing shut out whoever had something to ask."""

    async def main() -> None:
        server = HttpServer(Fake(), HttpSettings(max_connections=2, idle_least_s=least_s))
        connections, ended = [Connection(server) for _ in range(3)], []

        class Ends(Wire):
            def close(self) -> None:
                ended.append(self)

        wires = [Ends() for _ in connections]
        for connection, wire in zip(connections, wires, strict=True):
            connection.connection_made(wire)  # type: ignore[arg-type]
            if wire is wires[0]:  # this one asks: it is not idle
                connection.data_received(b"GET /v2 ")
        if connections[2].task is not None:
            await connections[2].task
        assert ended == ([] if least_s else [wires[1]])
        assert (b"503" in wires[2].written) == bool(least_s)

    asyncio.run(main())
