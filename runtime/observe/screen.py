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
from typing import TYPE_CHECKING, TextIO

from .terminal import Terminal, find_terminal

if TYPE_CHECKING:
    from .bars import Bars


class Screen:
    """One for all models of a run. Only rank 0 has one."""

    def __init__(
        self, stream: TextIO | None = None, find: Callable[[], Terminal | None] = find_terminal
    ) -> None:
        self._stream: TextIO | None = sys.stdout if stream is None else stream
        self._stream.flush()  # what was printed before stays above
        self._bars: Bars | None = None
        if terminal := find():
            # Not above: rich takes a rank 0.08 s of its start, and one of them has a terminal, if any.
            from .bars import Bars

            self._bars = Bars(terminal)

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
