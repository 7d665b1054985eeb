"""Point-to-point and collective operations on one communicator, as futures."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from weft.runtime.message import buffers
from weft.runtime.message.receive import Status

from .talk import Talk, talk


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.arange(5.0), id="numbers"),
        pytest.param(np.arange(100_000, dtype=np.int16), id="more than an eager message"),
        pytest.param(np.empty(0), id="an empty array"),
        pytest.param(np.array(7), id="a zero-dimensional array"),
        pytest.param(np.asfortranarray(np.arange(6).reshape(2, 3)), id="Fortran order"),
        pytest.param(np.array(["2026-01-01"], "M8[s]"), id="dates"),
        pytest.param(np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]), id="records"),
        pytest.param(np.array([True, False]), id="truth values"),
        pytest.param(np.arange(3, dtype=np.float16), id="half floats"),
    ],
)
def test_an_array_goes_round_the_ring(array: NDArray[Any]) -> None:
    async def main(ranks: Talk) -> None:
        got = np.zeros_like(array)
        receive = ranks.comm.recv(got, source=ranks.left, tag=3)
        await ranks.comm.send(array, ranks.right, tag=3)
        assert await receive == Status(ranks.left, 3, array.size)
        np.testing.assert_array_equal(got, array)

    talk(main)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "u8", "c16"])
@pytest.mark.parametrize("op", ["sum", "prod", "max", "min"])
def test_allreduce(op: str, dtype: str) -> None:
    if dtype == "c16" and op in ("max", "min"):
        pytest.skip("complex numbers have no order")

    async def main(ranks: Talk) -> None:
        parts = [(np.arange(6).reshape(2, 3) + rank + 1).astype(dtype) for rank in range(ranks.size)]
        mine = parts[ranks.rank].copy()
        await ranks.comm.allreduce(mine, op)
        combine = {"sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min}[op]
        np.testing.assert_array_equal(mine, combine(parts, axis=0))

    talk(main)


def test_collectives() -> None:
    async def main(ranks: Talk) -> None:
        comm, rank, size = ranks.comm, ranks.rank, ranks.size
        everything = np.arange(4 * size, dtype=np.float32).reshape(size, 4)

        array = everything.copy() if rank == size - 1 else np.zeros_like(everything)
        await comm.broadcast(array, root=size - 1)
        np.testing.assert_array_equal(array, everything)

        array[:] = 0
        await comm.allgather(everything[rank], array)
        np.testing.assert_array_equal(array, everything)

        array[:] = 0
        await comm.gather(everything[rank], array if rank == 0 else None)
        np.testing.assert_array_equal(array, everything if rank == 0 else 0 * everything)

        share = np.empty(4, np.float32)
        await comm.reduce_scatter(everything * (rank + 1), share)
        np.testing.assert_array_equal(share, everything[rank] * sum(range(1, size + 1)))

        into = np.empty((size, 2), np.float32)
        await comm.alltoall(np.stack([[rank, dest] for dest in range(size)]).astype(np.float32), into)
        np.testing.assert_array_equal(into, [[source, rank] for source in range(size)])

        await comm.barrier()

    talk(main)


@pytest.mark.parametrize("dtype", ["f4", "f8", "g"])
@pytest.mark.parametrize("op", ["max", "min"])
def test_what_is_not_a_number_is_the_greatest_and_the_least_on_all_ranks(op: str, dtype: str) -> None:
    """By MPI's own operations one rank got it, and another the number beside it."""

    async def main(ranks: Talk) -> None:
        for size in (1, 5000):
            everyone = np.arange(ranks.size * size, dtype=dtype).reshape(ranks.size, size) % 7
            for rank in range(ranks.size):
                everyone[rank, rank :: ranks.size + 1] = np.nan
            array = everyone[ranks.rank].copy()
            await ranks.comm.allreduce(array, op)
            expected = getattr(np, op)(everyone, axis=0)
            np.testing.assert_array_equal(array, expected)
            share = np.zeros(1, dtype)
            await ranks.comm.reduce_scatter(np.full(ranks.size, everyone[ranks.rank, 0]), share, op)
            assert np.isnan(share[0])

    talk(main)


@pytest.mark.mpi(min_size=2)
def test_a_rank_that_no_longer_waits_for_a_split_keeps_nobody_from_it() -> None:
    async def main(ranks: Talk) -> None:
        comm, channel = ranks.comm, ranks.channel()
        splitting = asyncio.create_task(comm.split(0, name="parts"))
        if ranks.rank == 0:
            await asyncio.sleep(0)
            splitting.cancel()
            await asyncio.wait([splitting])
        else:
            assert await splitting is not None
            await channel.send(0)
        for _ in range(ranks.size - 1 if ranks.rank == 0 else 0):
            await channel.receive()
        await comm.barrier()

    talk(main)


