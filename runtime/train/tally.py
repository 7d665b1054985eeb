"""What is counted of a step or an evaluation, in one small array that is summed over the ranks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..graph import Program
from ..graph.builder import loss_of
from .data import Samples
from .order import Indices


@dataclass(frozen=True, slots=True)
class Tally:
    """Loss and correct answers of each micro-batch, and whether somebody failed or wants to stop.

        loss, correct   of micro-batch 0
        loss, correct   of micro-batch 1, ...
        pace            of each rank, where somebody wants to know it (dealer.py)
        entered         how many micro-batches were; infinite if a rank cannot go on
        stop

    Two slots a micro-batch: zero on every rank but the one that computed it, so the sum over the ranks is
    exact, and the sum over the slots is taken in the same order however many ranks there are.
    """

    array: NDArray[np.float64]
    micro_batches: int
    samples: int
    answers: int  # one a sample, or one for each of its labels, or bytes of text
    #: When this rank entered each of its own; not summed.
    ends_s: list[float] = field(default_factory=list)

    @staticmethod
    def of(micro_batches: int, samples: int, answers: int, *, ranks: int = 0) -> Tally:
        """For so many micro-batches, samples and answers in all, and the paces of so many ranks."""
        return Tally(np.zeros(2 * micro_batches + ranks + 2), micro_batches, samples, answers)

    def enter(self, micro_batch: int, loss: float, correct: int) -> None:
        """One micro-batch: the sum of its losses and the number of its correct answers."""
        self.array[2 * micro_batch] = loss
        self.array[2 * micro_batch + 1] = correct
        self.array[-2] += 1
        self.ends_s.append(time.monotonic())

    @property
    def paces_s(self) -> NDArray[np.float64]:
        """Of each rank, in seconds a micro-batch: a view, where a rank enters its own and reads the sums."""
        return self.array[2 * self.micro_batches : -2]

    def fail(self) -> None:
        """This rank cannot go on with the model; all learn of it with the sums."""
        self.array[-2] = np.inf

    def ask_to_stop(self) -> None:
        """This rank has been told to stop (by a signal); all learn of it with the sums."""
        self.array[-1] = 1

    @property
    def loss(self) -> float:
        """Mean over the samples."""
        return float(self.array[: 2 * self.micro_batches : 2].sum() / self.samples)

    def damage(self, samples: Samples, parts: Sequence[Indices]) -> str:
        """Which sample of the micro-batches `parts` made the loss no number, in words; empty if none did."""
        odd = np.flatnonzero(~np.isfinite(self.array[: 2 * self.micro_batches : 2]))
        return next(filter(None, (samples.damage(parts[index]) for index in odd.tolist())), "")

    @property
    def accuracy(self) -> float:
        """Share of correct answers."""
        return float(self.array[1 : 2 * self.micro_batches : 2].sum() / self.answers)

    @property
    def entered(self) -> float:
        """How many micro-batches were entered, on all ranks; infinite if a rank has failed."""
        return float(self.array[-2])

    @property
    def failed(self) -> bool:
        """Whether a rank failed, or a micro-batch was lost or came twice: all else then means nothing."""
        return self.entered != self.micro_batches

    @property
    def stop(self) -> bool:
        """Whether any rank has been told to stop."""
        return bool(self.array[-1])


def measure(program: Program) -> tuple[float, int]:
    """Sum of the losses of a program's samples, and how many answers were right (of values none)."""
    loss, prediction = program.outputs
    right = loss_of(program.graph).count_right(prediction, program.inputs["target"])
    return float(loss.astype(np.float64).sum()), right
