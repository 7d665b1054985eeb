"""Training loops of several models that share a lane, as `weft train a.toml b.toml` has them, in turns.

order    a, b, a, b, b          whose step it is, by what models claim; one that has made its steps leaves
lane     │a ──│b ──│a ──│b ──│b ──│ rest        between turns all rest, and all are in the order again
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import chain
from typing import Self

from bench._steps import CHECKED_STEPS
from bench._training import Clocks, Trained, Training, take
from bench._weft import Fixed, Model, digest
from weft.kernels.lane import Group, Task
from weft.runtime.observe.trace import COMPUTE, Span
from weft.runtime.train.interleave import Claim, ModelOrder
from weft.runtime.train.turns import Turns
from weft.runtime.work import Compute


class Rota:
    """An order that begins anew whenever all models rest."""

    def __init__(self, claims: Sequence[Claim]) -> None:
        self._claims = claims
        self._turns = Turns(ModelOrder(claims))

    def begin_anew(self) -> None:
        """All models are in the order again."""
        self._turns = Turns(ModelOrder(self._claims))

    async def take(self, model: int) -> int:
        """See `Turns`."""
        return await self._turns.take(model)

    def begin(self, first: Task) -> None:
        """See `Turns`."""
        self._turns.begin(first)

    def leave(self, model: int) -> None:
        """See `Turns`."""
        self._turns.leave(model)


class Together(AsyncExitStack):
    """The loops of `models` on one lane. Use as an async context manager."""

    def __init__(self, models: Sequence[Model], claims: Sequence[Claim], fixed: Fixed) -> None:
        super().__init__()
        self._models, self._fixed = models, fixed
        self._rota = Rota(claims)
        self._compute = Compute(models[0].replica.device, spans=self._on_span)
        self._trainings: list[Training] = []
        self._spans: list[Span] = []
        self._lane = 0

    async def __aenter__(self) -> Self:
        await self.enter_async_context(self._compute)
        for number, model in enumerate(self._models):
            training = Training(
                model,
                await model.world.duplicate(model.name),
                self._fixed,
                compute=self._compute.part(Group(model.name)),
                order=self._rota,
                number=number,
            )
            self._trainings.append(await self.enter_async_context(training))
        return self

    async def first_turn(self) -> Trained:
        """The steps behind which each loop replaces its first plan."""
        return await self._take([None] * len(self._models))

    async def turn(self, steps: Sequence[int]) -> Trained:
        """So many steps of each model from its first weights; `seconds` last until the last has ended."""
        return await self._take(steps)

    async def _take(self, steps: Sequence[int | None]) -> Trained:
        for model in self._models:
            await model.reset()
        self._rota.begin_anew()
        self._spans = []
        before = Clocks.now(self._lane)
        turns = await take(self._compute, self._trainings, steps)
        after = Clocks.now(self._lane)
        spans = [*self._spans, *chain.from_iterable(turn.spans for turn in turns)]
        whole = after.since(before)
        return Trained(
            whole.time,
            [loss for turn in turns for loss in turn.losses[:CHECKED_STEPS]],
            " ".join(digest(model.replica) for model in self._models),
            whole,
            whole,
            (int(before.time * 1e9), int(after.time * 1e9)),
            spans,
        )

    def _on_span(self, task: Task, start_ns: int, end_ns: int) -> None:
        self._lane = threading.get_ident()
        self._spans.append(Span(COMPUTE, task.name, start_ns, end_ns, task.info or {}))
