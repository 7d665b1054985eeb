"""Arrays as MPI takes them: one piece of memory, as bytes whatever their type, of any length."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from ..errors import Mistake

#: Reductions by name.
OPERATIONS = {"sum": MPI.SUM, "max": MPI.MAX, "min": MPI.MIN, "prod": MPI.PROD}
#: MPI before version 4 (Open MPI 5 among them) counts in C ints.
LARGEST_COUNT = 2**31 - 1
#: What larger messages are made of.
PIECE_BYTES = 2**30


def raw(array: NDArray[Any], blocks: int = 1) -> list[Any]:
    """`array` as MPI moves it: its bytes, whatever its type and order (in `blocks` equal parts).

    What is too large to be counted in bytes is one element of a type that large.
    """
    contiguous(array)
    nbytes = array.nbytes // blocks
    return [array, MPI.BYTE] if nbytes <= LARGEST_COUNT else [array, 1, _whole(nbytes)]


def countable(array: NDArray[Any]) -> list[NDArray[Any]]:
    """The array in pieces whose elements MPI can count, nearly always itself."""
    if array.size <= LARGEST_COUNT:
        return [array]
    flat = array.reshape(-1, order="A")
    return [flat[at : at + LARGEST_COUNT] for at in range(0, flat.size, LARGEST_COUNT)]


def contiguous(array: NDArray[Any]) -> None:
    """Mistake if the array is not one piece of memory (which is what MPI works on)."""
    if not array.flags.forc:
        raise Mistake(
            f"an array of shape {array.shape} with strides {array.strides} is not one piece of memory; "
            "pass numpy.ascontiguousarray(array), or receive into a new array and copy"
        )


@functools.cache  # a few sizes a program; a type is a handful of bytes
def _whole(nbytes: int) -> MPI.Datatype:
    """A type of one element with `nbytes` bytes, more than a C int can count."""
    pieces, rest = divmod(nbytes, PIECE_BYTES)
    piece = MPI.BYTE.Create_contiguous(PIECE_BYTES)
    whole = MPI.Datatype.Create_struct([pieces, rest], [0, pieces * PIECE_BYTES], [piece, MPI.BYTE])
    piece.Free()
    return whole.Commit()


def reduction_named(op: str, array: NDArray[Any]) -> MPI.Op:
    """The MPI operation of that name; Mistake if there is none or it cannot reduce such arrays."""
    if op not in OPERATIONS:
        raise Mistake(f"unknown reduction {op!r}; there are {', '.join(OPERATIONS)}")
    if array.dtype.kind not in "iufc" or array.dtype == np.float16 or not array.dtype.isnative:
        raise Mistake(
            f"MPI cannot reduce arrays of dtype {array.dtype}; convert to float32, float64 or an integer type"
        )
    if array.dtype.kind == "c" and op in ("max", "min"):
        raise Mistake(f"{op!r} of dtype {array.dtype}: complex numbers have no order; reduce their parts")
    contiguous(array)
    return OPERATIONS[op]
