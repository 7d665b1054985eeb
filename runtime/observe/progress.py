"""How a run is going, for the person who waits: a bar on a terminal, plain lines everywhere else.

    digits ━━━━━━━━━━━━╸━━━━━━━━━ 310/960  epoch 4  loss 0.0421  5,120 samples/s  validation 0.982  12 s left

The bar is a single line: other ranks and other libraries print when they like, and a bar of two lines would
wipe the last line of what they print at its next refresh. Only rank 0 has a Progress, and only the thread of
its loop calls it.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .terminal import Terminal, find_terminal
from .words import duration, figure, speed

# Drawing the bar takes 0.3 ms of the loop's thread.
REFRESH_S: Final = 0.2

# A log gets a line a second at first, and one each sixtieth of the time run after the first minute: a job of
# eight hours then leaves about 400 lines instead of 28,800.
LINE_S: Final = 1.0
LINES_PER_RUN: Final = 60

# The time left follows the pace of the last half minute.
PACE_S: Final = 30.0


class Progress:
    """Shows the steps, evaluations and notes of one job; `first_step` of its steps are done already."""

    def __init__(
        self,
        total_steps: int,
        name: str,
        *,
        first_step: int = 0,
        stream: TextIO | None = None,
        find: Callable[[], Terminal | None] = find_terminal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps = total_steps
        self.name = name
        self._clock = clock
        self._stream = sys.stdout if stream is None else stream
        self._began_s = clock()
        self._shown_s = -math.inf
        self._pace: deque[tuple[float, int]] = deque()
        self._samples_per_s = math.nan
        self._step = first_step
        self._fields = dict.fromkeys(("epoch", "loss", "rate", "evaluation", "left"), "")  # as they are shown
        self._unshown = False
        self._stream.flush()  # what was printed before stays above
        terminal = find()
        self._bar = _Bar(terminal) if terminal else None

    def step(self, step: int, loss: float, samples_per_s: float, epoch: int | None = None) -> None:
        """Step `step` (counted from 1) is done; shown a few times a second at most."""
        self._step = step
        # One step's figure jumps about; what is shown follows the last ten or so.
        if math.isnan(self._samples_per_s):
            self._samples_per_s = samples_per_s
        self._samples_per_s += 0.1 * (samples_per_s - self._samples_per_s)
        self._fields["epoch"] = "" if epoch is None else f"epoch {epoch}"
        self._fields["loss"] = f"loss {figure(loss)}"
        self._unshown = True
        now_s = self._clock()
        pause_s = REFRESH_S if self._bar else max(LINE_S, (now_s - self._began_s) / LINES_PER_RUN)
        if now_s - self._shown_s >= pause_s or step == self.total_steps:
            self._shown_s = now_s
            self._show(now_s)

    def evaluation(self, split: str, loss: float, accuracy: float | None = None) -> None:
        """The model was evaluated after the last step on a split ("validation", "test"); always shown."""
        score = f"loss {figure(loss)}" if accuracy is None else f"{accuracy:.3f}"
        self._fields["evaluation"] = f"{split} {score}"
        if self._bar:
            self._draw()
        else:
            accurate = "" if accuracy is None else f"  accuracy {accuracy:.4f}"
            self._print(f"step {self._step:,}/{self.total_steps:,}  {split}  loss {figure(loss)}{accurate}")

    def note(self, text: str) -> None:
        """Print a line that stays: above the bar, or below what was done before it."""
        if self._bar:
            self._bar.note(text)
        else:
            self._catch_up()
            self._print(text)

    def close(self) -> None:
        """Show the last step and leave the cursor on a line of its own; a second time does nothing."""
        if self._bar:
            self._fields["left"] = f"in {duration(self._clock() - self._began_s)}"
            self._draw()
            self._bar.close()
            self._bar = None
        else:
            self._catch_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _catch_up(self) -> None:
        """Show the last step if it has not been shown."""
        if self._unshown:
            self._show(self._clock())

    def _show(self, now_s: float) -> None:
        """Show the step, as a bar or as a line."""
        self._unshown = False
        self._fields["rate"] = speed(self._samples_per_s)
        self._fields["left"] = self._left(now_s)
        if self._bar:
            self._draw()
        else:
            shown = [self._fields[key] for key in ("epoch", "loss", "rate", "left") if self._fields[key]]
            self._print("  ".join([f"step {self._step:,}/{self.total_steps:,}", *shown]))

    def _left(self, now_s: float) -> str:
        """Time left at the pace of late."""
        self._pace.append((now_s, self._step))
        while len(self._pace) > 2 and now_s - self._pace[1][0] >= PACE_S:
            self._pace.popleft()
        then_s, then_step = self._pace[0]
        if self._step >= self.total_steps or self._step <= then_step:
            return ""
        return (
            duration((now_s - then_s) / (self._step - then_step) * (self.total_steps - self._step)) + " left"
        )

    def _draw(self) -> None:
        if self._bar:
            self._bar.draw(self.name, self._step, self.total_steps, self._fields)

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class _Bar:
    """One line of a terminal that is drawn again and again."""

    NARROWEST: Final = 10

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._console = _SteadyConsole(file=terminal.stream, width=terminal.columns())
        # Rich's own refresh would be a thread more on cores that compute. Errors go to stderr, untouched;
        # what this process prints to stdout, Rich puts above the bar.
        self._live = Live(console=self._console, auto_refresh=False, redirect_stderr=False)
        self._live.start()

    def draw(self, name: str, step: int, total: int, fields: dict[str, str]) -> None:
        self._console.width = width = self._terminal.columns()
        count = f"{step:,}/{total:,}"
        room = width - cell_len(name) - 1 - self.NARROWEST - 1 - cell_len(count)
        bar = ProgressBar(
            total=max(total, 1),
            completed=step,
            style="bright_black",
            complete_style="cyan",
            finished_style="green",
        )
        tail = Text(f" {count}")
        for text in fitting(fields, room):
            tail.append("  ").append_text(_dimmed(text))
        line = Table.grid(expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        line.add_row(Text(f"{name} ", style="bold"), bar, tail)
        self._live.update(line, refresh=True)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._live.stop()
        if self._terminal.stream is not sys.stdout:
            self._terminal.stream.close()


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
