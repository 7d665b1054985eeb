"""The terminal on which a person watches this process, also when a launcher stands in between.

Under a launcher `isatty()` is wrong in both directions (MPICH 5.0 and Open MPI 5.0):

    rank ─pipe─▶ hydra_pmi_proxy ─▶ mpiexec ─▶ terminal      isatty() False: there could be a bar
    rank ─pseudo-terminal─▶ prterun ─▶ file                  isatty() True: cursor codes in the file

What counts is where the launcher's own standard output goes, and on Linux `/proc/PID/fd/1` of that ancestor
says it. The bar is written there, past the launcher: Open MPI 5 forwards whole lines only, and a bar has no
end of line (open-mpi/ompi issue 12594), and labels that a launcher puts before lines do not tear it.
A rank whose launcher is on another host, or is srun, finds none and prints plain lines.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

LAUNCHERS: Final = frozenset({"mpiexec", "mpirun", "prterun", "orterun"})
PROXIES: Final = frozenset({"hydra_pmi_proxy", "hydra_bstrap_proxy", "prted", "orted"})


@dataclass(frozen=True, slots=True)
class Terminal:
    """A terminal, open for writing."""

    stream: TextIO

    def columns(self) -> int:
        """Its width now, since people resize windows; 80 if it does not say."""
        try:
            return os.get_terminal_size(self.stream.fileno()).columns or 80
        except OSError:  # the window was closed
            return 80


def find_terminal(
    stdout: TextIO | None = None,
    environment: Mapping[str, str] = os.environ,
    proc: Path = Path("/proc"),
) -> Terminal | None:
    """The terminal where `stdout` (by default `sys.stdout`) appears, if a bar may move there; else None."""
    if environment.get("TERM", "") in ("", "dumb", "unknown"):
        return None
    stdout = sys.stdout if stdout is None else stdout
    try:
        launcher = _launcher_that_reads(stdout.fileno(), proc)
        if launcher is None:
            return Terminal(stdout) if stdout.isatty() else None
        output = launcher / "fd" / "1"
        if not stat.S_ISCHR(os.stat(output).st_mode):
            return None
        # Without O_NOCTTY the rank, which may lead a session, would get the terminal's Ctrl-C by itself.
        stream = os.fdopen(os.open(output, os.O_WRONLY | os.O_NOCTTY), "w", encoding="utf-8")
        if stream.isatty():
            return Terminal(stream)
        stream.close()  # /dev/null is a character device too
    except (OSError, ValueError):  # a captured stdout, no /proc, another user's launcher or terminal
        pass
    return None


def _launcher_that_reads(stdout: int, proc: Path) -> Path | None:
    """The folder in /proc of the launcher that started this process, if it reads `stdout`.

    It does not in `mpirun -n 1 sh -c "weft train digits | tee log"`, nor where a test captures the output.
    """
    reader: Path | None = None
    for process in _ancestors(proc):
        name = (process / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        name = name.rpartition("/")[2].partition(".")[0]
        if reader is None and name in LAUNCHERS | PROXIES:
            reader = process  # the lowest of them made the pipe or the pseudo-terminal
            if not _reads(reader, stdout):
                return None
        if name in LAUNCHERS:
            return process
    return None


def _reads(process: Path, stdout: int) -> bool:
    """Whether the process holds the other end of `stdout`."""
    if os.isatty(stdout):
        number = re.fullmatch(r"/dev/pts/(\d+)", os.ttyname(stdout))
        files = (entry.read_text() for entry in (process / "fdinfo").iterdir())
        return number is not None and any(f"tty-index:\t{number[1]}\n" in file for file in files)
    pipe = os.readlink(f"/proc/self/fd/{stdout}")
    return pipe.startswith("pipe:") and any(
        os.readlink(entry) == pipe for entry in (process / "fd").iterdir()
    )


def _ancestors(proc: Path) -> Iterator[Path]:
    """Folders in /proc of this process's parent, its parent, and so on."""
    pid = os.getpid()
    while True:
        # "PID (name) state PPID ...": the name may hold spaces and brackets
        pid = int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        if pid <= 1:
            return
        yield proc / str(pid)
