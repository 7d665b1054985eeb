"""What benches of the exchange exchange: the gradient of a chain of dense layers, without any kernels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weft.kernels.kernel import ArraySpec
from weft.runtime.errors import Mistake
from weft.runtime.exchange import Carrier, Exchange, Portion, Profile, Reducer, Rule, blocks, cut, rows_of
from weft.runtime.graph import Graph, Layout
from weft.runtime.graph.backward import differentiate
from weft.runtime.graph.builder import sequential, with_loss

Floats = NDArray[np.float32]

MB = 1 << 20
WIDTH = 1024
LAYER_BYTES = 4 * WIDTH**2


@dataclass(frozen=True, slots=True)
class Network:
    """A chain of dense layers of 4 MB each."""

    graph: Graph
    layout: Layout

    @classmethod
    def of(cls, nbytes: int, first: int = 0) -> Network:
        """As many layers as have `nbytes`, a multiple of 4 MB; below them one of `first` bytes, if any."""
        if nbytes < LAYER_BYTES or nbytes % LAYER_BYTES:
            raise Mistake(f"{nbytes / MB:g} MB of gradients: give a multiple of {LAYER_BYTES // MB}")
        layers = [("dense", {"features": WIDTH, "bias": False})] * (nbytes // LAYER_BYTES + bool(first))
        inputs = first // (4 * WIDTH) if first else WIDTH
        graph = with_loss(sequential((inputs,), layers), "mean_squared_error", ArraySpec((WIDTH,)))
        return cls(graph, Layout.of(graph))

    def portions(self, nbytes: int) -> tuple[Portion, ...]:
        """Its portions of about `nbytes`."""
        return cut(self.layout, nbytes, rows_of(self.graph))

    def exchange(
        self, comm: Reducer, carrier: Carrier | None, portions: Sequence[Portion], rule: Rule, credit: int
    ) -> Exchange:
        """The exchange of a step whose backward takes no time, so that the wire is what all wait for."""
        calls = differentiate(self.graph).backward
        return Exchange(
            comm,
            carrier,
            portions,
            blocks(calls, portions),
            Profile((1e-9,) * len(calls)),
            rule=rule,
            credit=credit,
            model="bench",
            replan=False,
        )


@asynccontextmanager
async def communicating(exchange: Exchange) -> AsyncIterator[Exchange]:
    """Its communication task runs meanwhile, and to its end."""
    async with asyncio.TaskGroup() as group:
        group.create_task(exchange.run())
        yield exchange
        exchange.end()


def difference(got: Floats, expected: Floats) -> float:
    """The largest, relative to the expected value (to 1 where that is smaller)."""
    return float((np.abs(got - expected) / np.maximum(1, np.abs(expected))).max())
