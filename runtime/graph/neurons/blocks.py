"""Blocks of neurons: what one rank computes in one go, and which other blocks must have been before.

    stages ─cut─> blocks ──┐
    values of a block's inputs, part by part, through views and concats to the blocks that make them ─> needs

A block waits for live neurons only (live.py). A layer is nothing here: a block of a later one is ready as
soon as its own inputs are, whatever else of the layers between still runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ....kernels.kernel import Array, Region
from ...errors import GraphError
from ..graph import Graph, Node
from ..parameters import Layout
from .cut import Grain, count, regions
from .live import Mask, live, reads
from .regions import meets, size, text
from .stages import Stage, stage_of, stages
from .storage import Storage

NOBODY: Mapping[str, Collection[int]] = {}


@dataclass(frozen=True, slots=True)
class Block:
    """A region of a stage's output; `needs` are the numbers of blocks that must have been before.

    In a block that is `dead` all of the head's neurons are: they are zeros, on which the others follow.
    """

    name: str
    stage: int
    region: Region
    cost_s: float
    needs: tuple[int, ...] = ()
    dead: bool = False


@dataclass(frozen=True)
class Blocks:
    """A graph cut for some ranks: the stages, their blocks, where values stand, and which neurons live."""

    graph: Graph
    batch: int
    storage: Storage
    stages: tuple[Stage, ...]
    blocks: tuple[Block, ...]
    live: Mapping[str, Mask]


def cut(
    graph: Graph,
    batch: int,
    parameters: Array,
    costs_s: Mapping[str, float],
    *,
    ranks: int,
    grain: Grain,
    dropped: Mapping[str, Collection[int]] = NOBODY,
    barrier: bool = False,
) -> Blocks:
    """The blocks of a forward pass, in an order in which each stands behind what it needs.

    `parameters` is the flat vector of weights, `costs_s` the seconds of every node on one rank. With
    `barrier` every block needs all of the stage before, as where a runtime goes layer by layer.
    """
    return _Cutter(graph, batch, parameters, costs_s, ranks, grain, dropped).cut(barrier)


class _Cutter:
    def __init__(
        self,
        graph: Graph,
        batch: int,
        parameters: Array,
        costs_s: Mapping[str, float],
        ranks: int,
        grain: Grain,
        dropped: Mapping[str, Collection[int]],
    ) -> None:
        self._graph, self._batch, self._costs, self._ranks, self._grain = graph, batch, costs_s, ranks, grain
        self._dropped = dropped
        self._specs = graph.specs(batch)
        self._storage = Storage.of(graph, batch)
        self._stages = stages(graph, batch, self._storage)
        self._stage_of = stage_of(self._stages)
        for name in dropped:
            if name in graph.by_name and name not in self._stage_of:
                raise GraphError(
                    f"neurons of {name!r} are dropped, which computes nothing of its own: drop those of "
                    f"{', '.join(map(repr, graph.by_name[name].inputs))}"
                )
        layout = Layout.of(graph)
        self._parameters = {node.name: layout.views(parameters, node.name) for node in graph.nodes}
        self._cuts = [self._regions(stage) for stage in self._stages]
        self._live = self._settled(parameters)
        self._blocks: list[Block] = []
        self._by_stage: list[list[int]] = []

    def cut(self, barrier: bool) -> Blocks:
        for number, stage in enumerate(self._stages):
            self._by_stage.append([])
            for region in self._cuts[number]:
                self._add(number, stage, region)
        if barrier:
            self._blocks = [replace(block, needs=tuple(self._before(block.stage))) for block in self._blocks]
        return Blocks(self._graph, self._batch, self._storage, self._stages, tuple(self._blocks), self._live)

    def _settled(self, parameters: Array) -> dict[str, Mask]:
        """The live neurons, and those that are zero only behind somebody's work.

        Another stage may write over what one has made, as an addition does over its first input: then the
        next request finds there what this one has left. And a block that holds live neurons computes the
        dropped ones among them, too, and makes them zero at its end.
        """
        kept = {
            name: np.ones(self._specs[name].shape[1:2], bool) for name in self._stage_of if self._shared(name)
        }
        while True:
            found = live(self._graph, self._batch, parameters, self._dropped, kept)
            before = sum(int(mask.sum()) for mask in kept.values())
            for stage, cuts in zip(self._stages, self._cuts, strict=True):
                for region in cuts:
                    if region and found[stage.tail][region[0]].any():
                        self._keep(stage, region[0], kept)
            if before == sum(int(mask.sum()) for mask in kept.values()):
                return found

    def _keep(self, stage: Stage, neurons: slice, kept: dict[str, Mask]) -> None:
        """Add what is dropped of these neurons of a stage."""
        for name in stage.nodes:
            for neuron in self._dropped.get(name, ()):
                if neurons.start <= neuron < neurons.stop:
                    kept.setdefault(name, np.zeros(self._specs[name].shape[1], bool))[neuron] = True

    def _shared(self, name: str) -> bool:
        """Whether other stages write where this node's value stands."""
        place, end = self._storage.places[name], self._storage.places[name].start + self._specs[name].size
        return any(
            there.buffer == place.buffer
            and there.start < end
            and place.start < there.start + self._specs[other].size
            for other, number in self._stage_of.items()
            if number != self._stage_of[name]
            for there in [self._storage.places[other]]
        )

    def _before(self, stage: int) -> list[int]:
        """The blocks of the last stage before this one that has any."""
        return next((self._by_stage[s] for s in range(stage - 1, -1, -1) if self._by_stage[s]), [])

    def _regions(self, stage: Stage) -> tuple[Region, ...]:
        head = self._graph.by_name[stage.head]
        inputs = self._graph.input_specs(head, self._specs)
        cost_s = sum(self._costs[name] for name in stage.nodes)
        return regions(
            self._specs[head.name],
            head.kernel.split(*inputs),
            count(cost_s, self._ranks, self._grain),
            weight_bytes=sum(4.0 * parameter.size for parameter in self._parameters[head.name]),
            input_bytes=sum(float(spec.nbytes) for spec in inputs),
            follow_bytes=sum(self._visited_bytes(name) for name in stage.nodes[1:]),
        )

    def _visited_bytes(self, name: str) -> float:
        specs = (self._specs[value] for value in (*self._graph.by_name[name].inputs, name))
        return float(sum(spec.nbytes for spec in specs))

    def _add(self, number: int, stage: Stage, region: Region) -> None:
        """A block of the stage, if any of its neurons is to be computed."""
        spec = self._specs[stage.head]
        if region and not self._live[stage.tail][region[0]].any():
            return  # its memory is zero and stays so
        dead = bool(region) and not self._live[stage.head][region[0]].any()
        share = size(region) / size(spec.region)
        needs: set[int] = set()
        for name in stage.nodes[dead:]:
            node = self._graph.by_name[name]
            parts = node.kernel.needs(region, *self._graph.input_specs(node, self._specs))
            for place, (value, part) in enumerate(zip(node.inputs, parts, strict=True)):
                if value not in stage.nodes:
                    needs.update(self._makers(value, part, self._reads(node, region, value, place)))
        what = text(region, spec)
        self._by_stage[number].append(len(self._blocks))
        self._blocks.append(
            Block(
                name=f"{stage.head} {what}" if what else stage.head,
                stage=number,
                region=region,
                cost_s=share * sum(self._costs[name] for name in stage.nodes[dead:]),
                needs=tuple(sorted(needs)),
                dead=dead,
            )
        )

    def _reads(self, node: Node, region: Region, value: str, place: int) -> Mask:
        """The neurons of an input that count for a region: those alive, with a weight that is not zero."""
        mask = self._live[value]
        if place == 0 and region and len(self._specs[value].shape) > 1:
            mask = mask & reads(node, region[0], self._parameters[node.name], self._specs[value])
        return mask

    def _makers(self, value: str, region: Region, mask: Mask) -> Iterator[int]:
        """The blocks that compute the neurons `mask` of a region of a value."""
        if value in self._graph.inputs or not _any(region, mask):
            return
        node = self._graph.by_name[value]
        if node.kernel.view:
            (part,) = node.kernel.needs(region, *self._graph.input_specs(node, self._specs))
            below = self._live[node.inputs[0]]
            yield from self._makers(node.inputs[0], part, _unflattened(mask, below))
        elif value in self._storage.joined:
            specs = self._graph.input_specs(node, self._specs)
            counts = [len(self._live[each]) for each in node.inputs]
            along = sum(counts) == len(mask)  # the neurons' axis is the one that is joined
            parts = node.kernel.needs(region, *specs)
            for each, part, stop, own in zip(node.inputs, parts, np.cumsum(counts), counts, strict=True):
                yield from self._makers(each, part, mask[stop - own : stop] if along else mask)
        else:
            for number in self._by_stage[self._stage_of[value]]:
                made = self._blocks[number].region
                if meets(made, region) and _any(_common(made, region), mask):
                    yield number


def _common(one: Region, other: Region) -> Region:
    return tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))


def _any(region: Region, mask: Mask) -> bool:
    if any(part.stop <= part.start for part in region):
        return False
    return not region or bool(mask[region[0]].any())


def _unflattened(mask: Mask, below: Mask) -> Mask:
    """The mask of a view as one of what it is a view of."""
    if len(mask) == len(below):
        return mask
    if len(mask) % len(below) == 0:
        found: Mask = mask.reshape(len(below), -1).any(axis=1) & below
        return found
    return below
