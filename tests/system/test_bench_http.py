"""The bench of the HTTP front, tiny; and that it would notice a wrong answer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from bench.harness import WrongResultError
from bench.http import load, repository, server
from tests.launch import ROOT, descendants, environment, installed_vendor, mpiexec, python, run
from weft.runtime.serve.settings import ModelSettings, read_settings

# The bench, that says when its servers wait for their turns.
TELLS = """
import sys
from unittest.mock import patch
import bench.http
from bench.__main__ import main

interleaved = bench.http.interleaved

def told(*how):
    print("ready", flush=True)
    return interleaved(*how)

with patch.object(bench.http, "interleaved", told):
    raise SystemExit(main(["http", "--seconds", "1000"]))
"""


def test_the_bench_measures_what_it_names(tmp_path: Path):
    written = tmp_path / "out.json"
    command = [python(), "-m", "bench", "http", "--repetitions", "1", "--seconds", "0.1", "--json", written]
    result = run(command, cwd=ROOT)
    assert result.returncode == 0, result
    figures = json.loads(written.read_text())["figures"]
    assert {
        "requests_per_s",
        "added_p50_ms",
        "front_per_s",
        "bare_per_s",
        "bare_p50_ms",
        "over_bare",
    } <= figures.keys()
    assert all(figure["value"] > 0 for figure in figures.values())


def test_the_servers_of_a_rank_that_was_launched_are_no_ranks(tmp_path: Path):
    written = tmp_path / "out.json"
    options = ["http", "--repetitions", "1", "--seconds", "0.1", "--json", written]
    result = mpiexec(1, ["-m", "bench", *options], cwd=ROOT)
    assert result.returncode == 0, result
    assert written.exists()


def test_several_ranks_are_refused():
    result = mpiexec(2, ["-m", "bench", "http"], cwd=ROOT)
    assert result.returncode != 0
    assert "http: 2 ranks would each start all servers" in result.stderr


def test_a_server_that_ends_is_quoted(tmp_path: Path):
    core = min(os.sched_getaffinity(0))
    with pytest.raises(WrongResultError) as caught, server("nobody", core, tmp_path):
        pass
    assert "the server nobody ended before it answered: Traceback" in str(caught.value)
    assert "KeyError: 'nobody'" in str(caught.value)


def test_no_request_is_refused_for_its_deadline_on_a_busy_machine(tmp_path: Path):
    settings = read_settings(ModelSettings, repository(tmp_path) / "noop" / "weft.toml")
    assert settings.deadline_ms == 60_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_leaves_no_server_behind(number, tmp_path):
    """They are stopped (SIGSTOP) between their turns, and would be so for good."""
    settings = environment(installed_vendor(), {"TMPDIR": str(tmp_path)})
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [python(), "-c", TELLS], cwd=ROOT, env=settings, stdout=pipe, stderr=pipe, text=True
    ) as started:
        try:
            assert started.stdout.readline() == "ready\n"
            servers = descendants(started.pid)
            assert len(servers) >= 3
            started.send_signal(number)
            _, told = started.communicate(timeout=60)
        finally:
            started.kill()
    left = [pid for pid in servers if Path(f"/proc/{pid}").exists()]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, told
    assert not list(tmp_path.iterdir())


def test_an_answer_with_other_numbers_is_a_wrong_result():
    body = b'{"outputs": [{"name": "x", "data": [1.0]}]}'
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with listening.accept()[0] as caller:
                while caller.recv(65536):
                    caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(WrongResultError, match="a wrong answer"):
            load(listening.getsockname()[1], 1, 0.1)
        thread.join()
