"""Awaitable point-to-point and collectives, against what NumPy computes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from numpy.typing import NDArray

from weft.runtime.errors import Mistake
from weft.runtime.message import buffers
from weft.runtime.message.communicator import ANY, Communicator, Status

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


def test_a_receive_from_any_rank_tells_who_sent_what() -> None:
    async def main(ranks: Talk) -> None:
        array = np.full(ranks.rank + 1, ranks.rank)
        sends = [ranks.comm.send(array, dest, tag=10 + ranks.rank) for dest in range(ranks.size)]
        seen = set()
        for _ in range(ranks.size):
            got = np.full(ranks.size + 5, -1)
            status = await ranks.comm.recv(got)
            assert status == Status(status.source, 10 + status.source, status.source + 1)
            assert (got[: status.count] == status.source).all()
            assert (got[status.count :] == -1).all()
            seen.add(status.source)
        assert seen == set(range(ranks.size))
        await asyncio.gather(*sends)

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


def test_blocks_that_do_not_divide_are_refused() -> None:
    async def main(ranks: Talk) -> None:
        with pytest.raises(Mistake, match=f"arrays of {ranks.size + 1} and {ranks.size + 2} bytes"):
            ranks.comm.alltoall(np.zeros(ranks.size + 1, np.uint8), np.zeros(ranks.size + 2, np.uint8))

    talk(main)


@pytest.mark.parametrize(
    ("dtype", "op"), [(">f8", "sum"), ("f2", "sum"), ("?", "max"), ("c16", "max")], ids=lambda value: value
)
def test_what_mpi_cannot_reduce_is_refused(dtype: str, op: str) -> None:
    async def main(ranks: Talk) -> None:
        with pytest.raises(Mistake, match=f"dtype {np.dtype(dtype)}"):
            ranks.comm.allreduce(np.zeros(3, dtype), op)

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


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda comm, rank: comm.send(np.zeros(1), rank), id="send"),
        pytest.param(lambda comm, rank: comm.recv(np.zeros(1), rank - 1), id="receive"),  # (-1 is any)
        pytest.param(lambda comm, rank: comm.broadcast(np.zeros(1), rank), id="broadcast"),
        pytest.param(lambda comm, rank: comm.gather(np.zeros(1), np.zeros(comm.size), rank), id="gather"),
    ],
)
def test_a_rank_that_there_is_not_is_refused(call: Callable[[Communicator, int], Any]) -> None:
    """MPICH takes -1 for MPI_PROC_NULL and -2 for MPI_ANY_SOURCE, Open MPI the other way round."""

    async def main(ranks: Talk) -> None:
        for rank in (-1, -2, ranks.size + 1):
            with pytest.raises(Mistake, match=rf"no rank .* in 'test': its ranks are 0 to {ranks.size - 1}"):
                call(ranks.comm, rank)

    talk(main)


@pytest.mark.parametrize(
    ("dtype", "rows", "columns"),
    [
        pytest.param("f8", 1, 2, id="a row too many"),
        pytest.param("f8", -1, 2, id="a row too few"),
        pytest.param("f8", 0, 3, id="rows too long"),
        pytest.param("f4", 0, 2, id="another type"),
        pytest.param("f4", 0, 4, id="another type of as many bytes"),
    ],
)
def test_arrays_that_are_not_a_share_of_each_rank_are_refused(dtype: str, rows: int, columns: int) -> None:
    async def main(ranks: Talk) -> None:
        comm, share = ranks.comm, np.zeros(2)
        array = np.zeros((ranks.size + rows, columns), dtype)
        for call in (
            lambda: comm.allgather(share, array),
            lambda: comm.gather(share, array, ranks.rank),
            lambda: comm.reduce_scatter(array, share),
        ):
            with pytest.raises(Mistake, match="one share of each rank"):
                call()
        with pytest.raises(Mistake, match="must not be None"):
            comm.gather(share, None, ranks.rank)

    talk(main)


@pytest.mark.parametrize(
    ("shape", "of_share", "of_array"),
    [
        pytest.param((2, 3), "F", "C", id="a share in Fortran order"),
        pytest.param((2, 3), "C", "F", id="an array in Fortran order"),
        pytest.param((5,), "C", "F", id="shares that are rows of an array in Fortran order"),
    ],
)
@pytest.mark.mpi(min_size=2)
def test_arrays_of_two_orders_are_refused(shape: tuple[int, ...], of_share: Any, of_array: Any) -> None:
    """They travel as bytes: what came was transposed, or strewn over the rows, without an error."""

    async def main(ranks: Talk) -> None:
        comm, one = ranks.comm, np.zeros(shape, order=of_share)
        array = np.zeros((ranks.size, *shape), order=of_array)
        for call in (
            lambda: comm.allgather(one, array),
            lambda: comm.gather(one, array, ranks.rank),
            lambda: comm.reduce_scatter(array, one),
        ):
            with pytest.raises(Mistake, match="do not lie alike; give both in C order"):
                call()

    talk(main)


def test_shares_in_fortran_order_lie_along_the_last_axis() -> None:
    async def main(ranks: Talk) -> None:
        share = np.asfortranarray(np.arange(6.0).reshape(2, 3) + 10 * ranks.rank)
        array = np.zeros((2, 3, ranks.size), order="F")
        await ranks.comm.allgather(share, array)
        for rank in range(ranks.size):
            np.testing.assert_array_equal(array[..., rank], np.arange(6.0).reshape(2, 3) + 10 * rank)

    talk(main)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    ("into", "why"),
    [
        pytest.param(lambda n: np.zeros(2 * n, "f8"), "float32 and float64; .* one type", id="another type"),
        pytest.param(lambda n: np.zeros((4, n), "f4", "F"), "do not lie alike", id="another order"),
        pytest.param(lambda n: [0.0] * (4 * n), r"was given \[0.0, 0.0", id="a list"),
    ],
)
def test_what_an_all_to_all_would_take_for_other_numbers_is_refused(into: Any, why: str) -> None:
    async def main(ranks: Talk) -> None:
        with pytest.raises(Mistake, match=why):
            ranks.comm.alltoall(np.zeros((ranks.size, 4), "f4"), into(ranks.size))

    talk(main)


@pytest.mark.parametrize(
    ("array", "why"),
    [
        pytest.param(np.ma.array([1.0, 2.0], mask=[0, 1]), "with a mask", id="one with a mask"),
        pytest.param(np.array([None, "a"]), "elements are Python objects", id="one of Python objects"),
        pytest.param([1.0, 2.0], r"was given \[1.0, 2.0\]", id="a list"),
        pytest.param(np.zeros(4)[::2], "not one piece of memory", id="one with gaps"),
    ],
)
def test_what_is_no_plain_array_is_refused(array: Any, why: str) -> None:
    """A masked value was added up; the address of an object travelled, and crashed who looked there."""

    async def main(ranks: Talk) -> None:
        comm, plain = ranks.comm, np.zeros(2)
        for call in (
            lambda: comm.send(array, 0),
            lambda: comm.recv(array, 0),
            lambda: comm.allreduce(array),
            lambda: comm.broadcast(array),
            lambda: comm.allgather(array, plain),
        ):
            with pytest.raises(Mistake, match=why):
                call()

    talk(main)


def test_an_array_that_is_read_only_is_sent_and_not_received_into() -> None:
    async def main(ranks: Talk) -> None:
        comm, rank = ranks.comm, ranks.rank
        share, array = np.full(1, float(rank)), np.zeros(ranks.size)
        fixed, all_fixed = share.copy(), array.copy()
        fixed.flags.writeable = all_fixed.flags.writeable = False
        for call in (
            lambda: comm.recv(fixed, rank),
            lambda: comm.allreduce(fixed),
            lambda: comm.broadcast(fixed, (rank + 1) % ranks.size) if ranks.size > 1 else comm.recv(fixed),
            lambda: comm.allgather(share, all_fixed),
            lambda: comm.gather(share, all_fixed, rank),
            lambda: comm.reduce_scatter(array, fixed),
            lambda: comm.alltoall(array, all_fixed),
        ):
            with pytest.raises(Mistake, match=r"read-only: give array\.copy\(\)"):
                call()
        arriving = comm.recv(share, rank)
        await asyncio.gather(comm.send(fixed, rank), arriving)
        await comm.broadcast(fixed if rank == 0 else share, 0)
        await comm.allgather(fixed, array)
        assert array.tolist() == list(range(ranks.size))

    talk(main)


@pytest.mark.parametrize("color", [-1, 1.5, "a"])
def test_a_color_that_is_none_is_refused_before_anybody_waits_for_its_rank(color: Any) -> None:
    async def main(ranks: Talk) -> None:
        with pytest.raises(Mistake, match=f"a color of {color!r}; give 0 or more, or None"):
            await ranks.comm.split(color, name="parts")

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


# -- cancelling ------------------------------------------------------------------------------------


def test_a_receive_that_times_out_leaves_the_next_message_alone() -> None:
    async def main(ranks: Talk) -> None:
        unused = np.full(3, -1.0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await ranks.comm.recv(unused, ranks.left)
        await ranks.comm.barrier()
        got = np.empty(3)
        sent = ranks.comm.send(np.arange(3.0), ranks.right)
        await ranks.comm.recv(got, ranks.left)
        await sent
        assert (got == np.arange(3)).all()
        assert (unused == -1).all()

    talk(main)


@pytest.mark.parametrize("numbers", [3, 100_000], ids=["small", "large"])
def test_a_message_that_came_for_a_cancelled_receive_goes_to_the_next(numbers: int) -> None:
    async def main(ranks: Talk) -> None:
        lost, got = np.empty(numbers), np.empty(numbers)
        first = ranks.comm.recv(lost, ranks.left)
        sent = ranks.comm.send(np.arange(numbers, dtype=np.float64), ranks.right)
        MPI.COMM_WORLD.Barrier()  # inside MPI, behind the loop's back: the message may have come
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        lost[:] = -1
        status = await ranks.comm.recv(got, ranks.left)
        assert status == Status(ranks.left, 0, numbers)
        assert (got == np.arange(numbers)).all()
        await sent

    talk(main)


def test_a_message_that_came_for_a_cancelled_receive_goes_to_one_that_waits() -> None:
    async def main(ranks: Talk) -> None:
        first, second, third = np.zeros(2), np.zeros(2), np.zeros(2)
        cancelled = ranks.comm.recv(first, ranks.left)
        waiting = ranks.comm.recv(second, ANY, tag=0)
        other = ranks.comm.recv(third, ranks.left, tag=5)
        ranks.comm.send(np.array([1.0, 2.0]), ranks.right)
        MPI.COMM_WORLD.Barrier()
        cancelled.cancel()
        status = await waiting
        assert status == Status(ranks.left, 0, 2)
        assert (second == [1.0, 2.0]).all()
        await ranks.comm.send(np.array([3.0]), ranks.right, tag=5)
        assert (await other).count == 1
        assert cancelled.cancelled()

    talk(main)


def test_cancelled_receivers_of_a_stream_lose_nothing_and_keep_the_order() -> None:
    async def main(ranks: Talk) -> None:
        count = 300
        got: list[int] = []
        random = np.random.default_rng(ranks.rank)

        async def receive() -> None:
            array = np.empty(1, np.int64)
            while len(got) < count:
                await ranks.comm.recv(array, ranks.left)
                got.append(int(array[0]))

        async def send() -> None:
            for i in range(count):
                await ranks.comm.send(np.array([i]), ranks.right)
                if random.random() < 0.3:
                    await asyncio.sleep(0)

        sending = asyncio.create_task(send())
        while len(got) < count:
            receiving = asyncio.create_task(receive())
            for _ in range(random.integers(1, 6)):
                await asyncio.sleep(0)
            receiving.cancel()
            await asyncio.wait([receiving])
        await sending
        assert got == list(range(count))

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


# -- mistakes --------------------------------------------------------------------------------------


def test_a_reduction_that_mpi_does_not_have_is_refused() -> None:
    async def main(ranks: Talk) -> None:
        with pytest.raises(Mistake, match="there are sum, max, min, prod"):
            ranks.comm.allreduce(np.zeros(3), "mean")
        with pytest.raises(Mistake, match="float16; convert"):
            ranks.comm.allreduce(np.zeros(3, np.float16))
        with pytest.raises(Mistake, match="ascontiguousarray"):
            ranks.comm.send(np.zeros((4, 4))[:, 1], 0)

    talk(main)


@pytest.mark.mpi(min_size=2)
def test_a_message_longer_than_its_array_fails_its_own_receive_only() -> None:
    async def main(ranks: Talk) -> None:
        channel = ranks.channel()
        if ranks.rank == 0:
            short, enough = np.zeros(2), np.zeros(4)
            first = ranks.comm.recv(short, 1, what="the short one")
            second = ranks.comm.recv(enough, 1)
            # All that rank 1 sends is there when it is looked at: it ends in one test.
            MPI.COMM_WORLD.Barrier()
            # (MPICH's own text names both sizes the wrong way round, Open MPI's none.)
            with pytest.raises(Mistake, match="longer than the array for it, of 16 bytes: the short one"):
                await first
            await second
            assert (enough == 2).all()
            for i in range(3):
                assert (await channel.receive(1)).body == i
        elif ranks.rank == 1:
            sends = [ranks.comm.send(np.ones(4), 0), ranks.comm.send(np.full(4, 2.0), 0)]
            await channel.send(0, 0)
            MPI.COMM_WORLD.Barrier()
            await channel.send(0, 1)
            await channel.send(0, 2)
            await asyncio.gather(*sends)
        else:
            MPI.COMM_WORLD.Barrier()

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
