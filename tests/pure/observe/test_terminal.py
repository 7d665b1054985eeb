from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from weft.runtime.observe.terminal import find_terminal

TERM = {"TERM": "xterm"}


class Proc:
    """A /proc of this process and the ancestors that a test invents."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = os.getpid()
        self._process(self.last, "python")

    def above(self, command: str, *, reads: str = "", tty_index: int | None = None, stdout: str = "") -> None:
        """Put a process above the last one; `reads` is what its file 7 is, `stdout` its file 1."""
        child, self.last = self.last, 100 if self.last == os.getpid() else self.last + 1
        (self.path / str(child) / "stat").write_text(f"{child} (a (b) c) S {self.last} 0 0")
        folder = self._process(self.last, command)
        (folder / "fd" / "1").symlink_to(stdout or "/dev/null")
        (folder / "fd" / "7").symlink_to(reads or "socket:[1]")
        mark = "" if tty_index is None else f"tty-index:\t{tty_index}\n"
        (folder / "fdinfo" / "7").write_text(f"pos:\t0\nflags:\t02\n{mark}")

    def _process(self, pid: int, command: str) -> Path:
        folder = self.path / str(pid)
        for name in ("fd", "fdinfo"):
            (folder / name).mkdir(parents=True)
        (folder / "stat").write_text(f"{pid} (x) S 1 0 0")
        (folder / "cmdline").write_bytes(command.replace(" ", "\0").encode() + b"\0")
        return folder


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path / "proc")


@pytest.fixture
def pipe() -> Iterator[tuple[io.TextIOWrapper, str]]:
    """A standard output that is a pipe, and its name in /proc."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        yield stream, os.readlink(f"/proc/self/fd/{write}")
    os.close(read)


@pytest.fixture
def pseudo() -> Iterator[tuple[io.TextIOWrapper, str, int]]:
    """A standard output that is a pseudo-terminal, its device and its number."""
    ours, theirs = os.openpty()
    device = os.ttyname(theirs)
    with os.fdopen(theirs, "w") as stream:
        yield stream, device, int(device.rpartition("/")[2])
    os.close(ours)


Pipe = tuple[io.TextIOWrapper, str]
Pseudo = tuple[io.TextIOWrapper, str, int]


def device(stdout: io.TextIOWrapper, proc: Proc) -> str | None:
    """The device of the terminal that is found."""
    terminal = find_terminal(stdout, TERM, proc.path)
    if terminal is None:
        return None
    name = os.ttyname(terminal.stream.fileno())
    if terminal.stream is not stdout:
        terminal.stream.close()
    return name


def test_without_a_launcher_isatty_decides(proc: Proc, pipe: Pipe, pseudo: Pseudo) -> None:
    proc.above("bash")
    assert device(pseudo[0], proc) == pseudo[1]
    assert device(pipe[0], proc) is None


def test_mpich_passes_a_pipe_on_to_its_terminal(proc: Proc, pipe: Pipe, pseudo: Pseudo) -> None:
    proc.above("/opt/bin/hydra_pmi_proxy --control-port h:1", reads=pipe[1])
    proc.above("/opt/bin/mpiexec.hydra -n 2 weft train digits", stdout=pseudo[1])
    proc.above("bash", stdout=pseudo[1])
    assert device(pipe[0], proc) == pseudo[1]


def test_mpich_passes_a_pipe_on_to_a_file(proc: Proc, pipe: Pipe, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    proc.above("hydra_pmi_proxy", reads=pipe[1])
    proc.above("mpiexec -n 2 weft train digits", stdout=str(tmp_path / "log"))
    assert device(pipe[0], proc) is None


def test_output_that_goes_nowhere_is_no_terminal(proc: Proc, pipe: Pipe) -> None:
    proc.above("hydra_pmi_proxy", reads=pipe[1])
    proc.above("mpiexec -n 2 weft train digits", stdout="/dev/null")
    assert device(pipe[0], proc) is None


def test_open_mpi_hides_a_file_behind_a_pseudo_terminal(proc: Proc, pseudo: Pseudo, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    proc.above("prterun -n 2 weft train digits", tty_index=pseudo[2], stdout=str(tmp_path / "log"))
    assert device(pseudo[0], proc) is None


def test_a_terminal_of_its_own_under_a_launcher_is_used(proc: Proc, pseudo: Pseudo, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    proc.above("xterm -e weft train digits", tty_index=pseudo[2])
    proc.above("prterun -n 4 xterm", tty_index=pseudo[2] + 1, stdout=str(tmp_path / "log"))
    assert device(pseudo[0], proc) == pseudo[1]


def test_a_pipe_to_another_program_stays_a_pipe(proc: Proc, pipe: Pipe, pseudo: Pseudo) -> None:
    proc.above("sh -c weft|tee")
    proc.above("hydra_pmi_proxy", reads="pipe:[1]")
    proc.above("mpiexec", stdout=pseudo[1])
    assert device(pipe[0], proc) is None


def test_a_launcher_of_another_user_means_plain_lines(proc: Proc, pipe: Pipe) -> None:
    proc.above("hydra_pmi_proxy", reads=pipe[1])
    proc.above("mpiexec", stdout="/nowhere")
    assert device(pipe[0], proc) is None


def test_without_proc_plain_lines_are_printed(pipe: Pipe, tmp_path: Path) -> None:
    assert find_terminal(pipe[0], TERM, tmp_path) is None


def test_a_stream_without_a_file_is_no_terminal() -> None:
    assert find_terminal(io.StringIO(), TERM) is None


@pytest.mark.parametrize("environment", [{}, {"TERM": "dumb"}, {"TERM": ""}])
def test_a_dumb_terminal_gets_plain_lines(proc: Proc, pseudo: Pseudo, environment: dict[str, str]) -> None:
    assert find_terminal(pseudo[0], environment, proc.path) is None
