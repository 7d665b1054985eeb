"""The nodes that a run of the tests was to have; who owns what on them."""

from __future__ import annotations

import os

import numpy as np
import pytest
from mpi4py import MPI

from weft.runtime.exchange import NodeMemory, Portion
from weft.runtime.message import World, run

SIZE = 1024
PORTIONS = (
    Portion(0, 640, 1024, ("two",), 1),
    Portion(1, 16, 640, ("one",), 0),
    Portion(2, 0, 16, ("one",), 0),
)


def nodes() -> list[int]:
    """How many ranks each node has, as the run was told; all on one node where it was told nothing."""
    told = os.environ.get("WEFT_NODES", str(MPI.COMM_WORLD.Get_size()))
    return [int(ranks) for ranks in told.split("+")]


@pytest.mark.mpi
def test_the_nodes_are_those_that_the_run_was_to_have():
    found = run(lambda world: sizes(world))
    assert sorted(found) == sorted(nodes())


async def sizes(world: World) -> list[int]:
    return [len(ranks) for ranks in world.nodes]


@pytest.mark.mpi
def test_every_element_has_one_owner_a_node_and_as_many_peers_as_there_are_nodes():
    async def main(world: World) -> None:
        memory = await NodeMemory.allocate(world, SIZE, 1, len(PORTIONS))
        owned = np.zeros(SIZE, np.int64)
        for part in memory.slices(PORTIONS):
            owned[part] += 1
        counts = owned.copy()
        await world.node.allreduce(counts)
        assert (counts == 1).all()
        assert memory.owners == min(nodes())
        assert (memory.rank < memory.owners) == bool(owned.any())
        assert memory.travels == (len(nodes()) > 1)
        if memory.peers is not None:
            assert memory.peers.size == len(nodes())
            mine = owned.copy()
            await memory.peers.allreduce(mine, "min")
            np.testing.assert_array_equal(mine, owned)  # they own the same
        else:
            assert not owned.any() or len(nodes()) == 1
        await memory.close()

    run(main)


@pytest.mark.mpi
def test_a_node_has_one_copy_of_weights_and_state_and_a_gradient_for_each_rank():
    async def main(world: World) -> None:
        memory = await NodeMemory.allocate(world, SIZE, 2, len(PORTIONS))
        if memory.writes:
            memory.parameters[:] = world.rank
            memory.states[1][:] = -world.rank
        memory.gradients[:] = world.rank
        await memory.fence()
        first = world.node.ranks[0]
        assert (memory.parameters == first).all()
        assert (memory.states[1] == -first).all()
        assert not memory.states[0].any()
        assert [int(part[0]) for part in memory.parts] == list(world.node.ranks)
        await memory.close()

    run(main)
