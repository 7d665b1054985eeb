"""A rank that dies while it computes a block ends the job: nobody waits for that block for ever."""

from __future__ import annotations

import pytest

from tests.launch import ROOT, VENDORS, mpiexec

PROGRAM = """
import os, signal
import numpy as np
from dataclasses import dataclass
from weft.kernels.activation import ReLU
from weft.runtime.graph import Builder, Graph, Layout, Node, initialise
from weft.runtime.message import run
from weft.runtime.work.neurons import Neurons

@dataclass(frozen=True, slots=True)
class Deadly(ReLU):
    def forward_region(self, b, mode, region):
        if region[1].start:  # placed on rank 1, or taken by it while rank 0 is at the rest
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            while True:
                pass
        ReLU.forward_region(self, b, mode, region)

async def main(world):
    global rank
    rank = world.rank
    b = Builder()
    h = b("conv2d", b.input("x", (8, 24, 24)), channels=8, kernel_size=3, padding=1, name="conv")
    graph = b.build(b("relu", h, name="bent"))
    flat = initialise(Layout.of(graph), 0)
    nodes = (graph.nodes[0], Node("bent", Deadly(), ("conv",)))
    engine = await Neurons.open(
        world, Graph(graph.inputs, nodes, graph.outputs), flat, tags={"conv": {"cost_s": 1.0}}, capture=False
    )
    print("opened", flush=True)
    if world.rank == 0:
        await engine.infer({"x": np.ones((1, 8, 24, 24), np.float32)})
        print("answered", flush=True)
    await engine.close()

run(main)
"""


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_rank_that_dies_at_a_block_ends_the_job(vendor, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    result = mpiexec(2, [path], vendor=vendor, cwd=ROOT, timeout=90)
    assert result.returncode != 0
    assert "opened" in result.stdout
    assert "answered" not in result.stdout
