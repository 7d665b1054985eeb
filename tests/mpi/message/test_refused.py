"""What MPI would take for something else is refused, on whatever rank it is given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from weft.runtime.errors import Mistake
from weft.runtime.message.communicator import Communicator

from .talk import Talk, talk


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


class OnGpu(np.ndarray[Any, Any]):
    """What tells CuPy's arrays from NumPy's."""

    __cuda_array_interface__ = None


@pytest.mark.parametrize("op", ["sum", "max"])
def test_what_lies_on_a_gpu_is_not_reduced(op: str) -> None:
    """The greatest of such was to be found by NumPy, in memory that the processor does not see."""

    async def main(ranks: Talk) -> None:
        with pytest.raises(Mistake, match=r"float32 with shape \(3,\) on a GPU .*: give array\.get\(\)"):
            ranks.comm.allreduce(np.zeros(3, np.float32).view(OnGpu), op)

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


def test_a_reduction_that_mpi_does_not_have_is_refused() -> None:
    async def main(ranks: Talk) -> None:
        with pytest.raises(Mistake, match="there are sum, max, min, prod"):
            ranks.comm.allreduce(np.zeros(3), "mean")
        with pytest.raises(Mistake, match="float16; convert"):
            ranks.comm.allreduce(np.zeros(3, np.float16))
        with pytest.raises(Mistake, match="ascontiguousarray"):
            ranks.comm.send(np.zeros((4, 4))[:, 1], 0)

    talk(main)
