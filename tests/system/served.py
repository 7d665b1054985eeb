"""`weft serve` and `weft run` as processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests import launch

CLI = ["-m", "weft.runtime.cli"]
LISTENING = re.compile(r"listening on http://(127\.0\.0\.1:\d+)")
LIMIT_S = 90.0


class Running:
    """A `weft serve` or `weft run`; `ranks` 0: without mpirun."""

    def __init__(
        self, ranks: int, arguments: list[str], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        starter = launch.launcher(ranks) if ranks else []
        self._log = log
        with open(log, "w") as out:
            self.process = subprocess.Popen(
                [*starter, sys.executable, *CLI, *arguments],
                env=launch.environment(launch.installed_vendor(), env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.address = ""

    @property
    def text(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, pattern: str | re.Pattern[str]) -> re.Match[str]:
        limit = time.monotonic() + LIMIT_S
        while (found := re.search(pattern, self.text)) is None:
            if time.monotonic() > limit or self.process.poll() is not None:
                pytest.fail(f"it did not say {pattern!r}:\n{self.text}", pytrace=False)
            time.sleep(0.05)
        return found

    def listen(self) -> Running:
        self.address = self.wait_for(LISTENING)[1]
        return self

    def ranks(self) -> list[int]:
        """Process ids of the ranks."""
        return [
            pid
            for pid in (*launch.descendants(self.process.pid), self.process.pid)
            if b"weft.runtime.cli" in Path(f"/proc/{pid}/cmdline").read_bytes()
            and b"mpiexec" not in Path(f"/proc/{pid}/cmdline").read_bytes()
            and Path(os.readlink(f"/proc/{pid}/exe")).name.startswith("python")
        ]

    def end(self) -> int:
        try:
            return self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it does not end:\n{self.text}", pytrace=False)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.end()

    def kill(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):  # in order, if it can: MPI's memory goes with it
            self.process.terminate()
            self.process.wait(10)
        for pid in (*launch.descendants(self.process.pid), self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def running(ranks: int, arguments: list[str], log: Path, **env: str) -> Iterator[Running]:
    job = Running(ranks, arguments, log, env)
    try:
        yield job
    finally:
        job.kill()
