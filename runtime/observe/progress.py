"""How a run is going, for the person who waits: a bar on a terminal, plain lines everywhere else.

Only rank 0 has a Progress, one a model, and only the thread of its loop calls it. Where the lines of several
models mix, each begins with its model's name.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, TextIO

from .screen import Screen
from .terminal import Terminal, find_terminal
from .words import duration, figure, speed

# Drawing a bar takes 0.3 ms of the loop's thread; several are drawn together, as often in all as one.
REFRESH_S: Final = 0.2

# A log gets a line a second at first, and one each sixtieth of the time run after the first minute: a job of
# eight hours then leaves about 400 lines instead of 28,800.
LINE_S: Final = 1.0
LINES_PER_RUN: Final = 60

# The time left follows the pace of the last half minute.
PACE_S: Final = 30.0


class Progress:
    """Shows the steps, evaluations and notes of one job; `first_step` of its steps are done already.

    A `screen` that is given is closed by whoever made it; with several models on it, their lines are `named`.
    """

    def __init__(
        self,
        total_steps: int,
        name: str,
        *,
        first_step: int = 0,
        screen: Screen | None = None,
        named: bool = False,
        stream: TextIO | None = None,
        find: Callable[[], Terminal | None] = find_terminal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps = total_steps
        self.name = name
        self._clock = clock
        self._began_s = clock()
        self._shown_s = -math.inf
        self._pace: deque[tuple[float, int]] = deque()
        self._samples_per_s = math.nan
        self._step = first_step
        self._fields = dict.fromkeys(("epoch", "loss", "rate", "evaluation", "left"), "")  # as they are shown
        self._unshown = self._closed = self._ending = False
        self._named = named
        self._own = screen is None
        self._screen = Screen(stream, find) if screen is None else screen
        self._screen.add(name, first_step, total_steps)

    def step(
        self, step: int, loss: float, samples_per_s: float, epoch: int | None = None, *, ending: bool = False
    ) -> None:
        """Step `step` (counted from 1) is done; shown a few times a second at most.

        `ending`: the run ends here or behind the next step, however many it was to take.
        """
        self._step, self._ending = step, ending
        # One step's figure jumps about; what is shown follows the last ten or so.
        if math.isnan(self._samples_per_s):
            self._samples_per_s = samples_per_s
        self._samples_per_s += 0.1 * (samples_per_s - self._samples_per_s)
        self._fields["epoch"] = "" if epoch is None else f"epoch {epoch}"
        self._fields["loss"] = f"loss {figure(loss)}"
        self._unshown = True
        now_s = self._clock()
        pause_s = max(LINE_S, (now_s - self._began_s) / LINES_PER_RUN)
        if self._screen.bars:
            pause_s = REFRESH_S * self._screen.bars
        if now_s - self._shown_s >= pause_s or step == self.total_steps:
            self._shown_s = now_s
            self._show(now_s)

    def evaluation(self, split: str, loss: float, accuracy: float | None = None) -> None:
        """The model was evaluated after the last step on a split ("validation", "test"); always shown."""
        score = f"loss {figure(loss)}" if accuracy is None else f"{accuracy:.3f}"
        self._fields["evaluation"] = f"{split} {score}"
        if self._screen.bars:
            self._draw()
        else:
            accurate = "" if accuracy is None else f"  accuracy {accuracy:.4f}"
            self._print(f"step {self._step:,}/{self.total_steps:,}  {split}  loss {figure(loss)}{accurate}")

    def note(self, text: str) -> None:
        """Print a line that stays: above the bar, or below what was done before it."""
        if not self._screen.bars:
            self._catch_up()
        self._screen.note(text)

    def close(self, how: str = "in") -> None:
        """Show the last step, and the time until then; a second time does nothing.

        Leaves the cursor on a line of its own, if the screen is this model's alone.
        """
        self._ending = True
        if self._screen.bars and not self._closed:
            self._fields["left"] = f"{how} {duration(self._clock() - self._began_s)}"
            self._draw()
        if not self._screen.bars:
            self._catch_up()
        self._closed = True
        if self._own:
            self._screen.close()

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
        if self._screen.bars:
            self._draw()
        else:
            shown = [self._fields[key] for key in ("epoch", "loss", "rate", "left") if self._fields[key]]
            self._print("  ".join([f"step {self._step:,}/{self.total_steps:,}", *shown]))

    def _left(self, now_s: float) -> str:
        """Time left at the pace of late; none of a run that ends early."""
        self._pace.append((now_s, self._step))
        while len(self._pace) > 2 and now_s - self._pace[1][0] >= PACE_S:
            self._pace.popleft()
        then_s, then_step = self._pace[0]
        if self._ending or self._step >= self.total_steps or self._step <= then_step:
            return ""
        return (
            duration((now_s - then_s) / (self._step - then_step) * (self.total_steps - self._step)) + " left"
        )

    def _draw(self) -> None:
        self._screen.draw(self.name, self._step, self.total_steps, self._fields)

    def _print(self, line: str) -> None:
        self._screen.note(f"{self.name}: {line}" if self._named else line)
