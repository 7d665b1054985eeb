"""What all commands share: who speaks under mpirun, and how a command fails.

Every rank runs the program with the same arguments, and one should say what is wrong with them:

    wrong usage, help      here, by rank 0 of the launcher; the others are silent
    wrong job, data, …     raised in main on every rank; the message layer reports it once
"""

from __future__ import annotations

import atexit
import functools
import gc
import inspect
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec, TextIO

import typer

from ..errors import MachineError, WeftError
from ..launcher import HEAD_START_S, launcher_rank
from .usage import Command, Group

P = ParamSpec("P")

app = typer.Typer(
    name="weft",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="[bold]mpirun -n 4 weft train digits[/bold] trains on four ranks, and without mpirun on one. "
    "Begin with [bold]weft info[/bold].",
)


def main() -> None:
    """The program `weft`."""
    # Most objects are of modules and stay, and few of the others are in cycles. To look for garbage as often
    # as is usual, and twice in all that is left when the interpreter ends, took 0.3 s of each training rank.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    sys.stdout, sys.stderr = _open(sys.stdout), _open(sys.stderr)
    if not launcher_rank():
        with printing_usage():
            app()
        return
    # Another rank: its help, usage errors and completions are those of rank 0, which says them.
    sys.stdout, sys.stderr = (open(os.devnull, "w") for _ in range(2))  # noqa: SIM115  until the end
    try:
        app()
    except SystemExit as exit:
        if exit.code:
            time.sleep(HEAD_START_S)
        raise


begun = False
"""Whether a command has been entered: what fails from then on is its own."""


@contextmanager
def printing_usage() -> Iterator[None]:
    """Around the program: help that cannot be printed is told in a line, as a command's answer is."""
    try:
        yield
    except OSError as error:
        if begun:
            raise
        fail(_unprinted(error))


def _open(stream: TextIO | None) -> TextIO:
    """The stream, in which what its encoding lacks becomes a question mark; nowhere, if the shell closed it.

    In a locale without UTF-8 a report's dash ended `weft report`, and what a language model of bytes wrote at
    the end of its training ended the run, on all ranks, each with a traceback.
    """
    if stream is None:
        return open(os.devnull, "w")
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="replace")
    return stream


def command(name: str | None = None, *, epilog: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """A command: usage was right, so all ranks may speak again; a WeftError is a message, not a traceback."""

    def decorate(function: Callable[P, None]) -> Callable[P, None]:
        # Typer keeps a paragraph's line ends, which a terminal of another width breaks in mid-sentence.
        paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
        function.__doc__ = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)

        @functools.wraps(function)
        def wrapper(*args: P.args, **keys: P.kwargs) -> None:
            global begun
            begun = True
            silent = sys.stderr
            sys.stdout, sys.stderr = _open(sys.__stdout__), _open(sys.__stderr__)
            try:
                require_folder()
                function(*args, **keys)
            except WeftError as error:
                if launcher_rank():
                    sys.stderr = silent
                fail(error)

        return app.command(name, cls=Command, epilog=epilog)(wrapper)

    return decorate


def require_folder() -> None:
    """MachineError where somebody has removed the folder in which the command was called.

    Relative paths mean nothing then, and Python's own words for it, of whatever needed one, were a traceback.
    It may be so on one node alone: raised among ranks, it ends them all. One that left before MPI has started
    leaves the others to wait for it there.
    """
    try:
        os.getcwd()
    except OSError as error:
        reason = error.strerror or error
        lost = MachineError(f"the working folder cannot be found: {reason}; cd into another")
        if launcher_rank() is not None:
            from ..message import World, run

            async def main(_: World) -> None:
                raise lost

            run(main)
        raise lost from error


def show(text: str) -> None:
    """Print what the command was called for; MachineError where it cannot be, such as on a full disk.

    A reader who has had enough (`| head`) is left to typer, which ends without a word.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unprinted(error) from error


def _unprinted(error: OSError) -> MachineError:
    """What to say where stdout takes nothing; it is led nowhere."""
    from ..observe.screen import silence

    silence()
    return MachineError(f"the answer cannot be printed: {error.strerror or error}")


def fail(error: WeftError) -> NoReturn:
    """End with the error's message and exit status."""
    print(f"weft: {error}", file=sys.stderr)
    raise SystemExit(error.exit_status)


def complete_job(incomplete: str) -> list[str]:
    """Packaged jobs and job files for the shell, without importing what reads them."""
    packaged = [file.stem for file in (Path(__file__).parents[1] / "train" / "jobs").glob("*.toml")]
    files = [str(path) for path in Path(incomplete or ".").parent.glob("*.toml")]
    return [name for name in sorted(packaged) + sorted(files) if name.startswith(incomplete)]


def known_device(kind: str | None) -> str | None:
    """What --device takes."""
    if kind not in (None, "auto", "cpu", "cuda"):
        raise typer.BadParameter(f"{kind!r} must be one of auto, cpu, cuda")
    return kind


def show_version(wanted: bool) -> None:
    """--version"""
    if wanted:
        from importlib.metadata import version

        print(f"weft {version('weft')}", flush=True)
        raise typer.Exit


@app.callback()
def weft(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train neural networks on an MPI allocation, and ask them.

    Every core it has is used, and any number of ranks gives the same answer.
    """
