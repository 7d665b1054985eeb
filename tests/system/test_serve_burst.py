"""weft serve and more connections than its process may have files."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tritonclient.http as triton

from tests.mpi.serve.models import dense, expected, put, samples
from tests.system.served import running

FILES = 256
CONNECTIONS = 600


@contextlib.contextmanager
def files(count: int) -> Iterator[None]:
    """What is started here may open so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_s5_a_burst_of_connections_while_the_loop_is_busy_ends_nothing(tmp_path: Path):
    put(tmp_path / "models", "a", 1, dense(1))
    arguments = ["serve", str(tmp_path / "models"), "--port", "0"]
    with contextlib.ExitStack() as stack:
        with files(FILES):
            job = stack.enter_context(running(0, arguments, tmp_path / "log.txt"))
        host, port = job.listen().address.split(":")
        job.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, job.process.pid, os.WSTOPPED)
        with contextlib.ExitStack() as callers:
            for _ in range(CONNECTIONS):  # the system takes them in
                last = callers.enter_context(socket.create_connection((host, int(port)), timeout=30))
            job.process.send_signal(signal.SIGCONT)
            with contextlib.suppress(ConnectionResetError):  # the last is turned away behind all others
                last.recv(1)
        with triton.InferenceServerClient(job.address) as client:
            assert client.is_server_ready(), job.text
            asked = triton.InferInput("pixels", [3, 4], "FP32")
            asked.set_data_from_numpy(samples(3))
            answer = client.infer("a", [asked], timeout=60_000_000).as_numpy("scores")
        np.testing.assert_allclose(answer, expected(samples(3), 1), rtol=1e-5, atol=1e-6)
        assert "Too many open files" not in job.text
        assert job.stop() == 0
