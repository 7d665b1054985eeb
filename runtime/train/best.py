"""The best evaluation of a run: its checkpoint is kept, and a run may stop that gets no better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

from .evaluate import Score
from .schema import KeepBest


@dataclass(slots=True)
class Best:
    """What `[train] best` asks for, and how it has gone so far: equal on all ranks, as their scores are."""

    asked: KeepBest
    step: int = 0  # of the best evaluation; 0: there was none yet
    value: float = nan
    behind: int = 0  # evaluations since then

    @classmethod
    def of(cls, asked: KeepBest | None, progress: Mapping[str, Any]) -> Best | None:
        """As a checkpoint's `progress` has left it; None where nobody asks. By another metric it is anew."""
        if asked is None:
            return None
        told = progress.get("best")
        if told is None or told["metric"] != asked.metric:
            return cls(asked)
        return cls(asked, told["step"], told["value"], told["behind"])

    def told(self, score: Score, step: int) -> bool:
        """Whether this evaluation, behind `step` steps, is the best so far. NaN never is."""
        value = score.loss if self.asked.metric == "loss" else score.accuracy
        assert value is not None  # the job file asks for no accuracy where there is none
        gain = self.value - value if self.asked.metric == "loss" else value - self.value
        if isfinite(value) and (not self.step or gain > 0):
            self.step, self.value, self.behind = step, value, 0
            return True
        self.behind += 1
        return False

    @property
    def over(self) -> bool:
        """Whether nothing better is waited for any more."""
        return self.asked.patience is not None and self.behind >= self.asked.patience

    @property
    def waited(self) -> str:
        """For how long it got no better, in words."""
        return f"{self.behind:,} evaluation{'s' if self.behind > 1 else ''}"

    @property
    def progress(self) -> Mapping[str, Any]:
        """For a checkpoint; empty before the first evaluation. Patience runs out where all were NaN, too."""
        if not (self.step or self.behind):
            return {}
        told = {"metric": self.asked.metric, "step": self.step, "value": self.value, "behind": self.behind}
        return {"best": told}
