"""Successive halving: of models that train together, the better half goes on from each rung.

    8 models ──┬── 4 ──┬───── 2 ──────┬───────────── 1 ────────────
              1/8     1/4            1/2 of each one's steps       end

Whoever comes to a rung waits for the others, which have the lane meanwhile: nobody computes less for it, and
all are judged by what they reach with an equal part of their steps (Jamieson and Talwalkar 2016; where each
model has a machine of its own, waiting costs that machine, and they are judged as they come). Between two
rungs steps are taken in an order of those alone that are left.

Every rank judges for itself, and all alike: of the same scores, when the same models have come or have ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

from ..errors import JobError
from ..observe.words import figure
from .evaluate import Score
from .schema import Job
from .toml import to_toml_value
from .turns import Turns

NAMED = 8  # models that a line tells of


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rung has brought a model: its place there, from 1, among so many, and whether it goes on."""

    rung: int
    place: int
    among: int

    @property
    def outdone(self) -> bool:
        """Whether it is of the worse half, and ends."""
        return self.place > max(1, self.among // 2)

    @classmethod
    def of(cls, job: Job, progress: Mapping[str, Any]) -> Verdict | None:
        """The last one, as a checkpoint's `progress` has it, while the job asks for halving."""
        return cls(**progress["halving"]) if job.run.halve and "halving" in progress else None

    @property
    def progress(self) -> Mapping[str, Any]:
        """For a checkpoint."""
        return {"halving": asdict(self)}


def metric(job: Job) -> str:
    """By what a model is judged: that of [train] best, or else the loss, of the validation set."""
    return "loss" if job.train.best is None else job.train.best.metric


def require_comparable(jobs: Sequence[Job]) -> None:
    """JobError where only some of the jobs ask for halving, or they are not measured by one thing."""
    for what, values in (
        ("halve", [str(job.run.halve).lower() for job in jobs]),
        ("loss", [to_toml_value(job.model.model_dump()["loss"]) for job in jobs]),
        ("best.metric", [metric(job) for job in jobs]),
    ):
        odd = next((number for number, value in enumerate(values) if value != values[0]), None)
        if odd is not None and any(job.run.halve for job in jobs):
            raise JobError(
                f"[run] halve compares models that train together: {what} is {values[0]} of {jobs[0].name} "
                f"and {values[odd]} of {jobs[odd].name}; give all the same, or train them apart"
            )


def rung_step(steps: int, rung: int) -> int:
    """Behind how many of its steps a model is judged at rung r, which is at 1/2**r of them."""
    return -(-steps // (1 << rung))


@dataclass(frozen=True, slots=True)
class Contender:
    """A model at the start: its name, all its steps and those that are done, and its last verdict."""

    name: str
    steps: int
    done: int = 0
    verdict: Verdict | None = None

    def expects(self, rung: int) -> bool:
        """Whether it has that rung before it."""
        passed = self.verdict is not None and self.verdict.rung <= rung
        return not passed and self.done <= rung_step(self.steps, rung)


class Halving:
    """The rungs of models that train together, on one rank.

    `contenders` are those that have steps to take, by their numbers; `tell` is given a line for each rung.
    Rungs that one of them has behind it, as it has gone on from a checkpoint, are left out for all.
    """

    def __init__(
        self, contenders: Mapping[int, Contender], turns: Turns, by: str, tell: Callable[[str], None]
    ) -> None:
        self._contenders = contenders
        self._turns = turns
        self._by = by
        self._tell = tell
        halvings = len(contenders).bit_length() - 1  # until one is left
        rungs = range(halvings, 0, -1)
        self._rungs = [rung for rung in rungs if all(one.expects(rung) for one in contenders.values())]
        self._left = set(contenders)
        self._values: dict[int, float] = {}  # of those that wait at the rung
        self._verdicts: dict[int, asyncio.Future[Verdict | None]] = {}
        self._stopped = False

    def pauses(self, model: int) -> frozenset[int]:
        """Behind which steps the model is judged."""
        if model not in self._contenders:
            return frozenset()
        return frozenset(rung_step(self._contenders[model].steps, rung) for rung in self._rungs)

    def due(self, model: int, done: int) -> bool:
        """Whether the model is to be judged behind so many steps."""
        if not self._rungs or model not in self._left:
            return False
        return done == rung_step(self._contenders[model].steps, self._rungs[0])

    async def judge(self, model: int, score: Score) -> Verdict | None:
        """Wait for the others at the rung; None where they were stopped, and so this one is."""
        value = score.loss if self._by == "loss" else score.accuracy
        assert value is not None  # the job file asks for no accuracy where there is none
        self._turns.leave(model)
        self._values[model] = value
        verdict: asyncio.Future[Verdict | None] = asyncio.get_running_loop().create_future()
        self._verdicts[model] = verdict
        self._look()
        return await verdict

    def leave(self, model: int, *, stopped: bool) -> None:
        """The model trains no more: its last step is done, or it failed, or a signal has `stopped` it."""
        self._left.discard(model)
        self._stopped = self._stopped or stopped
        self._look()

    def _look(self) -> None:
        """Judge, when all that are left have come."""
        if self._stopped:
            self._answer(dict.fromkeys(self._verdicts))
        elif self._values and self._values.keys() == self._left:
            self._judge(self._rungs.pop(0))

    def _judge(self, rung: int) -> None:
        best = sorted(self._values, key=self._rank)
        verdicts = {model: Verdict(rung, place, len(best)) for place, model in enumerate(best, 1)}
        on = [model for model in best if not verdicts[model].outdone]
        value = self._values[best[0]]
        self._left = set(on)
        self._values.clear()
        self._turns.start(sorted(on))
        names = [self._contenders[model].name for model in on]
        if len(names) > NAMED:
            names[NAMED - 1 :] = [f"{len(names) - NAMED + 1} more"]
        self._tell(
            f"behind 1/{2**rung} of their steps {len(on)} of {len(best)} models go on: {', '.join(names)} "
            f"(best validation {self._by} {figure(value)})"
        )
        self._answer(verdicts)

    def _rank(self, model: int) -> tuple[bool, float, int]:
        value = self._values[model]
        return isnan(value), value if self._by == "loss" else -value, model

    def _answer(self, verdicts: Mapping[int, Verdict | None]) -> None:
        for model, verdict in verdicts.items():
            waiting = self._verdicts.pop(model)
            if not waiting.done():  # (cancelled with who waited)
                waiting.set_result(verdict)
