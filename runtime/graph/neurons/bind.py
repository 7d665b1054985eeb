"""Blocks bound to arrays: for each the calls that compute it.

The arena holds every value at a place of its own and is seen by all ranks; workspace is a rank's own. Nothing
is allocated when a block runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ....kernels.kernel import Array, Buffers, Mode, Region
from ..graph import Graph
from ..memory import carved, carved_nbytes
from ..parameters import Layout
from .blocks import NOBODY, Block, Blocks
from .storage import Storage

Call = Callable[[], None]


def arena_nbytes(storage: Storage) -> int:
    """Bytes of all buffers, each from a cache line of its own on."""
    return carved_nbytes(storage.buffers.values())


class Bound:
    """The arrays of a graph's values in an arena, and the calls of blocks on them."""

    def __init__(
        self, graph: Graph, batch: int, storage: Storage, arena: NDArray[np.uint8], parameters: Array
    ) -> None:
        self._graph, self._specs = graph, graph.specs(batch)
        arrays = carved(arena, storage.buffers.values())
        buffers = {name: array.reshape(-1) for name, array in zip(storage.buffers, arrays, strict=True)}
        #: The array of every value.
        self.values: Mapping[str, Array] = {
            value: buffers[place.buffer][place.start : place.start + self._specs[value].size].reshape(
                self._specs[value].shape
            )
            for value, place in storage.places.items()
        }
        self._workspace = np.zeros(self._workspace_nbytes(), np.uint8)
        layout = Layout.of(graph)
        self._buffers = {node.name: self._bind(node.name, layout, parameters) for node in graph.nodes}

    def calls(
        self, blocks: Blocks, block: Block, dropped: Mapping[str, Collection[int]] = NOBODY
    ) -> tuple[Call, ...]:
        """What computes a block, in order."""
        nodes = blocks.stages[block.stage].nodes
        found: list[Call] = []
        for place, name in enumerate(nodes):
            kernel, region = self._graph.by_name[name].kernel, block.region
            if block.dead and place == 0:
                found.append(partial(self.values[name][(slice(None), *region)].fill, 0))
                continue
            found.append(partial(kernel.forward_region, self._buffers[name], Mode(training=False), region))
            own = [each for each in dropped.get(name, ()) if region[0].start <= each < region[0].stop]
            if own:
                found.append(partial(_drop, self.values[name], region, own))
        return tuple(found)

    def _bind(self, name: str, layout: Layout, parameters: Array) -> Buffers:
        node = self._graph.by_name[name]
        inputs = self._graph.input_specs(node, self._specs)
        saved, scratch = node.kernel.saved(*inputs), node.kernel.scratch(*inputs)
        work = carved(self._workspace, (*saved, *scratch))
        return Buffers(
            inputs=tuple(self.values[value] for value in node.inputs),
            output=self.values[name],
            parameters=layout.views(parameters, name),
            saved=work[: len(saved)],
            scratch=work[len(saved) :],
            key=int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little"),
        )

    def _workspace_nbytes(self) -> int:
        """For the neediest node: a rank computes one block at a time."""
        most = 0
        for node in self._graph.nodes:
            inputs = self._graph.input_specs(node, self._specs)
            most = max(most, carved_nbytes((*node.kernel.saved(*inputs), *node.kernel.scratch(*inputs))))
        return most


def _drop(value: Array, region: Region, neurons: list[int]) -> None:
    for neuron in neurons:
        value[(slice(None), neuron, *region[1:])] = 0
