"""Callers who lie, dawdle, flood or leave: each gets a status or nothing, and the others are served."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from email.message import Message
from http.client import HTTPConnection, parse_headers
from typing import Any, NamedTuple

import pytest

from tests.serving import Fake, Serving, serving
from weft.runtime.serve.http.connection import Connection

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}).encode()
LENGTH = "Inference-Header-Content-Length"
BOMB = gzip.compress(bytes(50_000_000))
HTTP = b" HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"POST /v2/models/echo/infer" + HTTP + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(body: bytes, model: str = "echo", *headers: str) -> bytes:
    head = f"POST /v2/models/{model}/infer HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"
    return "\r\n".join([*head, *headers, "", ""]).encode() + body


class Answer(NamedTuple):
    """What came back."""

    status: int
    content: Any
    headers: Message


class Caller:
    """A connection, and the answers that come on it."""

    def __init__(self, server: Serving) -> None:
        self.socket = socket.create_connection(server.address, timeout=20)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> Answer:
        line = self._file.readline().decode()
        assert line.startswith("HTTP/1.1 "), repr(line)
        headers = parse_headers(self._file)
        body = self._file.read(int(headers["Content-Length"]))
        return Answer(int(line.split()[1]), json.loads(body), headers)

    def is_closed(self) -> bool:
        """Wait for the server to close the connection, and see that it says nothing more."""
        return self._file.read() == b""


def said(server: Serving, sent: bytes) -> tuple[int, str]:
    """The status and the error that these bytes get on a connection of their own."""
    with Caller(server) as made:
        made.send(sent)
        status, content, _ = made.answer()
        return status, content.get("error", "")


def alive(server: Serving) -> bool:
    assert server.errors == []
    return said(server, post(BODY)) == (200, "")


def until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        pytest.param(b"\x16\x03\x01\x02\x00 TLS\r\n\r\n", 400, "not HTTP", id="not HTTP"),
        pytest.param(b"GET /v2" + HTTP + b"no header\r\n\r\n", 400, "not HTTP", id="a header that is none"),
        pytest.param(b"GET /v2" + HTTP + b"Content-Length: -1\r\n\r\n", 400, "not HTTP", id="-1 bytes"),
        pytest.param(
            b"POST /v2" + HTTP + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400, "not HTTP", id="two lengths, which is how requests are smuggled",
        ),
        pytest.param(b"GET /" + b"a" * 5000 + HTTP + b"\r\n", 404, "nothing at", id="a long target"),
        pytest.param(b"GET /" + b"a" * 40_000, 431, "exceed", id="a target without end"),
        pytest.param(b"GET /v2" + HTTP + b"a: " + b"b" * 40_000, 431, "exceed", id="a header without end"),
        pytest.param(post(b"{"), 400, "not JSON", id="half an object"),
        pytest.param(post(b"[" * 50_000), 400, "not JSON: depth", id="nested deeply"),
        pytest.param(post(BODY, "echo", f"{LENGTH}: 9999"), 400, "whole body", id="a long header"),
        pytest.param(post(BODY, "echo", f"{LENGTH}: -1"), 400, "a number", id="less than nothing"),
        pytest.param(post(BODY, "echo", "Content-Encoding: br"), 415, "known are", id="an encoding we lack"),
        pytest.param(
            post(BOMB, "echo", "Content-Encoding: gzip"), 413, "decompressed", id="a bomb"
        ),
        pytest.param(post(b" " * 90_000), 413, "of JSON: the limit", id="more JSON than allowed"),
        pytest.param(post(b" " * 300_000), 413, "a body of 300000", id="a body too large, announced"),
        pytest.param(
            CHUNKED + b"8000\r\n" + b" " * 0x8000 + b"\r\n" + (b"8000\r\n" + b" " * 0x8000 + b"\r\n") * 9,
            413, "exceeds", id="a body too large, in chunks",
        ),
        pytest.param(
            CHUNKED + b"1\r\n{\r\n0\r\na: " + b"b" * 500_000, 413, "far more", id="an endless trailer"
        ),
        pytest.param(
            CHUNKED + b"1\r\n{\r\n0\r\nContent-Encoding: br\r\n\r\n", 400, "not JSON", id="a late header"
        ),
        pytest.param(post(BODY, "a%ff%00"), 404, "no model", id="a model without text for a name"),
        pytest.param(b"BREW /v2" + HTTP + b"\r\n", 400, "not HTTP", id="a method that is none"),
        pytest.param(b"CONNECT x:1" + HTTP + b"\r\n", 404, "nothing", id="a tunnel"),
    ],
)  # fmt: skip
def test_s5_what_is_wrong_gets_a_status_and_an_error(hostile: Serving, sent: bytes, status: int, words: str):
    got, error = said(hostile, sent)
    assert (got, words in error) == (status, True), error
    assert alive(hostile)


@pytest.fixture(scope="module")
def hostile() -> Iterator[Serving]:
    with serving(max_body_bytes=200_000, max_json_bytes=80_000) as server:
        yield server


def test_requests_in_pieces_and_in_a_row_are_answered_in_order(hostile: Serving):
    with Caller(hostile) as made:
        for byte in post(BODY):
            made.send(bytes([byte]))
        assert made.answer().status == 200
        bodies = [BODY.replace(b"[1, 2]}", b"[%d, 2]}" % number) for number in range(60)]
        made.send(b"".join(map(post, bodies)))
        assert [made.answer().content["outputs"][0]["data"][0] for _ in bodies] == list(range(60))


def test_a_caller_who_waits_for_leave_to_send_is_given_it(hostile: Serving):
    with Caller(hostile) as made:
        head, _, body = post(BODY, "echo", "Expect: 100-continue").partition(b"\r\n\r\n")
        made.send(head + b"\r\n\r\n")
        assert made.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        made.send(body)
        assert made.answer().status == 200


OFFER = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")


def test_another_protocol_that_is_offered_is_overlooked(hostile: Serving):
    """Java's client offers HTTP/2 with every request of a new connection, and sends the body at once."""
    chunked = "\r\n".join([CHUNKED.decode().rstrip(), *OFFER, "", ""]).encode()
    sent = [
        "\r\n".join([GET.decode().rstrip(), *OFFER, "", ""]).encode(),
        post(BODY, "echo", *OFFER),
        chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
        post(BODY),
    ]
    with Caller(hostile) as made:
        for step in (1, 7, 10_000):
            whole = b"".join(sent)
            for start in range(0, len(whole), step):
                made.send(whole[start : start + step])
            answers = [made.answer() for _ in sent]
            assert [answer.status for answer in answers] == [200] * len(sent)
            assert [answer.content["outputs"][0]["data"] for answer in answers[1:]] == [[1, 2]] * 3
    assert said(hostile, post(b" " * 300_000, "echo", *OFFER))[0] == 413
    assert said(hostile, b"CONNECT x:1" + HTTP + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n")[0] == 404
    assert alive(hostile)


def test_head_is_get_without_its_body(hostile: Serving):
    connection = HTTPConnection(*hostile.address)
    connection.request("HEAD", "/v2")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"")
    assert int(response.headers["Content-Length"]) > 10
    connection.close()


