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
    """Mistake if the array is not numbers in one piece of memory (which is what MPI works on).

    What a mask hides was added up as if it counted. Of Python objects their addresses travelled, and what was
    made of those on another rank was noise, or crashed it.
    """
    if type(array) is not np.ndarray:
        if isinstance(array, np.ma.MaskedArray):
            raise Mistake(
                f"an array with a mask ({array.dtype} of shape {array.shape}) was given to MPI, which knows "
                "no masks: give array.filled(value), or array.data and numpy.ma.getmaskarray(array)"
            )
        if not hasattr(array, "flags"):
            raise Mistake(
                f"MPI works on NumPy arrays; it was given {array!r:.80}: give numpy.array(...) of it"
            )
    if array.dtype.hasobject:
        raise Mistake(
            f"an array of dtype {array.dtype} was given to MPI: its elements are Python objects; convert it "
            "to numbers, or send them as the body of a channel's message"
        )
    if not array.flags.forc:
        raise Mistake(
            f"an array of shape {array.shape} with strides {array.strides} is not one piece of memory; "
            "pass numpy.ascontiguousarray(array), or receive into a new array and copy"
        )


def writable(array: NDArray[Any]) -> None:
    """Mistake if the array is not one piece of memory that may be written."""
    contiguous(array)
    if not getattr(array.flags, "writeable", True):  # (CuPy's have no such flag)
        raise Mistake(
            f"an array of {array.dtype} with shape {array.shape} is to be written, and is read-only: "
            "give array.copy()"
        )


def elements(array: NDArray[Any]) -> str:
    """What an array is made of, as in "<f8": all ranks are to give the same to a collective."""
    kind: str = array.dtype.str
    return kind if array.flags.c_contiguous else f"{kind} in Fortran order"


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
    if type(array) is not np.ndarray and hasattr(array, "__cuda_array_interface__"):
        # MPICH copies it to the host, what does not block of Open MPI knows host memory alone, and `extreme`
        # reads with NumPy what MPI hands it.
        raise Mistake(
            f"an array of {array.dtype} with shape {array.shape} on a GPU was given to a reduction; MPI "
            "reduces in host memory: give array.get(), and copy what comes of it back"
        )
    contiguous(array)
    if array.dtype.kind not in "iufc" or array.dtype == np.float16 or not array.dtype.isnative:
        raise Mistake(
            f"MPI cannot reduce arrays of dtype {array.dtype}; convert to float32, float64 or an integer type"
        )
    if array.dtype.kind == "c" and op in ("max", "min"):
        raise Mistake(f"{op!r} of dtype {array.dtype}: complex numbers have no order; reduce their parts")
    return extreme(op, array.dtype.str) if array.dtype.kind == "f" and op in EXTREMES else OPERATIONS[op]


EXTREMES = {"max": np.maximum, "min": np.minimum}


@functools.cache
def extreme(op: str, kind: str) -> MPI.Op:
    """The greatest or least of floats, of which one that is not a number (NaN) is both, as NumPy has it.

    By MPI's own of 1 and NaN it depends on the order which remains: MPICH 5.0.2 left the one to one rank and
    the other to the next, which so decided differently. On 2 ranks it takes as long as a sum, 60 us for 4
    floats and 3.7 ms for a million, or under Open MPI 10 us longer.
    """
    combine = EXTREMES[op]

    def reduce(these: Any, those: Any, _: MPI.Datatype) -> None:
        into = np.frombuffer(those, kind)
        combine(np.frombuffer(these, kind), into, out=into)

    return MPI.Op.Create(reduce, commute=True)
