"""Learning-rate schedules: pure functions of the step, so that resuming needs no state.

Steps count from 1. A warm-up of w steps climbs a line from 0 that reaches the peak at step w + 1, where the
schedule proper starts; so no step runs at rate 0, and none at the peak only because the warm-up ended there:

    rate   peak ·      ╭──╮
                 ·   ╱     ╲                  Cosine(peak, steps, warmup, floor)
                 · ╱         ╲__ floor
                 ╵ 1 … w  w+1   steps
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import cos, pi


@dataclass(frozen=True, slots=True)
class Schedule(ABC):
    """A learning rate for every step: up to `peak` in `warmup` steps, then as the subclass decides."""

    peak: float
    warmup: int = 0

    def __post_init__(self) -> None:
        if not self.peak >= 0.0:
            raise ValueError(f"{type(self).__name__}: peak is {self.peak}; a learning rate is 0 or more")
        if self.warmup < 0:
            raise ValueError(f"{type(self).__name__}: warmup is {self.warmup}; it counts steps: 0 or more")

    def rate(self, step: int) -> float:
        """The learning rate of step `step`, the first of which is 1."""
        if step < 1:
            raise ValueError(f"{type(self).__name__}: step {step} has no rate; steps count from 1")
        if step <= self.warmup:
            return self.peak * step / (self.warmup + 1)
        return self.after_warmup(step - self.warmup - 1)

    @abstractmethod
    def after_warmup(self, elapsed: int) -> float:
        """The rate `elapsed` steps (0, 1, …) after the warm-up."""


@dataclass(frozen=True, slots=True)
class Constant(Schedule):
    """The peak, always."""

    def after_warmup(self, elapsed: int) -> float:
        """The peak."""
        return self.peak


@dataclass(frozen=True, slots=True)
class Cosine(Schedule):
    """Half a cosine from `peak` towards `floor`, reached at step `steps` + 1; `floor` from there on.

    SGDR without restarts (Loshchilov and Hutter, arXiv 1608.03983).
    """

    steps: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        # super() does not work in a slotted dataclass on Python 3.11: the decorator makes a new class.
        Schedule.__post_init__(self)
        if self.steps <= self.warmup:
            raise ValueError(
                f"Cosine: steps is {self.steps}; it is the whole run's, more than warmup ({self.warmup})"
            )
        if not 0.0 <= self.floor <= self.peak:
            raise ValueError(f"Cosine: floor is {self.floor}; it lies between 0 and peak ({self.peak})")

    def after_warmup(self, elapsed: int) -> float:
        """The cosine, then the floor."""
        done = min(1.0, elapsed / (self.steps - self.warmup))
        return self.floor + (self.peak - self.floor) * 0.5 * (1.0 + cos(pi * done))


@dataclass(frozen=True, slots=True)
class Step(Schedule):
    """The peak, multiplied by `factor` after every `every` steps."""

    every: int = 0
    factor: float = 0.1

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        if self.every < 1:
            raise ValueError(f"Step: every is {self.every}; it counts steps between drops: 1 or more")
        if not 0.0 < self.factor <= 1.0:
            raise ValueError(f"Step: factor is {self.factor}; it lies above 0 and is at most 1")

    def after_warmup(self, elapsed: int) -> float:
        """The peak after elapsed // every drops."""
        return self.peak * self.factor ** (elapsed // self.every)