def test_a_slow_sender_is_told_so_and_cut_off():
    with serving(receive_s=0.2, linger_s=0.2) as server:
        for part in (GET[:10], post(BODY)[:-5]):
            with Caller(server) as made:
                made.send(part)
                status, content, headers = made.answer()
                assert (status, "not whole" in content["error"]) == (408, True)
                assert headers["Connection"] == "close"
                assert made.is_closed()
        with Caller(server) as made:  # and what begins in the packet that a whole request ends in
            made.send(GET + post(BODY)[:-5])
            assert made.answer()[0] == 200
            assert made.answer()[0] == 408
            assert made.is_closed()
        until(lambda: not server.server.connections)
        assert alive(server)


def test_who_says_nothing_is_cut_off():
    with serving(receive_s=0.2, idle_s=0.2) as server:
        with Caller(server) as made:
            assert made.is_closed()
        with Caller(server) as made:  # or ends of lines alone
            made.socket.settimeout(0.01)

            def drip() -> bool:
                with suppress(TimeoutError):
                    made.send(b"\r\n")
                    return made.socket.recv(1) == b""
                return False

            with suppress(ConnectionError):  # what was sent to who has closed
                until(drip)
        until(lambda: not server.server.connections)
        assert server.errors == []


def test_a_caller_who_does_not_take_the_answer_is_cut_off():
    with serving(send_s=0.2) as server, Caller(server) as made:
        made.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        tensor = {
            "name": "x",
            "datatype": "FP32",
            "shape": [1, 4_000_000],
            "parameters": {"binary_data_size": 16_000_000},
        }
        header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        made.send(post(header + bytes(16_000_000), "echo", f"{LENGTH}: {len(header)}"))
        until(lambda: not server.server.connections)
        assert alive(server)


def test_s5_the_request_of_a_caller_who_leaves_is_cancelled():
    with serving() as server:
        with Caller(server) as made:
            made.send(post(BODY, "slow"))
            until(lambda: server.service.requests)
        until(lambda: server.service.cancelled == 1)
        with Caller(server) as made:  # one who slams the door
            made.send(post(BODY, "slow"))
            until(lambda: len(server.service.requests) == 2)
            made.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        until(lambda: server.service.cancelled == 2)
        assert alive(server)
        assert server.server.held_bytes == 0


