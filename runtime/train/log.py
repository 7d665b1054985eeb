"""What rank 0 says and writes of a model's run; on every other rank the same calls do nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any, Self

from ..errors import MachineError
from ..observe import Metrics, Progress, RunFolder, Screen
from .evaluate import Score
from .loop import Planned


class Log:
    """Progress on the screen and metrics in the run's folder.

    `screen` is None on ranks that are silent. With `several` models on it, lines begin with the model's name.
    Raises what Metrics raises where the folder is not to be written to; what cannot be written later is told
    of, and the run goes on.
    """

    def __init__(
        self,
        folder: RunFolder,
        name: str,
        first_step: int,
        total_steps: int,
        screen: Screen | None,
        *,
        ranks: int,
        several: bool = False,
    ) -> None:
        self._stack = ExitStack()
        self._job = name
        self._name = name if several else ""
        self._tuned = False  # and said so
        self._screen = screen
        self._metrics: Metrics | None = None
        self._progress: Progress | None = None
        if screen is not None:
            self._metrics = self._stack.enter_context(Metrics(folder.metrics))
            self._metrics.write(kind="start", step=first_step, ranks=ranks)
            self._progress = Progress(total_steps, name, first_step=first_step, screen=screen, named=several)
            self._stack.enter_context(self._progress)
        self._last = self._start = time.monotonic()

    def note(self, text: str) -> None:
        """A line for the reader."""
        if self._progress is not None:
            self._progress.note(text)

    def error(self, text: str) -> None:
        """A line for the reader, on stderr."""
        if self._screen is not None:
            self._screen.error(text)

    @contextmanager
    def dispensable(self) -> Iterator[None]:
        """Around the writing of what a run can do without: a full disk is a line on stderr."""
        try:
            yield
        except MachineError as error:
            self.error(f"weft: {error}; the run goes on without")

    def conclude(self, text: str) -> None:
        """How the model's run ended."""
        name = f"{self._name}: " if self._name else ""
        self.note("\n".join(name + line for line in text.split("\n")))

    def step(
        self, step: int, epoch: int, loss: float, rate: float, samples: int, *, ending: bool = False
    ) -> None:
        """A step (counted from 1) is done; `ending`: of a run that ends before all are."""
        now = time.monotonic()
        per_s, self._last = samples / max(now - self._last, 1e-9), now
        self._write(
            kind="step", step=step, epoch=epoch, loss=loss, rate=rate,
            samples_per_s=per_s, time_s=now - self._start,
        )  # fmt: skip
        if self._progress is not None:
            self._progress.step(step, loss, per_s, epoch=epoch, ending=ending)

    def exchange(self, planned: Planned) -> None:
        """How gradients travel from here on; and once, what tuning has found."""
        settings = planned.settings
        self._write(kind="exchange", step=planned.step, **asdict(settings), plan=planned.words)
        if planned.on_trial and not self._tuned:
            self._tuned = True
            self.note(
                f"{self._job}: gradients travel in portions of {settings.portion_bytes:,} bytes, "
                f"{settings.credit} at once, {settings.rule}, as {planned.on_trial} steps on trial have shown"
            )

    def evaluation(self, step: int, split: str, score: Score) -> None:
        """A split has been scored after `step` steps."""
        self._write(kind="evaluation", step=step, split=split, loss=score.loss, accuracy=score.accuracy)
        if self._progress is not None:
            self._progress.evaluation(split, score.loss, score.accuracy)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Around what is no training: its time is nobody's samples per second.

        A step is told of when its loss is known, with backward still to come: where counting began anew
        behind an evaluation, that was nobody's either, and a run that evaluated after every step seemed
        three times as fast.
        """
        began = time.monotonic()
        yield
        self._last += time.monotonic() - began

    def work(
        self, rank: int, micro_batches: dict[str, int], kernels: dict[str, int], attempts: int, misses: int,
        left: int,
    ) -> None:  # fmt: skip
        """What a rank computed, by whose it was, and its claims of others' micro-batches."""
        self._write(
            kind="work", rank=rank, micro_batches=micro_batches, kernels=kernels,
            attempts=attempts, misses=misses, left=left,
        )  # fmt: skip

    def end(self, step: int, reason: str, *, failed: bool = False) -> None:
        """The run ends after `step` steps."""
        self._write(kind="end", step=step, reason=reason)
        if self._progress is not None:
            self._progress.close("failed after" if failed else "in")

    def _write(self, **row: Any) -> None:
        """Append to the metrics, until that fails once: what had holes would be read wrongly."""
        if (metrics := self._metrics) is not None:
            self._metrics = None
            with self.dispensable():
                metrics.write(**row)
                self._metrics = metrics

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
