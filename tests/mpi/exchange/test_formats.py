"""Wire formats on live ranks: the bits that NumPy has, half the bytes, no deadlock however ranks dawdle."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import numpy as np
import pytest
from mpi4py import MPI

from tests.formats import WIRES, NumpyFormat
from tests.mpi.training import everyones, require_equal_bits
from weft.kernels.kernel import ParameterSpec
from weft.runtime.exchange import Block, Exchange, Portion, Profile, Round
from weft.runtime.exchange.formats import make_carrier
from weft.runtime.graph import Layout
from weft.runtime.graph.parameters import Parameter
from weft.runtime.message import World, run

SIZE = 6000
EDGES = [0, 16, 1600, 2000, 2048, 4096, SIZE]
PORTIONS = [
    Portion(index, start, stop, (f"layer_{6 - index}",), 5 - index)
    for index, (start, stop) in enumerate(reversed(list(pairwise(EDGES))))
]
STATISTICS = slice(1900, 2100)  # in three portions
LAYOUT = Layout(
    tuple(
        Parameter("node", ParameterSpec(str(start), (stop - start,), "zeros", role=role), start)
        for start, stop, role in (
            (0, STATISTICS.start, "weight"),
            (STATISTICS.start, STATISTICS.stop, "statistic"),
            (STATISTICS.stop, SIZE, "weight"),
        )
    ),
    SIZE,
)
STEPS = 12


class Counting:
    """A communicator that counts the bytes that leave this rank."""

    def __init__(self, comm) -> None:
        self.comm, self.rank, self.size, self.bytes = comm, comm.rank, comm.size, 0
        self.second: Counting | None = None

    def allreduce(self, array, op="sum", *, what="", patience_s=None):
        return self.comm.allreduce(array, op, what=what)

    def broadcast(self, array, root=0, *, what="", patience_s=None):
        return self.comm.broadcast(array, root, what=what)

    def alltoall(self, array, into, *, what="", patience_s=None):
        self.bytes += array.nbytes * (self.size - 1) // self.size
        return self.comm.alltoall(array, into, what=what)

    def allgather(self, share, array, *, what="", patience_s=None):
        self.bytes += share.nbytes * (self.size - 1)
        return self.comm.allgather(share, array, what=what)

    async def duplicate(self, name):
        self.second = Counting(await self.comm.duplicate(name))
        return self.second


def gradients(rank: int, step: int) -> np.ndarray:
    random = np.random.default_rng([rank, step])
    values = random.standard_normal(SIZE) * 10.0 ** random.integers(-5, 3, SIZE)
    values[STATISTICS] = 1e6 * random.random(STATISTICS.stop - STATISTICS.start)
    return values.astype(np.float32)


async def train(world: World, wire: str, credit: int) -> tuple[list[np.ndarray], int]:
    """The sums of some steps whose portions get ready at random times, and the bytes that left this rank."""
    comm = Counting(await world.duplicate("training"))
    gradient, residual = np.zeros((2, SIZE), np.float32)
    carrier = make_carrier(wire, comm, gradient, residual, LAYOUT, keep=0.05)
    carrier.cut([slice(p.start, p.stop) for p in PORTIONS])
    await carrier.open()
    blocks = [Block(p.index, (p.index,)) for p in PORTIONS]
    profile, rule = Profile((1e-3,) * len(blocks)), "lower_layer_first"
    exchange = Exchange(comm, carrier, PORTIONS, blocks, profile, rule=rule, credit=credit, model="m")
    running = asyncio.ensure_future(exchange.run())
    random = np.random.default_rng(comm.rank)
    sums = []
    for step in range(STEPS):
        gradient[:] = gradients(comm.rank, step)
        round_ = Round(step, len(PORTIONS), np.zeros(1))
        arrived = [asyncio.Event() for _ in PORTIONS]
        round_.arrived = lambda index, arrived=arrived: arrived[index].set()
        round_.counted.set()
        exchange.begin(round_)
        for portion in PORTIONS:
            if random.random() < 0.3:  # late on this rank, and not on others
                await asyncio.sleep(random.choice([0.0, 0.0005, 0.004]))
            carrier.encode(portion)
            round_.mark_ready(portion.index)
        for portion in PORTIONS:
            await arrived[portion.index].wait()
            carrier.decode(portion)
        sums.append(gradient.copy())
    exchange.end()
    await running
    return sums, comm.bytes + (comm.second.bytes if comm.second else 0)


@pytest.mark.mpi
@pytest.mark.parametrize("credit", [1, 2, 6])
@pytest.mark.parametrize("wire", WIRES)
def test_every_rank_ends_with_the_bits_that_numpy_has(wire, credit):
    ranks = MPI.COMM_WORLD.size
    sums, _ = run(lambda world: train(world, wire, credit))
    is_statistic = np.arange(SIZE)
    is_statistic = (is_statistic >= STATISTICS.start) & (is_statistic < STATISTICS.stop)
    expected = NumpyFormat(wire, ranks, SIZE, is_statistic, keep=0.05)
    for step, total in enumerate(sums):
        held = np.array([gradients(rank, step) for rank in range(ranks)])
        wanted = expected.add_up(held, [slice(p.start, p.stop) for p in PORTIONS])
        np.testing.assert_array_equal(total.view(np.uint32), wanted.view(np.uint32))
        require_equal_bits(total)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("wire", ["float16", "bfloat16"])
def test_half_the_bytes_of_the_best_all_reduce_leave_a_rank(wire):
    """Its own 2 (n - 1) / n of the gradient; more by slices rounded to whole lines, and the statistics."""
    ranks = MPI.COMM_WORLD.size
    _, sent = run(lambda world: train(world, wire, 2))
    best = STEPS * 2 * (ranks - 1) * SIZE * 4 / ranks
    lines = STEPS * len(PORTIONS) * 2 * (ranks - 1) * 64
    exact = STEPS * (ranks - 1) * (200 * 4 + 3 * 64)
    assert best / 2 <= everyones(np.array([sent])).mean() <= best / 2 + lines + exact


@pytest.mark.mpi(min_size=2)
def test_top_k_sends_the_fraction_that_it_keeps():
    ranks = MPI.COMM_WORLD.size
    _, sent = run(lambda world: train(world, "top_k", 2))
    elements = 0.05 * SIZE + len(PORTIONS)
    assert sent <= STEPS * (ranks - 1) * (8 * elements + 200 * 4 + 3 * 64)
