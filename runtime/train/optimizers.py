"""[train] optimizer and schedule: the job file's side of kernels/optimizer.py and kernels/schedule.py.

A section has the attributes of its kernel, under the same names and with the same defaults (a test holds
this), and `rate`, the schedule's peak.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from ...kernels.optimizer import SGD, Adam, AdamW, Optimizer
from ...kernels.schedule import Constant, Cosine, Schedule, Step
from ..errors import JobError
from .section import Amount, Count, Fraction, Positive, Section, problem


class _Optimizer(Section):
    rate: Positive  # the schedule's peak


class SgdOptimizer(_Optimizer):
    """Stochastic gradient descent; see kernels/optimizer.py for the attributes of all three."""

    name: Literal["sgd"]
    momentum: Fraction = 0.0
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0

    @field_validator("nesterov")
    @classmethod
    def _needs_momentum(cls, nesterov: bool, info: ValidationInfo) -> bool:
        if nesterov and info.data.get("momentum") == 0.0:
            raise problem("needs a momentum above 0")
        return nesterov

    def build(self) -> Optimizer:
        """The kernel."""
        return SGD(momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay)


class _Adaptive(_Optimizer):
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0


class AdamOptimizer(_Adaptive):
    """Adam; its weight decay is added to the gradient."""

    name: Literal["adam"]

    def build(self) -> Optimizer:
        """The kernel."""
        return Adam(weight_decay=self.weight_decay, beta1=self.beta1, beta2=self.beta2, epsilon=self.epsilon)


class AdamWOptimizer(_Adaptive):
    """AdamW; its weight decay is apart from the gradient."""

    name: Literal["adamw"]
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01

    def build(self) -> Optimizer:
        """The kernel."""
        return AdamW(weight_decay=self.weight_decay, beta1=self.beta1, beta2=self.beta2, epsilon=self.epsilon)


class _Schedule(Section):
    warmup: Amount = 0  # steps


class ConstantSchedule(_Schedule):
    """The same rate in every step after the warm-up."""

    name: Literal["constant"] = "constant"

    def build(self, peak: float, steps: int) -> Schedule:
        """The schedule of a run of `steps`."""
        return Constant(peak, warmup=self.warmup)


class CosineSchedule(_Schedule):
    """Half a cosine from the rate down to `floor` at the end of the run."""

    name: Literal["cosine"]
    floor: Annotated[float, Field(ge=0.0)] = 0.0

    def build(self, peak: float, steps: int) -> Schedule:
        """The schedule of a run of `steps`."""
        if steps <= self.warmup:  # with epochs, known only now that the samples are counted
            warmup = f"[train] schedule.warmup = {self.warmup}"
            raise JobError(f"{warmup}: must be less than the {steps} steps of the whole run")
        return Cosine(peak, warmup=self.warmup, steps=steps, floor=self.floor)


class StepSchedule(_Schedule):
    """The rate times `factor` after every `every` steps."""

    name: Literal["step"]
    every: Count
    factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1

    def build(self, peak: float, steps: int) -> Schedule:
        """The schedule of a run of `steps`."""
        return Step(peak, warmup=self.warmup, every=self.every, factor=self.factor)


OptimizerSection = Annotated[SgdOptimizer | AdamOptimizer | AdamWOptimizer, Field(discriminator="name")]
ScheduleSection = Annotated[ConstantSchedule | CosineSchedule | StepSchedule, Field(discriminator="name")]
