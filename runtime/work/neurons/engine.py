"""One inference request through a graph on several ranks of a node: whoever is free takes a block of neurons.

    engine = await Neurons.open(world, graph, parameters)     # every rank of the node
    if world.node_rank == 0:
        outputs = await engine.infer({"x": images})           # the others help, and sleep between requests
    await engine.close()                                      # every rank

Activations and the node's one copy of the weights stand in shared memory, and beside them the table of tags
(graph/table.py) from which all ranks derive the same blocks and the same places for them. A block runs as
soon as the live neurons that it reads exist, first where it was placed, otherwise wherever a rank is free:
blocks of later layers run while earlier layers still do (crew.py).

An error in a block is raised by `infer`, and the engine serves on. A rank that dies ends the job.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from math import inf
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...errors import Mistake
from ...graph import Graph, Layout
from ...graph.metadata import describe
from ...graph.neurons.bind import Bound, arena_nbytes
from ...graph.neurons.blocks import NOBODY, Blocks, cut
from ...graph.neurons.cut import Grain
from ...graph.neurons.placement import Placement, place
from ...graph.neurons.record import measured_s, tagged, write_blocks
from ...graph.neurons.storage import Storage
from ...graph.table import ROW, Table, Tags, check, costs_s, layers, rows, write_graph
from ...graph.tasks import Rates
from ...message import Communicator, World
from ...message.meeting import to_the_end
from ...message.window import Window, rounded_up
from ..alike import agree_on_model, all_or_none
from ..cores import share_cores
from ..made import Made
from . import rates
from .crew import Crew, Free, Job, Spans, always

Array = NDArray[Any]
NO_TAGS: Tags = {}


class Neurons:
    """This rank's part of the engine; made by `open`, closed by `close` or with the world."""

    def __init__(self, world: World, graph: Graph, batch: int, ranks: int, barrier: bool) -> None:
        self._world, self.graph, self.batch = world, graph, batch
        self._ranks, self._barrier = ranks, barrier
        self._storage, self._layout, self._specs = (
            Storage.of(graph, batch),
            Layout.of(graph),
            graph.specs(batch),
        )
        self._grain = Grain.of(rates.TASK_S)
        self._tags: Tags = NO_TAGS
        self._dropped: Mapping[str, Collection[int]] = NOBODY
        self._turn = asyncio.Lock()
        self._node: Communicator
        self._spans: Spans | None = None
        self._free: Free = always
        self._crew: Crew | None = None
        # What is to be closed at the end, and what with every plan.
        self._made, self._planned = Made(), Made()
        self._closing: asyncio.Task[None] | None = None
        self._rates = Rates(1.0, 1.0)

    @classmethod
    @to_the_end
    async def open(
        cls,
        world: World,
        graph: Graph,
        parameters: Array,
        *,
        batch: int = 1,
        ranks: int | None = None,
        tags: Tags = NO_TAGS,
        dropped: Mapping[str, Collection[int]] = NOBODY,
        capture: bool = True,
        barrier: bool = False,
        spans: Spans | None = None,
        shared: bool = False,
        free: Free = always,
    ) -> Self:
        """For requests of `batch` samples on `ranks` ranks of the node (all); collective over it, all alike.

        `parameters` is the flat vector of weights, read on rank 0 alone. With `capture` rank 0 runs every
        kernel twice for its cost; otherwise costs are determined from operations and bytes. `tags` override
        both. Neurons in `dropped` (by node) are zero, and nobody waits for them. With `barrier` every layer
        waits for the one before: for comparison. Where `parameters` are `shared`, every rank gives its view
        of one array that all the node's ranks see, and no copy is made. A rank helps while it is `free`:
        asked before every block, on a thread. From then on BLAS uses this rank's part of the node's cores.

        Cancelling ends the waiting only: the others get theirs, and this rank's is closed with the world.
        """
        for what, count in (("batch", batch), ("ranks", 1 if ranks is None else ranks)):
            if count < 1:
                raise Mistake(f"an engine was asked for with {what}={count}; give 1 or more")
        self = cls(world, graph, batch, min(ranks or world.node_size, world.node_size), barrier)
        self._spans, self._free = spans, free
        shape = (self._layout.size,)
        if (shared or world.node_rank == 0) and np.shape(
            parameters
        ) != shape:  # one number was taken for every weight
            raise Mistake(
                f"an engine was given parameters of shape {np.shape(parameters)}; this graph has "
                f"{self._layout.size}, in one flat array of shape {shape}"
            )
        share_cores(world)
        try:
            await self._open(parameters, shared, tags, dropped, capture)
        except Exception:  # most often all ranks have it; others' part in this is not waited for
            world.closing(self._close(), "an engine that could not be opened closes")
            raise
        return self

    async def _open(
        self,
        parameters: Array,
        shared: bool,
        tags: Tags,
        dropped: Mapping[str, Collection[int]],
        capture: bool,
    ) -> None:
        # Its own: of engines that were opened at once, by asyncio.gather, one met the others for the next: it
        # read how large a window was where they had written something else.
        self._node = await self._world.apart("an engine", node=True)
        self._made.push(self._node.free)
        # Of another graph a rank computed other neurons, and nobody heard of it.
        await agree_on_model(self._world, "an engine", self.graph, among=self._node)
        settings = f"batch={self.batch}, ranks={self._ranks}, barrier={self._barrier}, shared={shared}"
        await self._world.agree("settings of an engine", settings, among=self._node)
        await self._agree_on_plan(tags, dropped)
        await self._allocate(parameters, shared)
        async with all_or_none(self._node):
            if capture and self._world.node_rank == 0:
                await asyncio.to_thread(self._capture)
        await self._plan(tags, dropped)

    async def _allocate(self, parameters: Array, shared: bool) -> None:
        first, own = self._world.node_rank == 0, 0 if shared else self._layout.size
        sizes = [4 * own, ROW.itemsize * rows(self.graph), arena_nbytes(self._storage)]
        weights, table, arena = map(rounded_up, sizes)
        self._memory = await self._window(weights + table + arena if first else 0, self._made)
        #: The node's copy of the weights; not to be changed while a request is under way.
        self.parameters = parameters if shared else self._memory.array(0, np.float32, own)
        #: The rows of kernels and layers; `table` has those of the blocks of neurons, in their order.
        self.graph_table: Table = self._memory.array(0, ROW, rows(self.graph), weights)
        self._arena = self._memory.array(0, np.uint8, arena, weights + table)
        if first:
            if not shared:
                self.parameters[:] = parameters
            self._rates = rates.measure()
            write_graph(self.graph_table, self.graph, self.batch, self._rates, NO_TAGS, {})
        await self._memory.fence()
        async with all_or_none(self._node):
            self._bound = Bound(self.graph, self.batch, self._storage, self._arena, self.parameters)

    @np.errstate(all="ignore")  # its inputs are zeros
    def _capture(self) -> None:
        """What every node takes on this rank alone, by the clock."""
        costs = costs_s(self.graph_table, self.graph)
        blocks = cut(self.graph, self.batch, self.parameters, costs, ranks=1, grain=self._grain)
        times = np.zeros(len(blocks.blocks), ROW)
        for row, block in zip(times, blocks.blocks, strict=True):
            calls = self._bound.calls(blocks, block)
            for _ in range(2):  # the first loads what is compiled
                start = time.perf_counter()
                for call in calls:
                    call()
                row["measured_s"] = time.perf_counter() - start
        write_graph(
            self.graph_table, self.graph, self.batch, self._rates, NO_TAGS, measured_s(times, blocks, costs)
        )

    @to_the_end
    async def replan(
        self, *, tags: Tags | None = None, dropped: Mapping[str, Collection[int]] | None = None
    ) -> None:
        """Cut and place the blocks anew: by what the last runs took, by other tags, without other neurons.

        Collective over the node, all alike, between requests: those that were asked for before are answered
        first, later ones behind it. None leaves tags, or what is dropped, as they were. Also for when weights
        have become zero; and it must be called before the next request when some that were zero are so no
        more, for they would still be taken for zero. Tags that are not alike on all ranks are a Mistake
        that leaves the engine as it was. Those that are a mistake otherwise end it: `close` it, and open
        another. Cancelling ends the waiting only.
        """
        tags, dropped = self._tags if tags is None else tags, self._dropped if dropped is None else dropped
        # A request that began between hid from the helpers that they were to end.
        async with self._turn:
            # On all ranks, and by now: else one looked for a table, and the others waited for it.
            if self._crew is None:
                raise Mistake("this engine is closed, or was planned with a mistake before: open another")
            await self._agree_on_plan(tags, dropped)
            if self._world.node_rank == 0:
                costs = costs_s(self.graph_table, self.graph)
                found = costs | measured_s(self.table, self.blocks, costs)
                write_graph(self.graph_table, self.graph, self.batch, self._rates, NO_TAGS, found)
            await self._close_plan()
            await self._plan(tags, dropped)

    async def _agree_on_plan(self, tags: Tags, dropped: Mapping[str, Collection[int]]) -> None:
        """Mistake on all ranks where these differ: of two plans ranks waited for each other's blocks."""
        given = {f"tags[{name!r}]={dict(sorted(own.items()))}" for name, own in tags.items()}
        left = {f"dropped[{name!r}]={sorted(map(int, own))}" for name, own in dropped.items()}
        text = ", ".join([*sorted(given), *sorted(left)]) or "none"
        await self._world.agree("tags and dropped neurons of an engine", text, among=self._node)

    async def _plan(self, tags: Tags, dropped: Mapping[str, Collection[int]]) -> None:
        self._tags, self._dropped = tags, dropped
        first, rank = self._world.node_rank == 0, self._world.node_rank
        if first:
            found = {
                name: float(row["measured_s"])
                for name, row in zip(self.graph.by_name, self.graph_table, strict=False)
            }
            write_graph(self.graph_table, self.graph, self.batch, self._rates, tags, found)
            self._arena[:] = 0  # what is never computed is zero
        await self._memory.fence()
        async with all_or_none(self._node):
            self.blocks: Blocks = tagged(
                cut(
                    self.graph,
                    self.batch,
                    self.parameters,
                    costs_s(self.graph_table, self.graph),
                    ranks=self._ranks,
                    grain=self._grain,
                    dropped=dropped,
                    barrier=self._barrier,
                ),
                tags,
            )
            blocks = self.blocks.blocks
            # By the graph's own names: those in the table have 64 bytes, and may end amid a letter.
            known = {*self.graph.by_name, *layers(describe(self.graph, 1)), *(block.name for block in blocks)}
            check(tags, known)
            self.placement: Placement = place(blocks, self._ranks, task_s=rates.TASK_S)
        window = await self._window(ROW.itemsize * len(blocks) if first else 0, self._planned)
        self.table: Table = window.array(0, ROW, len(blocks))
        async with all_or_none(self._node):
            if first:
                write_blocks(self.table, self.blocks, self.placement, self.graph_table, tags)
        await window.fence()
        async with all_or_none(self._node):
            homes = self.table["home"].tolist()
            urgent = self.placement.urgent
            job = Job(
                names=[block.name for block in blocks],
                needs=[block.needs for block in blocks],
                calls=[self._bound.calls(self.blocks, block, dropped) for block in blocks],
                own=[number for number in urgent if homes[number] == rank],
                others=[number for number in urgent if homes[number] != rank],
                took_s=self.table["measured_s"].data,
                ranks=self._ranks,
            )
        self._crew = await Crew.open(self._world, self._node, job, self._spans, self._free)
        self._planned.push(self._crew.close)

    async def _window(self, nbytes: int, closed_with: Made) -> Window:
        window = await self._world.window(nbytes, node=self._node)
        closed_with.push(window.close)
        return window

    async def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs for `batch` samples, new arrays; on the node's rank 0 alone, one after the other.

        BlockError when a block raised; Mistake for inputs of another shape or dtype.
        """
        if self._world.node_rank:
            raise Mistake(
                f"rank {self._world.node_rank} of the node was asked to infer; ask rank 0, the others help it"
            )
        for name in self.graph.inputs:
            spec, got = self._specs[name], inputs.get(name)
            if isinstance(got, np.ma.MaskedArray):
                raise Mistake(f"input {name!r} has a mask, which an engine knows nothing of: fill it")
            got = None if got is None else np.asarray(got)
            if got is None or got.shape != spec.shape or got.dtype != spec.dtype:
                seen = "nothing" if got is None else f"{got.shape} {got.dtype}"
                raise Mistake(
                    f"input {name!r} is {spec.shape} {spec.dtype} in this engine; it was given {seen}"
                )
        async with self._turn:
            if self._crew is None:
                raise Mistake("this engine is closed: open another")
            for name in self.graph.inputs:
                self._bound.values[name][...] = inputs[name]
            await self._crew.run()
            return {name: self._bound.values[name].copy() for name in self.graph.outputs}

    def infer_here(self, patience_s: float = inf) -> None:
        """`infer` on the calling thread, from `arrays` to `arrays`; nothing else may be asked meanwhile.

        BlockError; BlockHeld when nothing has ended for `patience_s`, and as long as the rank that holds a
        block has not come back.
        """
        if self._crew is None:
            raise Mistake("this engine is closed: open another")
        self._crew.front(patience_s)

    @property
    def arrays(self) -> Mapping[str, Array]:
        """Inputs and what every node gives, by name, as the ranks of the node see them."""
        return self._bound.values

    async def close(self) -> None:
        """End the helpers and give the memory back; collective over the node.

        Cancelling ends the waiting only.
        """
        if self._closing is None:
            self._closing = self._world.closing(self._close(), "an engine closes")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        async with self._turn:
            await self._close_plan()
            for view in ("_bound", "graph_table", "_arena", "parameters"):  # of what is given back
                self.__dict__.pop(view, None)
            await self._made.close()

    async def _close_plan(self) -> None:
        self._crew = None
        self.__dict__.pop("table", None)
        await self._planned.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: object, _: object) -> None:
        if error is None:
            await self.close()
