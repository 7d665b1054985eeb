"""What a message looks like in bytes: a fixed prefix, a msgpack header, and arrays as raw frames.

    ┌────────┬─────────────────────────────────┬─────────┬─────────┐
    │ prefix │ header: msgpack body, and each  │ frame 0 │ frame 1 │ ...
    │ 36 B   │ array's dtype, shape and order  │ raw     │ raw     │
    └────────┴─────────────────────────────────┴─────────┴─────────┘

Up to `EAGER_BYTES` all of it is one MPI message. Beyond, the prefix travels alone (with the header, if
that fits) and what is left follows in messages of its own, arrays straight from and into their memory.

A body is whatever msgpack knows: None, bool, int (64 bits), float, str, bytes, and lists and dicts of these.
Tuples arrive as lists, but for keys. Nothing is ever pickled, so nothing that arrives is ever executed.
An array keeps its dtype (structured ones, byte order, datetimes and text included), shape and order; one
with a mask is refused.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..errors import Mistake

Bytes = NDArray[np.uint8]

#: The largest message that travels as one piece. Its copy (16 KiB in about 1 us) costs less than a
#: second MPI message would.
EAGER_BYTES = 16 * 1024

#: kind, (one byte free), number of arrays, bytes of the header, tag of the messages that follow (0: all of
#: it is here), channel, number of the request, bytes of the arrays.
PREFIX = struct.Struct("<BxHIIQQQ")
MOST_ARRAYS = 2**16 - 1


def encode(body: Any, arrays: Sequence[NDArray[Any]]) -> tuple[bytes, list[Bytes]]:
    """The header and the frames of a message; frames are views of the arrays' memory where possible.

    An array that is contiguous in neither order is copied. Mistake if a body or an array can't travel.
    """
    if not arrays:
        return _pack(body), []
    descriptions, frames = [], []
    for array in arrays:
        description, frame = describe(array)
        descriptions.append(description)
        frames.append(frame)
    return _pack([body, descriptions]), frames


def decode(header: bytes | bytearray | memoryview, arrays: int) -> tuple[Any, list[NDArray[Any]]]:
    """The body, and new arrays (uninitialised) whose `as_bytes` are to be filled with the frames."""
    try:
        content = msgpack.unpackb(header, strict_map_key=False)
    except (
        TypeError,
        UnicodeDecodeError,
    ):  # a tuple that was a key came as a list; or a name that is no text
        content = msgpack.unpackb(
            header, strict_map_key=False, object_pairs_hook=_with_keys, unicode_errors=ESCAPE
        )
    if not arrays:
        return content, []
    body, descriptions = content
    return body, [allocate(description) for description in descriptions]


def describe(array: NDArray[Any]) -> tuple[list[Any], Bytes]:
    """(dtype, shape, order) of an array, and its bytes."""
    if type(array) is not np.ndarray and isinstance(array, np.ma.MaskedArray):
        raise Mistake(
            f"an array with a mask can't be sent ({array.dtype} of shape {array.shape}): what the mask hides"
            " would arrive as if it counted; send array.filled(value), or array.data and"
            " numpy.ma.getmaskarray(array)"
        )
    array = np.asarray(array)
    order = "C"
    if not array.flags.c_contiguous:
        if array.flags.f_contiguous:
            order = "F"
        else:
            array = array.copy(order="C")
    return [_dtype_name(array.dtype), array.shape, order], as_bytes(array)


def allocate(description: Sequence[Any]) -> NDArray[Any]:
    """A new array of that dtype, shape and order; its contents are arbitrary."""
    dtype, shape, order = description
    if type(dtype) is not str:
        dtype = npy.descr_to_dtype(_tuples(dtype))
    return np.empty(shape, dtype, order)


def as_bytes(array: NDArray[Any]) -> Bytes:
    """A flat view of the memory of an array that is contiguous in either order."""
    if array.nbytes == 0:
        return np.empty(0, np.uint8)
    flat: Bytes = array.reshape(-1, order="A").view(np.uint8)
    return flat


def _with_keys(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    return {_key(key): value for key, value in pairs}


def _key(key: Any) -> Any:
    return tuple(map(_key, key)) if isinstance(key, list) else key


def _pack(content: Any) -> bytes:
    packer = _own.packer
    try:
        try:
            packed: bytes = packer.pack(content)
        except UnicodeEncodeError:
            packer.reset()
            packed = msgpack.packb(content, default=_plain, unicode_errors=ESCAPE)
    except (TypeError, ValueError, OverflowError, BufferError) as error:  # (a memoryview's gaps: the last)
        packer.reset()
        raise Mistake(
            f"a message's body can't be sent: {error}; it may hold None, bool, int (64 bits), float, str, "
            "bytes, and lists and dicts of these; arrays go behind the body"
        ) from error
    return packed


def _plain(value: Any) -> Any:
    # A loss or an index taken out of an array. No time, whose item is one, or a bare number, by its unit.
    if isinstance(value, np.generic) and value.dtype.kind not in "mM":
        return value.item()
    raise TypeError(f"{value!r:.80} is of type {type(value).__name__}")


ESCAPE = "surrogateescape"
"""What a file's name has that is no text is kept in its `str`, and travels (PEP 383)."""


class _Packers(threading.local):
    """One for each thread: a NumPy scalar is packed by Python, and meanwhile another thread may go on."""

    def __init__(self) -> None:
        self.packer = msgpack.Packer(default=_plain)


_own = _Packers()


def _dtype_name(dtype: np.dtype[Any]) -> Any:
    if dtype.names is None and dtype.kind in "biufcmMSU":
        return dtype.str
    if dtype.hasobject or dtype.kind not in "V":
        raise Mistake(
            f"an array of dtype {dtype} can't be sent: its elements are Python objects; "
            "convert it to numbers, fixed-width text or bytes, or put its contents into the body"
        )
    if dtype.names is None and dtype.subdtype is None and np.dtype(dtype.str) == dtype:
        return dtype.str
    try:
        description = npy.dtype_to_descr(dtype)
    except ValueError as error:
        raise Mistake(
            f"an array of dtype {dtype} can't be sent: {error}; convert it with "
            "numpy.lib.recfunctions.repack_fields, or send its fields"
        ) from error
    if npy.descr_to_dtype(description) != dtype:  # another library's, as bfloat16: it arrived as raw bytes
        raise Mistake(
            f"an array of dtype {dtype} can't be sent: NumPy alone does not know it; convert it, as by "
            "array.astype('float32'), or send its bytes, array.view('uint8'), and view them as it again"
        )
    return description


def _tuples(description: Any) -> Any:
    """Lists as msgpack returns them, as the (nested) list of tuples that NumPy wants."""
    fields = []
    for name, kind, *shape in description:
        name = tuple(name) if isinstance(name, list) else name
        kind = kind if isinstance(kind, str) else _tuples(kind)
        fields.append((name, kind, *(tuple(s) for s in shape)))
    return fields