def test_what_a_caller_asks_ahead_does_not_hide_that_it_leaves():
    """Reading is paused then, and asyncio sees an end only when it reads."""
    with serving() as server:
        slow = post(BODY, "slow")
        for turn, sent in enumerate((slow * 2, slow * 3, GET + slow), start=1):
            with Caller(server) as made:
                made.send(sent)
                until(lambda turn=turn: len(server.service.requests) == turn)
            until(lambda turn=turn: server.service.cancelled == turn)
        with Caller(server) as made:  # one who stays
            made.send(slow + GET)
            until(lambda: len(server.service.requests) == 4)
            (connection,) = server.server.connections
            server.run(checked(connection))
            server.loop.call_soon_threadsafe(server.service.held.set)
            assert [made.answer().status for _ in range(2)] == [200, 200]
        assert alive(server)


async def checked(connection: Connection) -> None:
    connection.check(time.monotonic())


def test_http_1_0_is_told_that_its_connection_is_kept():
    with serving() as server, Caller(server) as made:
        for _ in range(2):
            made.send(b"GET /v2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            status, _, headers = made.answer()
            assert (status, headers["Connection"]) == (200, "keep-alive")
        made.send(b"GET /v2 HTTP/1.0\r\n\r\n")
        assert made.answer().headers["Connection"] == "close"
        assert made.is_closed()


def test_http_1_0_knows_no_answer_before_the_last(hostile: Serving):
    with Caller(hostile) as made:
        made.send(post(BODY, "echo", "Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert made.answer().status == 200


def test_too_many_connections_are_refused_and_the_others_served():
    with serving(max_connections=3, idle_least_s=1e9) as server:
        kept = [Caller(server) for _ in range(3)]
        for made in kept:
            made.send(GET)
            assert made.answer().status == 200
        status, error = said(server, GET)
        assert (status, "3 connections" in error) == (503, True)
        kept[0].send(GET)
        assert kept[0].answer().status == 200
        for made in kept:
            made.close()
        until(lambda: not server.server.connections)
        assert alive(server)


def test_callers_who_came_and_left_while_the_loop_was_busy_take_nobodys_place():
    """Accepted in one go, hundreds who did not wait would fill the server before the one who did."""
    with serving(max_connections=100, idle_least_s=1e9) as server, Caller(server) as kept:
        kept.send(GET)
        assert kept.answer().status == 200
        goes_on = threading.Event()
        server.loop.call_soon_threadsafe(goes_on.wait, 20)
        for _ in range(400):
            with Caller(server) as made:
                made.send(post(b"{"))
        with Caller(server) as patient:
            patient.send(post(BODY))
            goes_on.set()
            assert patient.answer().status == 200
        kept.send(GET)
        assert kept.answer().status == 200
        assert alive(server)


def test_a_host_that_leads_to_loopback_is_loopback_whatever_its_name():
    with serving(host="127.1") as server:
        assert server.server.addresses == ["127.0.0.1"]
        assert said(server, GET.replace(b"localhost", b"evil.example"))[0] == 403
        assert said(server, GET.replace(b"localhost", b"127.1"))[0] == 200
        assert server.server.advice.startswith("127.1 is 127.0.0.1 here")


def test_too_many_requests_are_refused_and_the_others_answered():
    with serving(max_requests=2) as server, Caller(server) as one, Caller(server) as two:
        for made in (one, two):
            made.send(post(BODY, "slow"))
        until(lambda: len(server.service.requests) == 2)
        with Caller(server) as third:
            third.send(post(BODY))
            status, content, headers = third.answer()
            assert (status, content["reason"], headers["Retry-After"]) == (503, "queue_full", "1")
        server.loop.call_soon_threadsafe(server.service.held.set)
        assert [made.answer().status for made in (one, two)] == [200, 200]
        assert alive(server)


def test_all_bodies_together_have_a_limit():
    with serving(max_held_bytes=1000) as server, Caller(server) as one:
        one.send(b"POST /v2/models/echo/infer" + HTTP + b"Content-Length: 2000\r\n\r\n" + b" " * 900)
        until(lambda: server.server.held_bytes == 900)
        status, error = said(server, post(BODY + b" " * 100))
        assert (status, "memory" in error) == (503, True)
        one.close()
        until(lambda: server.server.held_bytes == 0)
        assert alive(server)


def test_a_compressed_body_counts_by_what_it_takes():
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": [1, 250_000],
        "parameters": {"binary_data_size": 1_000_000},
    }
    header = json.dumps({"inputs": [tensor]}).encode()
    packed = gzip.compress(header + bytes(1_000_000))
    sent = post(packed, "slow", f"{LENGTH}: {len(header)}", "Content-Encoding: gzip")
    with serving(max_held_bytes=2_500_000) as server:
        callers = [Caller(server) for _ in range(3)]
        for made in callers[:2]:
            made.send(sent)
        until(lambda: len(server.service.requests) == 2)
        assert server.server.held_bytes == 2 * (len(packed) + len(header) + 1_000_000)
        callers[2].send(sent)
        status, content, _ = callers[2].answer()
        assert (status, "memory" in content["error"]) == (503, True)
        callers[0].close()
        until(lambda: server.service.cancelled == 1)
        callers[2].send(sent)
        until(lambda: len(server.service.requests) == 3)
        server.loop.call_soon_threadsafe(server.service.held.set)
        assert [made.answer().status for made in callers[1:]] == [200, 200]
        assert server.server.held_bytes == 0
        assert alive(server)
        for made in callers[1:]:
            made.close()


def test_without_the_token_no_body_is_taken():
    """Else whoever reaches the port could fill the memory that all bodies share."""
    head = b"POST /v2/models/echo/infer" + HTTP + b"Expect: 100-continue\r\n"
    with serving(token="open", max_held_bytes=1000) as server:
        for sent in (
            head + b"Content-Length: 900\r\n\r\n",
            head + b"Transfer-Encoding: chunked\r\n\r\n384\r\n",
            head + b"Authorization: Bearer opex\r\nContent-Length: 900\r\n\r\n",
            b"GET /v2/health/live" + HTTP + b"Content-Length: 900\r\n\r\n",
        ):
            with Caller(server) as made:
                made.send(sent + b" " * 800)
                status, _, headers = made.answer()
                assert (status, headers["Connection"]) == (401, "close")
                assert server.server.held_bytes == 0
        with Caller(server) as made:
            made.send(head + b"Authorization: Bearer open\r\nContent-Length: %d\r\n\r\n" % len(BODY))
            assert made.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            made.send(BODY)
            assert made.answer().status == 200
            made.send(GET + GET)  # one who has nothing to send may try again on the same connection
            assert [made.answer().status for _ in range(2)] == [401, 401]
        assert said(server, b"GET /v2/health/live" + HTTP + b"\r\n")[0] == 200


def test_s5_a_server_that_drains_answers_what_it_has_and_refuses_what_comes():
    with serving() as server, Caller(server) as accepted, Caller(server) as kept:
        kept.send(GET)
        assert kept.answer().status == 200
        address = server.address
        accepted.send(post(BODY, "slow"))
        until(lambda: server.service.requests)
        ending = threading.Thread(target=lambda: server.run(server.server.stop(drain_s=20)))
        ending.start()
        until(lambda: server.server.draining)
        kept.send(post(BODY))
        status, content, headers = kept.answer()
        assert (status, content["reason"], headers["Connection"]) == (503, "draining", "close")
        assert said(server, post(BODY))[0] == 503
        assert said(server, b"GET /v2/health/ready" + HTTP + b"\r\n")[0] == 503
        server.loop.call_soon_threadsafe(server.service.held.set)
        assert accepted.answer().status == 200
        ending.join()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


def test_neighbours_of_hostile_callers_get_their_own_answers():
    """Everything at once, with callers who check each of their answers meanwhile."""
    noise = [
        post(b"{"),
        b"\0\1\2\r\n\r\n",
        post(BOMB, "echo", "Content-Encoding: gzip"),
        GET[:9],
    ]
    with serving(Fake(), max_body_bytes=100_000) as server:
        wrong: list[object] = []
        over = threading.Event()

        def honest(number: int) -> None:
            with Caller(server) as made:
                for turn in range(40):
                    value = number * 1000 + turn
                    made.send(post(BODY.replace(b"[1, 2]}", b"[%d, 2]}" % value)))
                    status, content, _ = made.answer()
                    if status != 200 or content["outputs"][0]["data"] != [value, 2]:
                        wrong.append(content)

        def hostile(sent: bytes) -> None:
            while not over.is_set():
                with Caller(server) as made:
                    made.send(sent)

        honests = [threading.Thread(target=honest, args=(number,)) for number in range(4)]
        hostiles = [threading.Thread(target=hostile, args=(sent,)) for sent in noise]
        for thread in (*honests, *hostiles):
            thread.start()
        for thread in honests:
            thread.join()
        over.set()
        for thread in hostiles:
            thread.join()
        assert wrong == []
        assert alive(server)
