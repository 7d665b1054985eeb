"""Waiting for one's turn: several models, each trained by a coroutine of its own, start steps in one order.

    a ── take ─ make, submit ─────────── take …            b's take returns when a's step has been taken,
    b ──────── take · · · · ·─ make, submit ─── take …     and a's next when b's has

Since every rank follows the same order (interleave.py) and a model's collectives wait for nothing but its own
steps, no rank waits for another in a circle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from ...kernels.lane import Task
from .interleave import ModelOrder


class Turn(Protocol):
    """What a training loop asks before each step."""

    async def take(self, model: int) -> int:
        """Wait for the model's turn; returns the priority of its step on the lane, smallest first."""

    def begin(self, first: Task) -> None:
        """The step just taken begins with the task `first`, which is about to be submitted."""

    def leave(self, model: int) -> None:
        """The model takes no more steps."""


class Turns:
    """The turns of several models on one rank; `order` must be the same on all ranks."""

    def __init__(self, order: ModelOrder) -> None:
        self._order = order
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._leaving: set[int] = set()
        self._first: Task | None = None  # of the step taken last

    async def take(self, model: int) -> int:
        """Wait for the model's turn; returns the priority of its step on the lane, smallest first.

        Between the return and `begin` there must be no `await`: the next model may have its turn by then.
        """
        while self._order.head != model:
            self._waiting[model] = asyncio.get_running_loop().create_future()
            await self._waiting[model]
        priority = self._order.take()
        self._call()
        return priority

    def begin(self, first: Task) -> None:
        """The step taken last begins with `first`, and not before the step ahead of it has begun.

        Submitted in order, steps would mostly begin in order, but not where a step must wait for the end of
        its model's last one, and the next model's need not.
        """
        if self._first is not None:
            first.needs = (*first.needs, self._first)
        self._first = first

    def leave(self, model: int) -> None:
        """The model takes no more steps; the others go on without it from its next turn on."""
        self._leaving.add(model)
        self._call()

    def start(self, models: Iterable[int]) -> None:
        """These alone take steps from here on, in an order of their own; none is under way."""
        self._order = self._order.among(models)
        self._leaving.clear()
        self._call()

    def _call(self) -> None:
        """Wake whoever has the turn now."""
        while (head := self._order.head) in self._leaving:
            self._order.leave()
        waiting = None if head is None else self._waiting.pop(head, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
