"""An uncaught error on any rank ends the job: every rank hears of it, one rank prints it, all stop.

    0 ms     a rank fails: it sends its report (rank, host, traceback) to all others
    300 ms   settled: ranks that failed by themselves have said so too. The lowest failed rank prints what
             it knows, grouped, once; on the others `PeerFailure` is raised in main, so that `finally` runs
    2.5 s    at the latest, or as soon as every rank has left its main: MPI_Abort ends the job
    3.5 s    failed ranks that still live (no launcher, a hung MPI, a blocked loop) end themselves, from a
             thread of their own
    4.5 s    the others do; where no failed rank has printed, the first of them prints before

A rank whose loop is blocked in a long call hears nothing; MPI_Abort has the launcher kill it. Measured
from MPI_Abort until mpiexec had returned, with a rank that sleeps: 10 ms under MPICH 5.0.2, 0.5 s under
Open MPI 5.0.11 (SIGCONT, 0.25 s, SIGTERM, 0.25 s, SIGKILL). Both do the same when a rank is killed.

Why all ranks end: the survivors would wait for ever in collectives that the failed rank never joins, and
a posted collective cannot be recalled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, NoReturn

from mpi4py import MPI

from ..errors import MachineError, Mistake, PeerFailure, WeftError, first_of
from .control import MESSAGE_BYTES, Control
from .mpi import launched_as, unlink_segments
from .selector import LONGEST_TEXT

SETTLE_S = 0.3  # ranks that make the same mistake do so within some 10 ms; a person does not notice 0.3 s
GRACE_S = 2.0  # for `finally` blocks; the whole must stay below 5 s
LAST_S = 4.5
OWN_LAST_S = 3.5  # of who failed: what it prints is not printed by others, whom Open MPI ends 0.5 s later
# MPICH's launcher drops what it has not yet read from a rank that aborts: on a busy machine the report was
# lost in 2 of 60 runs, in part in 5; after 0.2 s in none of 60. (Leaving with a status instead of aborting
# loses nothing, but then 12 of 30 runs returned 9, for the ranks that were killed, and not the status.)
READ_S = 0.2
TEXT_BYTES = MESSAGE_BYTES // 2


@dataclass(frozen=True, slots=True)
class Report:
    """What went wrong on one rank: `text` is a traceback, or where it is `plain` all that a reader wants."""

    rank: int
    size: int
    host: str
    where: str
    text: str
    status: int
    plain: bool = False


def report_of(error: BaseException, rank: int, size: int, host: str, where: str) -> Report:
    """The report of an uncaught exception; `where` says what it ended ("main", a task's name)."""
    error = plain_error(error) or error
    plain = isinstance(error, Mistake | MachineError)  # not Weft's own fault: where it was seen helps nobody
    if isinstance(error, Mistake | MachineError):
        notes = getattr(error, "__notes__", ())  # such as which task of a pool raised it
        text, status = "\n".join([str(error), *notes]), error.exit_status
    elif isinstance(error, SystemExit):
        # Like Python itself: sys.exit("text") prints the text, sys.exit(3) nothing.
        text = f"sys.exit({error.code!r})"
        # The system keeps a byte of it: sys.exit(256) ended all ranks with 0, as if they had done their work.
        status = error.code & 0xFF or 1 if isinstance(error.code, int) else 1
    else:
        text = "".join(traceback.format_exception(type(error), error, frames_of(error))).rstrip()
        status = error.exit_status if isinstance(error, WeftError) else 1
    return Report(rank, size, host, where[:LONGEST_TEXT], shortened(text), status, plain)


def plain_error(error: BaseException) -> Mistake | MachineError | None:
    """The Mistake or MachineError that `error` is; also of a TaskGroup in which nothing else went wrong."""
    if isinstance(error, BaseExceptionGroup):
        if error.split((Mistake, MachineError))[1] is not None:
            return None
        error = first_of(error)
    return error if isinstance(error, Mistake | MachineError) else None


def frames_of(error: BaseException) -> TracebackType | None:
    """The traceback of `error`, from the first frame on that is not of `run` itself."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").endswith(".message.launch"):
        trace = trace.tb_next
    return trace or error.__traceback__


def shortened(text: str) -> str:
    """`text`, or its beginning and end where it would not fit a control message."""
    data = text.encode(errors="backslashreplace")  # it may hold a file's name that is no text
    if len(data) <= TEXT_BYTES:
        return data.decode()
    half = TEXT_BYTES // 2 - 20
    return data[:half].decode(errors="ignore") + "\n[...]\n" + data[-half:].decode(errors="ignore")


def follows_peer_failure(error: BaseException | None) -> bool:
    """Whether `error` is, or was raised while handling, the failure of another rank."""
    if error is None:
        return False
    if isinstance(error, BaseExceptionGroup):
        return all(follows_peer_failure(e) for e in error.exceptions)
    if isinstance(error, PeerFailure | asyncio.CancelledError):
        return True
    return follows_peer_failure(error.__cause__) or follows_peer_failure(error.__context__)


def render(reports: Iterable[Report]) -> str:
    """All reports as one text; ranks with the same text share one paragraph."""
    groups: dict[tuple[str, str], list[Report]] = {}
    for report in sorted(reports, key=lambda r: r.rank):
        groups.setdefault((report.text, report.where), []).append(report)
    paragraphs = []
    for (text, where), group in groups.items():
        size = group[0].size
        hosts = ", ".join(dict.fromkeys(r.host for r in group))
        who = f"{ranks_text([r.rank for r in group])} of {size} on {hosts}"
        if group[0].plain:
            paragraphs.append(f"weft: {text}" + ("" if len(group) == size else f" ({who})"))
        elif len(text.splitlines()) == 1:
            paragraphs.append(f"weft: {who} failed in {where}: {text}")
        else:
            paragraphs.append(f"weft: {who} failed in {where}:\n{text}")
    return "\n".join(paragraphs)


def ranks_text(ranks: list[int]) -> str:
    """As in "rank 3" or "ranks 0-2, 5"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"rank{'' if len(ranks) == 1 else 's'} {text}"


class Failures:
    """One rank's part in ending the job. `interrupt` is called once, to stop this rank's main."""

    def __init__(
        self,
        control: Control,
        loop: asyncio.AbstractEventLoop,
        interrupt: Callable[[PeerFailure | None], None],
    ) -> None:
        #: Done as soon as this rank knows of a failure, here or elsewhere.
        self.happened: asyncio.Future[None] = loop.create_future()
        #: Set when this rank has printed reports.
        self.printed = asyncio.Event()
        self._control = control
        self._loop = loop
        self._interrupt = interrupt
        self._reports: dict[int, Report] = {}
        self._told: set[int] = set()  # ranks whose reports have been printed
        self._left: set[int] = set()  # ranks that have left main
        self._since = 0.0  # when this rank knew of the first
        control.on("failed", self._heard)
        control.on("told", self._heard_told)
        control.on("left", self._heard_left)
        self._launcher = launcher_pidfd()
        if self._launcher >= 0:
            loop.add_reader(self._launcher, self._launcher_gone)

    @property
    def any(self) -> bool:
        """Whether this rank knows of a failure."""
        return bool(self._reports)

    def local(self, error: BaseException, where: str) -> None:
        """Something on this rank ended with an exception that nobody caught."""
        rank = self._control.rank
        if rank in self._reports or (self.any and follows_peer_failure(error)):
            return
        report = report_of(error, rank, self._control.size, socket.gethostname(), where)
        self._control.tell("failed", asdict(report))
        self._add(report)

    def main_left(self) -> None:
        """This rank's main is over: the job need not wait for its `finally` blocks any more."""
        flush()
        self._control.tell("left")
        self._heard_left(self._control.rank)

    def status(self) -> int:
        """The job's exit status: that of the lowest failed rank."""
        return self._reports[min(self._reports)].status or 1

    def _heard(self, source: int, fields: dict[str, Any]) -> None:
        self._add(Report(**fields))

    def _heard_told(self, source: int, ranks: list[int]) -> None:
        self._told.update(ranks)

    def _heard_left(self, source: int) -> None:
        self._left.add(source)
        if self.printed.is_set() and len(self._left) == self._control.size:
            self._end()

    def _add(self, report: Report) -> None:
        first = not self.any
        self._reports[report.rank] = report
        if first:
            self._since = time.monotonic()
            self.happened.set_result(None)
            self._loop.call_later(SETTLE_S if report.size > 1 else 0.0, self._settled)
            own = report.rank == self._control.rank
            last = threading.Timer(OWN_LAST_S if own else LAST_S, self._end_alone)
            last.daemon = True
            if report.size > 1:
                last.start()

    def _settled(self) -> None:
        """Whoever failed by himself has said so: stop main, and print if it is this rank's turn."""
        rank = self._control.rank
        if rank not in self._reports:
            cause = self._reports[min(self._reports)]
            self._interrupt(PeerFailure(cause.rank, cause.size, cause.host, cause.text))
            return
        self._interrupt(None)
        untold = sorted(self._reports.keys() - self._told)
        if untold and rank == untold[0]:
            self._control.tell("told", untold)
            self._print(untold)
            self._loop.call_later(GRACE_S, self._end)
            if len(self._left) == self._control.size:
                self._end()

    def _print(self, ranks: list[int]) -> None:
        self._told.update(ranks)
        say(render([self._reports[r] for r in ranks]))
        self.printed.set()

    def _end(self) -> None:
        if self._control.size > 1:
            abort(self.status())

    def _end_alone(self) -> None:
        """In a thread: the job should have ended long ago."""
        rank = self._control.rank
        well = set(range(self._control.size)) - self._reports.keys()
        if rank in self._reports:
            # Not if this thread was kept for so long that those that are well have told.
            if rank not in self._told and (time.monotonic() < self._since + LAST_S or not well):
                self._print([rank])
        elif not self._told:
            # Who failed is stuck where not even its thread runs, in C code that holds the interpreter's lock:
            # all ranks ended without a word of why.
            if rank == min(well):
                self._print(sorted(self._reports))
            else:
                time.sleep(READ_S)  # the launcher would end that one before it has told
        flush()
        unlink_segments()
        os._exit(self.status())

    def close(self) -> None:
        """Stop looking after the launcher."""
        if self._launcher >= 0:
            self._loop.remove_reader(self._launcher)
            os.close(self._launcher)
            self._launcher = -1

    def _launcher_gone(self) -> None:
        """Open MPI's ranks outlive a killed mpiexec, and would wait for ever."""
        unlink_segments()
        os._exit(1)


def launcher_pidfd() -> int:
    """A descriptor that becomes readable when the launcher of this rank ends; -1 without a launcher."""
    if launched_as() is None:
        return -1
    try:
        return os.pidfd_open(os.getppid())
    except OSError:
        return -1


def abort(status: int) -> NoReturn:
    """End all ranks at once, through the launcher, with this exit status."""
    flush()
    unlink_segments()
    time.sleep(READ_S)
    MPI.COMM_WORLD.Abort(status)
    os._exit(status)


def say(text: str) -> None:
    """Write to stderr, in one piece, so that lines of several ranks do not mix."""
    with contextlib.suppress(OSError, ValueError):  # closed, or its reader is gone
        if sys.stderr is not None:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


def flush() -> None:
    """Write out what this process has printed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            if stream is not None:  # as where the shell closed it: `>&-`
                stream.flush()
