"""Ctrl-C and SIGTERM: the first asks for a stop, the second ends this rank at once.

A stop sets `stopping` on every rank (whichever heard the signal) and calls the callbacks of `on_stop`, in
the loop. Without a callback main is cancelled, as under `asyncio.run`. What launchers do, tried with
MPICH 5.0.2 (hydra) and Open MPI 5.0.11 (prterun) on one node; "ranks" means all of them:

    signal to mpiexec     MPICH                                Open MPI
    SIGINT (Ctrl-C)       ranks get SIGINT; no time limit      ranks get SIGCONT, after 0.25 s SIGTERM, after
    SIGINT, the second    ranks are killed, status 255         0.5 s SIGKILL; mpiexec's status is 1
    SIGTERM               ranks get SIGTERM; no time limit     the same
    SIGUSR1               ranks get SIGUSR1; no time limit     ranks get SIGUSR1; no time limit
    SIGKILL               ranks are killed                     ranks live on (failure.py ends them)
    signal to one rank    that rank gets it, nothing else      that rank gets it, nothing else
    SIGKILL to one rank   all killed within 10 ms, status 9    all ended within 0.5 s, status 137

Open MPI's half second is fixed in its launcher (PRRTE: two waits of 250 ms, no setting); what ranks print
in it is lost. SIGCONT opens it, so a rank that gets SIGCONT while it runs, not stopped, takes that for the
stop and has 0.5 s instead of 0.25 s: enough for a checkpoint of some megabytes at the end of a short step,
not for more. Therefore SIGUSR1 asks for a stop as well: `kill -USR1 PID_OF_MPIRUN`, or Slurm's
`--signal=USR1@60`, leaves all the time there is under both. Slurm itself sends SIGTERM and, KillWait (30 s
by default) later, SIGKILL.

Exit status after a stop: 128 + signal from rank 0, 0 from the others. Rank 0 leaves last, after the others
of its node are gone: MPICH kills what still runs when a rank exits with a status, prints "BAD TERMINATION"
and returns 9. In that order it returned 143 without a word, Open MPI added its six lines.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from .control import Control
from .failure import Failures, flush, say
from .mpi import unlink_segments
from .selector import MpiLoop

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# A loop that last looked around longer ago than this was stopped, or blocked.
AWAKE_S = 0.1
# A scheduler may signal both the launcher, which passes it on, and the ranks: that is one signal, not two.
SAME_S = 0.5
GONE_S = 5.0  # how long rank 0 waits for the node's other ranks to be gone


class Stop:
    """One rank's part in stopping; `cancel_main` is called where nobody takes the stop in hand."""

    def __init__(
        self,
        control: Control,
        loop: MpiLoop,
        failures: Failures,
        cancel_main: Callable[[], None],
    ) -> None:
        self.signal: signal.Signals | None = None
        self.callbacks: list[Callable[[], object]] = []
        self._control = control
        self._failures = failures
        self._cancel_main = cancel_main
        self._loop = loop
        self._before: dict[signal.Signals, Any] = {}
        self._first_s = 0.0  # when the first signal came
        control.on("stop", lambda _, number: self._asked(number))

    def install(self) -> None:
        """Handle the signals from here on; SIGUSR1 only where the program has no handler for it."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOP_SIGNALS:
            before = signal.getsignal(number)
            if number != signal.SIGUSR1 or before == signal.SIG_DFL:
                self._before[number] = signal.signal(number, self._handle)
        if "OMPI_COMM_WORLD_RANK" in os.environ:
            self._before[signal.SIGCONT] = signal.signal(signal.SIGCONT, self._continued)

    def remove(self) -> None:
        """Put the earlier handlers back."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Not in the loop: so it works even where Python code blocks the loop.
        now = time.monotonic()
        if not self._first_s:
            self._first_s = now
            self._loop.call_soon_threadsafe(self._asked, number)
        elif now - self._first_s > SAME_S:
            flush()
            unlink_segments()
            os._exit(128 + number)

    def _continued(self, number: int, frame: FrameType | None) -> None:
        """SIGCONT from Open MPI's launcher: SIGTERM is next, unless this rank had really been stopped."""
        if time.monotonic() - self._loop.mpi.last_look < AWAKE_S:
            self._handle(signal.SIGTERM, frame)

    def _asked(self, number: int) -> None:
        """A signal came, here or on another rank; rank 0 passes it on to all."""
        if self.signal is not None or self._failures.any:  # Open MPI sends SIGTERM after MPI_Abort
            return
        self.signal = signal.Signals(number)
        if self._control.rank != 0:
            self._control.send(0, "stop", number)
        else:
            self._control.tell("stop", number)
            again = "" if number == signal.SIGUSR1 else "; once more to end at once"
            say(f"weft: {self.signal.name}: stopping{again}")
        for callback in list(self.callbacks):
            callback()
        if not self.callbacks:
            self._cancel_main()


def leave_last(pids: list[int]) -> None:
    """Wait until these processes of this node are gone, at most `GONE_S` seconds."""
    for pid in pids:
        if pid == os.getpid():
            continue
        with contextlib.suppress(OSError):  # gone already, or in another container
            fd = os.pidfd_open(pid)
            select.select([fd], [], [], GONE_S)
            os.close(fd)
