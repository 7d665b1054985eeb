"""What HTTP costs: requests a second and latency of a model that does nothing, a core for each end.

python -m bench http

requests_per_s     8 connections, each asking again as soon as it is answered: JSON with 16 numbers, both
                   ways, through the whole server: HTTP, dispatcher, policy, lane
added_p50_ms       the median round trip of one connection: what serving adds to a model's time
front_per_s, front_p50_ms
                   the same of the HTTP front alone, with nothing behind it
bare_per_s, bare_p50_ms
                   the same of an asyncio protocol that sends bodies back unread: the ceiling
over_bare          requests_per_s over bare_per_s, round by round
litserve_…, mlserver_…
                   the same of LitServe and MLServer, where they are installed

Every answer is checked: each request brings numbers of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from bench.harness import (
    Figure,
    amount,
    check,
    installed,
    interleaved,
    positive,
    ratio,
    require,
    unlaunched,
)
from bench.live import nothing
from weft.runtime.errors import Mistake
from weft.runtime.message import mpi

CONNECTIONS = 8
NUMBERS = 16
START_S = 60.0  # importing a peer takes long
DEADLINE_MS = 60_000
LAST_WORDS = 2000  # bytes, of a server's that has ended


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repetitions", type=positive, default=5, metavar="N", help="rounds")
    parser.add_argument("--seconds", type=amount, default=1.0, metavar="N", help="length of a repetition")


def main(args: argparse.Namespace) -> dict[str, Figure]:
    require("http", {"onnx": "weft[onnx]", "httptools": "weft[serve]", "orjson": "weft[serve]"})
    _, ranks = mpi.launched_as() or (0, 1)
    if ranks > 1:
        raise Mistake(
            f"{ranks} ranks would each start all servers on the same core: start python -m bench http"
            " without a launcher"
        )
    cores = sorted(os.sched_getaffinity(0))
    names = [
        "weft",
        "front",
        "bare",
        *installed("http", {"litserve": "litserve", "mlserver": "mlserver"}),
    ]
    rates: dict[str, list[float]] = defaultdict(list)
    medians: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGHUP):
            # Servers have sessions of their own and are stopped: one not killed here stays for good.
            stack.callback(signal.signal, number, signal.signal(number, lambda n, _: sys.exit(128 + n)))
        models = repository(Path(stack.enter_context(TemporaryDirectory())))
        servers = {name: stack.enter_context(server(name, cores[0], models)) for name in names}
        os.sched_setaffinity(0, cores[-1:])
        stack.callback(os.sched_setaffinity, 0, cores)
        for name, counts in interleaved(names, args.repetitions):
            with servers[name].awake() as port:
                rate, _ = load(port, CONNECTIONS, args.seconds)
                _, latencies = load(port, 1, args.seconds)
            if counts:
                rates[name].append(rate)
                medians[name].append(statistics.median(latencies))
    figures = {
        "requests_per_s": Figure.of(rates["weft"], "requests/s"),
        "added_p50_ms": Figure.of(medians["weft"], "ms", 1e3),
    }
    for name in names[1:]:
        figures[f"{name}_per_s"] = Figure.of(rates[name], "requests/s")
        figures[f"{name}_p50_ms"] = Figure.of(medians[name], "ms", 1e3)
    return figures | {"over_bare": ratio(rates["weft"], rates["bare"])}


def repository(folder: Path) -> Path:
    """A folder of one model, which returns its input."""
    model = folder / "noop" / "1" / "model.onnx"
    model.parent.mkdir(parents=True)
    model.write_bytes(nothing())
    # The server's own 200 ms refused requests where others used its core, and a refusal ends the bench.
    (model.parents[1] / "weft.toml").write_text(f"deadline_ms = {DEADLINE_MS}\n")
    return folder


class Server:
    """A server's process, which sleeps except in its turn."""

    def __init__(self, name: str, core: int, models: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port: int = free.getsockname()[1]
        command = [sys.executable, "-m", "bench._http_servers", name, str(self._port), str(models)]
        self._told = TemporaryFile()  # noqa: SIM115, closed by `end`
        self._process = subprocess.Popen(
            command,
            env=unlaunched(),
            stdout=subprocess.DEVNULL,
            stderr=self._told,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, [core]),
        )
        self._name = name

    def wait(self) -> None:
        """Until it answers, which a peer that loads its model does later than it listens."""
        end = time.monotonic() + START_S
        while True:
            try:
                load(self._port, 1, 0.0)
                break
            except (OSError, ValueError):
                ended = self._process.poll() is not None
                check(not ended, f"the server {self._name} ended before it answered: {self._last_words()}")
                check(time.monotonic() < end, f"the server {self._name} does not answer after {START_S} s")
                time.sleep(0.1)
        os.killpg(self._process.pid, signal.SIGSTOP)

    @contextmanager
    def awake(self) -> Iterator[int]:
        os.killpg(self._process.pid, signal.SIGCONT)
        yield self._port
        os.killpg(self._process.pid, signal.SIGSTOP)

    def end(self) -> None:
        with suppress(ProcessLookupError):  # it has ended before: what is raised already says so
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._told.close()

    def _last_words(self) -> str:
        told = self._told
        told.seek(max(0, told.seek(0, os.SEEK_END) - LAST_WORDS))
        return told.read().decode(errors="replace").strip()


