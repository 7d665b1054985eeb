"""The bars of a terminal, which rich draws: only screen.py makes them, where there is a terminal.

    digits ━━━━━━━━━━━━╸━━━━━━━━━ 310/960  epoch 4  loss 0.0421  5,120 samples/s  validation 0.982  12 s left

Fields that the width does not hold are left out, the least missed first.
"""

from __future__ import annotations

import sys
from typing import Final

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .terminal import Terminal


class Bars:
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
        """Draw the bar of the model `name` anew, and all others with it."""
        self.rows[name] = step, total, dict(fields)
        self._drawn = True
        self._console.width = self._terminal.columns()
        self._live.update(self._picture(), refresh=True)

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def clear(self) -> None:
        """Take the bars away until they are drawn again: somebody else prints."""
        self._live.transient = True
        self._live.stop()
        self._start()

    def close(self) -> None:
        """Leave the cursor below the bars."""
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
