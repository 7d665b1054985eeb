"""A model's graph on a pool: a task for each kernel, or for those that combining has put together.

    kernels = Kernels(graph, parameters, batch=8, rates=measure())      # the same on every rank
    async with await Pool.open(world, kernels.functions) as pool:
        results = await run_graph(pool, combine(kernels.tasks, ...), kernels.calls({"x": images}))
        logits = results["logits"].arrays[0]

Parameters lie on every rank, values travel as results do. So it is for graphs, from a file or the builder,
whose branches are worth a message; one image through a chain of layers is faster by work/neurons, which cuts
each layer into blocks and shares values in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ....kernels.kernel import Array, ArraySpec, Buffers, Mode
from ...errors import Mistake
from ...graph import Graph, Layout
from ...graph.tasks import Rates, TaskGraph, of_model
from .graphs import Call
from .parcel import Result

FUNCTION = "weft.kernel"
"""What the pool calls them by; a task's body is its node's name."""


class Kernels:
    """The forward pass of `graph` for `batch` samples, for inference.

    `parameters` is the flat vector of `Layout.of(graph)`; `rates` turn costs into the seconds of `tasks`.
    """

    def __init__(self, graph: Graph, parameters: Array, batch: int, rates: Rates) -> None:
        self.tasks: TaskGraph = of_model(graph, batch, rates)
        self._graph = graph
        self._specs = graph.specs(batch)
        layout = Layout.of(graph)
        self._parameters = {node.name: layout.views(parameters, node.name) for node in graph.nodes}

    @property
    def functions(self) -> dict[str, Callable[..., Array]]:
        """To open the pool with, beside one's own."""
        return {FUNCTION: self._run}

    def calls(self, inputs: Mapping[str, Array]) -> dict[str, Call]:
        """What `run_graph` calls for these inputs, (batch, ...) each; Mistake where they do not fit."""
        for name in self._graph.inputs:
            wanted = self._specs[name]
            found = None if (given := inputs.get(name)) is None else np.asarray(given)
            if found is None or ArraySpec(found.shape, str(found.dtype)) != wanted:
                told = "missing" if found is None else f"{found.shape} {found.dtype}"
                raise Mistake(f"the input {name!r} is {told}; give {wanted.shape} {wanted.dtype}")
        return {
            node.name: Call(FUNCTION, node.name, tuple(inputs[value] for value in self._own(node.inputs)))
            for node in self._graph.nodes
        }

    def _own(self, values: Sequence[str]) -> list[str]:
        """Those that are inputs of the graph: a task's arguments, in this order."""
        return [value for value in dict.fromkeys(values) if value in self._graph.inputs]

    def _run(self, pool: object, name: str, *arguments: Array, needs: Sequence[Result] = ()) -> Array:
        """One kernel, on whichever rank has its task."""
        node = self._graph.by_name[name]
        values = dict(zip(self._own(node.inputs), arguments, strict=True))
        for value, need in zip(self.tasks.by_name[name].needs, needs, strict=True):
            (values[value],) = need.arrays
        inputs = tuple(values[value] for value in node.inputs)
        spec = self._specs[name]
        if node.kernel.view:
            return inputs[0].reshape(spec.shape)
        specs = self._graph.input_specs(node, self._specs)
        buffers = Buffers(
            inputs=inputs,
            output=_empty(spec),
            parameters=self._parameters[name],
            saved=tuple(map(_empty, node.kernel.saved(*specs))),
            scratch=tuple(map(_empty, node.kernel.scratch(*specs))),
        )
        node.kernel.forward(buffers, Mode(training=False))
        return buffers.output


def _empty(spec: ArraySpec) -> Array:
    return np.empty(spec.shape, spec.dtype)
