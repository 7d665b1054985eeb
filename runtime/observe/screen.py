"""Where progress is shown: bars on a terminal, one a model, and plain lines everywhere else.

    digits ━━━━━━━━━━━━╸━━━━━━━━━ 310/960  epoch 4  loss 0.0421  5,120 samples/s  validation 0.982  12 s left
    mlp    ━━━╸━━━━━━━━━━━━━━━━━━ 40/400   epoch 2  loss 0.9120  3,480 samples/s
    2 models train, 1 failed  1 min 12 s

A model that trains alone has a single line, without the last: other ranks and other libraries print when they
like, and bars of several lines wipe the last lines of what they print at their next refresh. So what Weft
itself has to say meanwhile goes through `note` and `error`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Final, TextIO

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .terminal import Terminal, find_terminal


class Screen:
    """One for all models of a run. Only rank 0 has one."""

    def __init__(
        self, stream: TextIO | None = None, find: Callable[[], Terminal | None] = find_terminal
    ) -> None:
        self._stream: TextIO | None = sys.stdout if stream is None else stream
        self._stream.flush()  # what was printed before stays above
        terminal = find()
        self._bars = _Bars(terminal) if terminal else None

    @property
    def bars(self) -> int:
        """How many bars there are; 0 where only lines can be printed."""
        return len(self._bars.rows) if self._bars else 0

    def add(self, name: str, step: int, total: int) -> None:
        """Make room for the bar of a model, below those that were added before."""
        if self._bars:
            self._bars.rows[name] = step, total, {}

    def draw(self, name: str, step: int, total: int, fields: dict[str, str]) -> None:
        """Draw the bar of a model anew, if there are bars."""
        if self._bars:
            self._bars.draw(name, step, total, fields)

    def status(self, text: str) -> None:
        """Replace what stands below the bars, if there are bars."""
        if self._bars:
            self._bars.status = text

    def note(self, text: str) -> None:
        """Print a line that stays: above the bars, or below what was printed before."""
        if self._bars:
            self._bars.note(text)
        elif self._stream is not None:
            try:
                print(text, file=self._stream, flush=True)
            except OSError as error:  # `| head` has read enough, or the disk of a log is full
                self._give_up(error)

    def _give_up(self, reason: OSError) -> None:
        """Print nothing more: a run does not end because nobody reads how it goes."""
        self.error(f"weft: what the run says cannot be printed: {reason.strerror}; it goes on without")
        if self._stream is sys.stdout:
            silence()
        self._stream = None

    def error(self, text: str) -> None:
        """Print a line that stays on stderr."""
        if self._bars:
            self._bars.clear()
        with contextlib.suppress(OSError):  # the disk of a log that takes both may be full
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the cursor below the bars; a second time does nothing."""
        if self._bars:
            self._bars.close()
            self._bars = None


def silence() -> None:
    """Lead stdout, which failed, nowhere: what it still holds would fail again at the process's end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class _Bars:
    """Lines of a terminal that are drawn again and again."""

    NARROWEST: Final = 10

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._console = _SteadyConsole(file=terminal.stream, width=terminal.columns())
        self.rows: dict[str, tuple[int, int, dict[str, str]]] = {}
        self.status = ""
        self._drawn = False
        self._start()

    def draw(self, name: str, step: int, total: int, fields: dict[str, str]) -> None:
        self.rows[name] = step, total, dict(fields)
        self._drawn = True
        self._console.width = self._terminal.columns()
        self._live.update(self._picture(), refresh=True)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def clear(self) -> None:
        """Take the bars away until they are drawn again: somebody else prints."""
        self._live.transient = True
        self._live.stop()
        self._start()

    def close(self) -> None:
        if self._drawn:
            self._live.update(self._picture())
        self._live.stop()
        if self._terminal.stream is not sys.stdout:
            self._terminal.stream.close()

    def _start(self) -> None:
        # Rich's own refresh would be a thread more on cores that compute. Errors go to stderr, untouched;
        # what this process prints to stdout, Rich puts above the bars.
        self._live = Live(console=self._console, auto_refresh=False, redirect_stderr=False)
        self._live.start()

    def _picture(self) -> Table | Group:
        longest = max(map(cell_len, self.rows))
        counts = {name: f"{step:,}/{total:,}" for name, (step, total, _) in self.rows.items()}
        room = self._console.width - longest - 1 - self.NARROWEST - 1 - max(map(cell_len, counts.values()))
        grid = Table.grid(expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True)
        for name, (step, total, fields) in self.rows.items():
            bar = ProgressBar(
                total=max(total, 1),
                completed=step,
                style="bright_black",
                complete_style="cyan",
                finished_style="green",
            )
            tail = Text(f" {counts[name]}")
            for text in fitting(fields, room):
                tail.append("  ").append_text(_dimmed(text))
            grid.add_row(Text(f"{name} ", style="bold"), bar, tail)
        return Group(grid, Text(self.status, style="dim", no_wrap=True)) if self.status else grid


class _SteadyConsole(Console):
    """A console that leaves the cursor visible: a job that MPI aborts could not bring it back."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


def fitting(fields: dict[str, str], room: int) -> list[str]:
    """As many of the fields as `room` columns hold, two columns before each, in their order."""
    shown = {key: text for key, text in fields.items() if text}
    for key in ("epoch", "rate", "evaluation", "rate", "left", "loss"):  # the least missed goes first
        if sum(2 + cell_len(text) for text in shown.values()) <= room:
            break
        text = shown.pop(key, "")
        if text.endswith(" samples/s"):
            shown[key] = text.replace(" samples/s", "/s")
    return [shown[key] for key in fields if key in shown]


def _dimmed(text: str) -> Text:
    """The words dim, the figures as they are."""
    parts = Text()
    for word in text.split(" "):
        parts.append(f"{' ' if parts else ''}{word}", style="" if word[:1].isdigit() else "dim")
    return parts
