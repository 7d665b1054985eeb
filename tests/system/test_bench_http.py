"""The bench of the HTTP front, tiny; and that it would notice a wrong answer."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from bench.harness import WrongResultError
from bench.http import load
from tests.launch import ROOT, python, run


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
