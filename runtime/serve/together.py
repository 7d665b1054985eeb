"""One sample through a model on all the ranks of a node that have nothing else to do.

    first rank's lane    ── batch of one sample ── takes blocks of neurons ──────────── answer
    another's core       ── idle ───────────────── takes blocks ─── its own batch ──

The policy knows nothing of it: to its eyes the node's first rank computes a single sample faster while others
are idle, which its profile learns. Who gets a batch of its own, or trains, leaves after the block it is at,
so helping costs nobody more than a block (work/neurons).

A rank that does not end its block, as its process was stopped, holds up nobody for long: the sample is
computed anew as any other batch is, and so are the next ones until that rank has come back.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Self

from ..errors import Mistake
from ..message import World
from ..message.failure import say
from ..work.neurons import BlockHeld, Neurons
from .model import Array, Model

PATIENCE_S, PATIENCE_TIMES = 0.3, 3.0
"""How long nothing may end: so long, and so many times what the sample takes together, of which a block is
but a part. Shorter than the dispatcher waits for a batch, which would give the rank up that waits here: where
many ranks make a sample fast, three times what it takes on one of them is longer."""

LOAD_PATIENCE_S = 30.0
"""The same of the first samples, while kernels are loaded: nobody knows yet what one takes."""

RUNS = 3  # of which the fastest counts

OnLane = Callable[[Sequence[Callable[[], object]]], Awaitable[None]]
"""Runs calls on the lane, one after the other; raises what one of them raises."""

Agree = Callable[[Exception | None], Awaitable[None]]
"""Raises on all ranks of the node where one of them gives it an exception: that, elsewhere a Mistake."""


class Together:
    """A model's engine on a rank of the node; the node's first rank computes with it."""

    def __init__(self, engine: Neurons, model: Model, name: str) -> None:
        self._engine, self._model, self._name = engine, model, name
        self._patience_s = PATIENCE_S
        self._given_up = False
        self.close = engine.close  # collective over the node, when no sample is under way

    @classmethod
    async def open(
        cls,
        world: World,
        model: Model,
        parameters: Array,
        name: str,
        *,
        free: Callable[[], bool],
        on_lane: OnLane,
        agree: Agree,
    ) -> Self | None:
        """Collective over the node, whose one copy of the weights is `parameters`; raises on all its ranks.

        A rank helps while it is `free`. Says what it brings: whoever has asked for it wants to know. None,
        after a line that says so, where a rank has not ended its block in LOAD_PATIENCE_S.
        """
        graph = model.source.graph
        engine = await Neurons.open(world, graph, parameters, shared=True, capture=False, free=free)
        self = cls(engine, model, name)
        try:
            first = world.node_rank == 0
            alone_s: list[float] = []
            together_s: list[float] = []
            # What is compiled is loaded by the first of each.
            infer = partial(engine.infer_here, LOAD_PATIENCE_S)
            helped = await self._helped(on_lane, agree, [infer] * 2 if first else [])
            if helped:
                await engine.replan()  # by what the blocks took
                compared = [partial(timed, infer, together_s), partial(timed, self._alone, alone_s)]
                helped = await self._helped(on_lane, agree, compared * RUNS if first else [])
        except Exception:
            await self.close()
            raise
        if not helped:
            await self.close()
            return None
        if first:
            self._compared(min(alone_s), min(together_s))
        return self

    async def _helped(self, on_lane: OnLane, agree: Agree, calls: Sequence[Callable[[], object]]) -> bool:
        """Run these on the lane; whether no block was held, alike on all ranks. Raises as `agree`."""
        problem = await _problem(on_lane, calls)
        held = problem if isinstance(problem, BlockHeld) else None
        if held is not None:
            say(
                f"weft: {self._name}: {held}; it is loaded without together, one rank computes single samples"
            )
        await agree(problem if held is None else None)
        try:
            await agree(held)
        except (BlockHeld, Mistake):
            return False
        return True

    def _alone(self) -> None:
        self._model.compute(1)

    def _compared(self, alone_s: float, together_s: float) -> None:
        self._patience_s = max(PATIENCE_S, PATIENCE_TIMES * together_s)
        say(
            f"weft: {self._name}: a single sample takes {1e3 * alone_s:.3g} ms on one rank, "
            f"{1e3 * together_s:.3g} ms on the ranks of a node together"
        )

    def run(self, pieces: Sequence[Sequence[Array]]) -> list[Array]:
        """As Model.run for one sample; on the lane's thread of the node's first rank."""
        source, arrays = self._model.source, self._engine.arrays
        for name, parts in zip(source.inputs.values(), pieces, strict=True):
            for part in parts:
                self._model.put(part, arrays[name][: len(part)])
        try:
            self._engine.infer_here(self._patience_s)
        except BlockHeld as error:
            if not self._given_up:
                say(f"weft: {self._name}: {error}; until then one rank computes single samples alone")
            self._given_up = True
            return self._model.run(pieces, 1)
        self._given_up = False
        return [*(arrays[own].copy() for own in source.outputs.values()), *source.constants.values()]


async def _problem(on_lane: OnLane, calls: Sequence[Callable[[], object]]) -> Exception | None:
    """What running these raised."""
    try:
        await on_lane(calls)
    except Exception as error:
        return error
    return None


def timed(call: Callable[[], object], took_s: list[float]) -> None:
    """Append what a call took."""
    start_s = time.perf_counter()
    call()
    took_s.append(time.perf_counter() - start_s)
