"""The pytest plugin of a rank: the ranks run the same tests in step, and none waits for one that failed.

    mpiexec -n 3 python -m pytest tests/mpi     # loaded by conftest.py; rank 0 prints, all report failures

After each test the ranks tell each other how it went, on a communicator of their own. A failure that every
rank reached the end of is only counted. A rank that failed while the others still sit in the test (in a
collective it will never join) has every rank dump its stacks, and ends the job. So does a test that outlasts
its limit (120 s, or the marker `limit(seconds)`).

With WEFT_RANK_REPORTS set to a folder, failures and stacks go to rank-N.txt in it and the counts to
rank-N.json (tests/test_under_mpiexec.py reads them); otherwise failures go to stderr.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

import numpy as np
import pytest

# Some tests take 10 s on 4 ranks of 2 cores that have nothing else to do, and many times that on busy ones.
LIMIT_S = 120.0
# How long a failed rank waits for the others to end the test too: Weft itself promises that a failure
# reaches all ranks within 5 s, and a test of that promise must see it kept rather than be ended.
GRACE_S = 10.0
DUMP_SIGNAL = signal.SIGUSR2


class Ranks:
    """One rank's side of a test run under mpiexec."""

    def __init__(self, config: pytest.Config) -> None:
        # Here, not at the top: this module is also imported where no MPI is.
        from mpi4py import MPI

        self.mpi = MPI
        self.comm = MPI.COMM_WORLD.Dup()
        self.rank, self.size = self.comm.rank, self.comm.size
        self.config = config
        self.counts: Counter[str] = Counter()
        self.failed = False
        folder = os.environ.get("WEFT_RANK_REPORTS")
        self.folder = Path(folder) if folder else None
        # A copy of stderr: pytest turns the descriptor itself elsewhere while a test runs.
        path = self.folder / f"rank-{self.rank}.txt" if self.folder else os.dup(2)
        self.out: TextIO = open(path, "w", buffering=1)  # noqa: SIM115  (held until the process ends)
        pids = np.zeros(self.size, dtype=np.int64)
        self.comm.Allgather(np.array([os.getpid()], dtype=np.int64), pids)
        self.pids = [int(pid) for pid in pids]
        self._leave_no_segment()
        faulthandler.register(DUMP_SIGNAL, file=self.out, all_threads=True)
        self._tell_what_ends_the_job()

    # Which tests, and that all ranks have the same ones

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        names = "\n".join(item.nodeid for item in session.items)
        mine = np.array([len(session.items), zlib.crc32(names.encode())], dtype=np.int64)
        least, greatest = mine.copy(), mine.copy()
        self.comm.Allreduce(mine, least, self.mpi.MIN)
        self.comm.Allreduce(mine, greatest, self.mpi.MAX)
        if (least != greatest).any():
            self._end(f"ranks collected different tests; here {len(session.items)}:\n{names}")

    # One test

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[Any]:
        self.failed = False
        marker = item.get_closest_marker("limit")
        limit = float(marker.args[0]) if marker else LIMIT_S
        # A second apart, so that usually one rank has all stacks dumped, once.
        watch = threading.Timer(
            limit + self.rank, self._end, [f"{item.nodeid} did not end within {limit:.0f} s"]
        )
        watch.daemon = True
        watch.start()
        try:
            result = yield
            self._agree(item)
        finally:
            watch.cancel()
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = True
            self.counts["failed"] += 1
            self._say(f"FAILED {report.nodeid} ({report.when})\n{report.longreprtext}")
            for name, text in report.sections:
                self._say(f"--- {name}\n{text}")
        elif report.when == "call" or report.skipped:
            self.counts[report.outcome] += 1

    def _agree(self, item: pytest.Item) -> None:
        """Tell the other ranks how `item` went here; end the job where this failed and they do not come."""
        failures = np.array([int(self.failed)], dtype=np.int64)
        request = self.comm.Iallreduce(self.mpi.IN_PLACE, failures)
        start = time.monotonic()
        nap_s = 1e-5
        while not request.Test():
            if self.failed and time.monotonic() - start > GRACE_S:
                self._end(f"{item.nodeid} failed on rank {self.rank} and the other ranks do not end it")
            time.sleep(nap_s)
            nap_s = min(2 * nap_s, 1e-3)
        if failures[0] and item.config.getoption("maxfail"):
            item.session.shouldfail = f"{item.nodeid} failed on {failures[0]} of {self.size} ranks"

    # Tests that could not even be collected

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.counts["failed"] += 1
            self._say(f"FAILED to collect {report.nodeid}\n{report.longreprtext}")

    def pytest_sessionfinish(self) -> None:
        if self.folder:
            (self.folder / f"rank-{self.rank}.json").write_text(json.dumps(self.counts))

    # Reports

    def _say(self, text: str) -> None:
        self.out.write(f"[rank {self.rank} of {self.size}] {text.rstrip()}\n")
        self.out.flush()

    def _tell_what_ends_the_job(self) -> None:
        """Have Weft, where it ends all ranks, first report what this one has printed: pytest still has it."""
        from weft.runtime.message import failure

        flush = failure.flush

        def report() -> None:
            flush()
            self._say(f"Weft ends the job; printed until then:\n{self._captured()}")

        failure.flush = report

    def _leave_no_segment(self) -> None:
        """As Weft does where it starts MPI: all ranks are here, so their memory needs no name any more."""
        from weft.runtime.message.mpi import unlink_segments

        unlink_segments("mpich")

    def _captured(self) -> str:
        """What this rank has printed, as far as pytest has not told it."""
        captured = self.config.pluginmanager.getplugin("capturemanager").read_global_capture()
        return f"{captured.out}{captured.err}"

    def _end(self, why: str) -> NoReturn:
        """Have every rank dump its stacks, then end the job. Called by any thread."""
        printed = self._captured()  # which stall it is, say
        self._say(f"{why}; every rank's stacks follow, then the job is ended; printed until then:\n{printed}")
        for pid in self.pids:
            try:
                os.kill(pid, DUMP_SIGNAL)
            except ProcessLookupError:
                self._say(f"the rank with process id {pid} is gone")
        time.sleep(0.5)  # for the dumps to be written; the job is lost already
        if self.folder:
            (self.folder / f"rank-{self.rank}.json").write_text(json.dumps(self.counts))
        # Not Abort: the main thread may hold a lock inside MPI. Both launchers end a job of which a rank left
        # without MPI_Finalize.
        os._exit(1)


def configure(config: pytest.Config) -> None:
    """Make this process a rank of the test run; called by conftest.py under a launcher."""
    ranks = Ranks(config)
    config.pluginmanager.register(ranks, "weft-ranks")
    if ranks.rank:
        # Rank 0 tells how the run goes; the others only report what failed.
        config.pluginmanager.unregister(name="terminalreporter")