def test_a_split_puts_ranks_of_one_color_together_in_the_order_of_their_keys() -> None:
    async def main(ranks: Talk) -> None:
        rank, size = ranks.rank, ranks.size
        part = await ranks.comm.split(rank % 2, -rank, name="parity")
        assert part is not None
        members = [other for other in reversed(range(size)) if other % 2 == rank % 2]
        assert [part.ranks.index(other) for other in members] == list(range(len(members)))
        assert part.rank == members.index(rank)
        total = np.array([float(rank)])
        await part.allreduce(total)
        assert total[0] == sum(members)
        again = await part.split(0, name="all of it")
        twice = await part.split(0, name="all of it")
        assert again is not None
        assert twice is not None
        assert [comm.group for comm in (part, again, twice)] == [
            "test/parity",
            "test/parity/all of it",
            "test/parity/all of it (2)",
        ]
        left_out = await ranks.comm.split(0 if rank == 0 else None, name="first")
        assert (left_out is None) == (rank != 0)
        await ranks.comm.barrier()
        for comm in (again, twice, part, left_out):
            if comm is not None:
                comm.free()

    talk(main)


def test_many_operations_are_under_way_at_once() -> None:
    async def main(ranks: Talk) -> None:
        comm = ranks.comm
        arrays = [np.full(1000 * i + 1, i + ranks.rank, np.float32) for i in range(30)]
        got = [np.empty_like(array) for array in arrays]
        reduced = [array.copy() for array in arrays]
        under_way = [comm.recv(g, ranks.left, tag=i) for i, g in reversed(list(enumerate(got)))]
        under_way += [comm.allreduce(array, what=f"portion {i}") for i, array in enumerate(reduced)]
        under_way += [comm.send(array, ranks.right, tag=i) for i, array in enumerate(arrays)]
        waits = [waiting.what for waiting in ranks.loop.mpi.pending()]
        assert waits[30] == "portion 0"
        assert len(waits) == 90
        await asyncio.gather(*under_way)
        for i in range(30):
            assert (got[i] == i + ranks.left).all()
            assert (reduced[i] == i * ranks.size + sum(range(ranks.size))).all()

    talk(main)


def test_buffers_live_as_long_as_mpi_needs_them() -> None:
    async def main(ranks: Talk) -> None:
        under_way = [ranks.comm.allreduce(np.full(100_000, i, np.float64)) for i in range(4)]
        await asyncio.gather(*under_way)
        # Nobody holds these arrays or futures but the selector:
        for i in range(4):
            ranks.comm.send(np.full(100_000, i, np.float64), ranks.right, tag=i)
        await asyncio.sleep(0)
        for i in range(4):
            got = np.empty(100_000)
            await ranks.comm.recv(got, ranks.left, tag=i)
            assert (got == i).all()
        while ranks.loop.mpi.pending():
            await asyncio.sleep(0)

    talk(main)


def test_a_cancelled_collective_goes_on_behind_the_scenes() -> None:
    async def main(ranks: Talk) -> None:
        array = np.ones(10)
        future = ranks.comm.allreduce(array)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        await ranks.comm.barrier()
        while ranks.loop.mpi.pending():
            await asyncio.sleep(0)
        assert (array == ranks.size).all()

    talk(main)


# -- more than a C int can count -------------------------------------------------------------------


def test_arrays_above_the_largest_count_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "LARGEST_COUNT", 10)
    monkeypatch.setattr(buffers, "PIECE_BYTES", 7)
    buffers._whole.cache_clear()

    async def main(ranks: Talk) -> None:
        comm, size = ranks.comm, ranks.size
        array = np.arange(25.0)
        await comm.allreduce(array)
        assert (array == size * np.arange(25.0)).all()
        got = np.zeros(30)
        receive = comm.recv(got, ranks.left)
        await comm.send(array, ranks.right)
        assert (await receive).count == 25
        assert (got[:25] == array).all()
        gathered = np.zeros((size, 25))
        await comm.allgather(array, gathered)
        assert (gathered == array).all()
        gathered[:] = 0
        await comm.gather(array, gathered if ranks.rank == 0 else None)
        assert (gathered == array).all() == (ranks.rank == 0)
        array = array if ranks.rank == 0 else np.zeros(25)
        await comm.broadcast(array)
        assert (array == gathered[0]).all() or ranks.rank
        assert array[3] == 3 * size

    try:
        talk(main)
    finally:
        buffers._whole.cache_clear()
