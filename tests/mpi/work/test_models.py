"""Models as task graphs across ranks, from the builder and a file: as they are, combined, within limits."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.graph.neuron_graphs import GRAPHS, parameters, samples, serial
from weft.runtime.errors import Mistake
from weft.runtime.graph import Graph, Layout
from weft.runtime.graph.candidates import Thresholds
from weft.runtime.graph.combine import combine
from weft.runtime.graph.onnx import read, write
from weft.runtime.graph.tasks import Capacity, Rates
from weft.runtime.message import World, run
from weft.runtime.work.pool import Pool, run_graph
from weft.runtime.work.pool.models import Kernels

RATES = Rates(1e9, 1e9)  # the same on every rank, whatever it is
ROOM = Capacity(lanes=1, memory_bytes=1 << 30)


def from_builder(name: str) -> tuple[Graph, np.ndarray]:
    graph = GRAPHS[name]()
    return graph, parameters(graph)


def from_file(name: str) -> tuple[Graph, np.ndarray]:
    graph, flat = from_builder(name)
    weights = {p.name: flat[p.start : p.stop].reshape(p.spec.shape) for p in Layout.of(graph).parameters}
    model = read(write(graph, weights))
    return model.graph, model.parameters(Layout.of(model.graph))


@pytest.mark.mpi
@pytest.mark.parametrize("arrives", [from_builder, from_file], ids=["from the builder", "from a file"])
@pytest.mark.parametrize("name", ["inception", "residual", "transformer"])
def test_s4_5_a_model_runs_across_ranks_as_tasks(name, arrives):
    graph, flat = arrives(name)
    inputs = samples(graph, 2)
    expected = serial(graph, 2, flat, inputs)
    kernels = Kernels(graph, flat, 2, RATES)
    combined = combine(kernels.tasks, [ROOM], Thresholds(small_s=1.0, workers=2))
    assert len(combined.tasks.tasks) < len(kernels.tasks.tasks)
    largest = max(task.memory_bytes for task in kernels.tasks.tasks)
    ways = [(kernels.tasks, None), (combined, None), (kernels.tasks, [Capacity(4, largest)])]

    async def main(world: World) -> None:
        async with await Pool.open(world, kernels.functions) as pool:

            async def ask() -> None:
                for tasks, within in ways:
                    results = await run_graph(pool, tasks, kernels.calls(inputs), within=within)
                    for output, array in expected.items():
                        (found,) = results[output].arrays
                        np.testing.assert_allclose(found, array, rtol=1e-5, atol=1e-6)

            await pool.run(ask() if world.rank == 0 else None)

    run(main)


def test_inputs_that_do_not_fit_are_named():
    graph, flat = from_builder("transformer")
    kernels = Kernels(graph, flat, 2, RATES)
    for inputs, words in (
        ({}, "the input 'x' is missing; give (2, 12, 16) float32"),
        ({"x": np.zeros((3, 12, 16), "f4")}, "the input 'x' is (3, 12, 16) float32; give (2, 12, 16)"),
        ({"x": [[1.0, 2.0]]}, "the input 'x' is (1, 2) float64; give"),
        ({"x": np.zeros((2, 12, 16))}, "the input 'x' is (2, 12, 16) float64; give (2, 12, 16) float32"),
    ):
        with pytest.raises(Mistake) as caught:
            kernels.calls(inputs)
        assert words in str(caught.value)