@contextmanager
def server(name: str, core: int, models: Path) -> Iterator[Server]:
    made = Server(name, core, models)
    try:
        made.wait()
        yield made
    finally:
        made.end()


# -- the client ------------------------------------------------------------------------------------


def load(port: int, connections: int, seconds: float) -> tuple[float, list[float]]:
    """Ask over so many connections for so long: answers a second, and how long each took."""
    with selectors.DefaultSelector() as selector, ExitStack() as stack:
        callers = [Caller(port, number) for number in range(connections)]
        for caller in callers:
            stack.enter_context(caller.socket)
            selector.register(caller.socket, selectors.EVENT_READ, caller)
            caller.ask()
        start = now = time.perf_counter()
        while now - start < seconds or not all(caller.latencies for caller in callers):
            for key, _ in selector.select():
                key.data.read()
            now = time.perf_counter()
    latencies = [latency for caller in callers for latency in caller.latencies]
    return len(latencies) / (now - start), latencies


class Caller:
    """One connection, which asks again as soon as it is answered."""

    def __init__(self, port: int, number: int) -> None:
        self.latencies: list[float] = []
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._prepared = [prepared([number * 100.0 + turn] * NUMBERS) for turn in range(100)]
        self._wanted = b""
        self._received = b""
        self._asked = 0.0

    def ask(self) -> None:
        request, self._wanted = self._prepared[len(self.latencies) % len(self._prepared)]
        self._received = b""
        self._asked = time.perf_counter()
        self.socket.sendall(request)

    def read(self) -> None:
        received = self.socket.recv(65536)
        if not received:
            raise ConnectionError("the server has closed the connection")
        self._received += received
        if whole(self._received):
            self.latencies.append(time.perf_counter() - self._asked)
            if not self._received.startswith(b"HTTP/1.1 200"):
                raise ValueError(f"the server answered {self._received[:300]!r}")
            check(self._wanted in self._received.replace(b" ", b""), f"a wrong answer: {self._received!r}")
            self.ask()


def prepared(numbers: Sequence[float]) -> tuple[bytes, bytes]:
    """A request, and what its answer holds."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(numbers)], "data": numbers}
    body = json.dumps({"inputs": [tensor]}).encode()
    head = [
        "POST /v2/models/noop/infer HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    wanted = f'"data":{json.dumps(numbers, separators=(",", ":"))}'
    return "\r\n".join([*head, "", ""]).encode() + body, wanted.encode()


def whole(received: bytes) -> bool:
    """Whether an answer has come to its end."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return False
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    return len(body) >= int(length)
