"""Tensors as they travel: JSON numbers, nested or flat, and the bytes of the binary tensor data extension.

    read_json    "data": [[1, 2], [3, 4]]  or  [1, 2, 3, 4]            ─┐
    read_binary  4 elements, little-endian, row-major, behind the JSON  ├─>  array of the declared shape
    write_json, write_binary                                            <─┘

Whatever the sender declares is checked against what it sent before anything of the declared size is made.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

import numpy as np

from ..request import Array, WrongInput
from .datatypes import BF16, BYTES, DTYPES, bfloat16_bits, from_bfloat16_bits
from .problem import shown

LENGTH: Final = struct.Struct("<I")  # before each element of BYTES

# What JSON may hold for an array of this kind. (For Python True is an int; the protocol's BOOL has its own.)
_ELEMENTS: Final[dict[str, set[type]]] = {
    "b": {bool},
    "u": {int},
    "i": {int},
    "f": {int, float},
    "O": {str},
}


def read_json(name: str, datatype: str, shape: Sequence[int], data: Any) -> Array:
    """The array of an input whose numbers stand in the JSON."""
    flat = _flat(name, shape, data)
    dtype = DTYPES[datatype]
    if foreign := set(map(type, flat)) - _ELEMENTS[dtype.kind]:
        element = next(element for element in flat if type(element) in foreign)
        told = "null" if element is None else shown(element)  # among numbers it is no absence
        raise WrongInput(f"input {name!r}: data of {datatype} holds {told}")
    try:
        if datatype == BYTES:
            return _objects([text.encode() for text in flat]).reshape(shape)
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype).reshape(shape)
            if datatype == BF16:
                array = from_bfloat16_bits(bfloat16_bits(array))
    except (OverflowError, UnicodeEncodeError, ValueError) as error:
        raise WrongInput(f"input {name!r}: data does not fit {datatype} {list(shape)}: {error}") from None
    if dtype.kind == "f" and not _finite(array):
        raise WrongInput(f"input {name!r}: data holds a number beyond {datatype}")
    return array


def read_binary(name: str, datatype: str, shape: Sequence[int], raw: memoryview) -> Array:
    """The array of an input whose bytes are `raw`, without a copy where it can: it may be read-only."""
    if datatype == BYTES:
        return _read_strings(name, shape, raw)
    wire = np.dtype("<u2") if datatype == BF16 else DTYPES[datatype]
    if math.prod(shape) * wire.itemsize != len(raw):
        size = math.prod(shape) * wire.itemsize
        raise WrongInput(
            f"input {name!r}: {datatype} {list(shape)} takes {size} bytes, binary_data_size is {len(raw)}"
        )
    array = np.frombuffer(raw, wire)
    if datatype == BF16:
        array = from_bfloat16_bits(array)
    elif wire.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        raise WrongInput(f"input {name!r}: a byte of BOOL is 0 or 1, here is {array.view(np.uint8).max()}")
    elif not array.flags.aligned:  # the JSON before it has any length
        array = array.copy()
    return _shaped(name, array, shape)


def write_json(name: str, datatype: str, array: Array) -> list[str] | Array:
    """Flat, as the protocol's own examples have it: what messages.py writes as a list."""
    if datatype == BYTES:
        try:
            return [_bytes(element).decode() for element in array.flat]
        except UnicodeDecodeError:
            raise WrongInput(
                f"output {name!r} is not UTF-8, as JSON's text is: ask for it as binary data"
            ) from None
    if array.dtype.kind == "f" and not _finite(array):
        raise WrongInput(
            f"output {name!r} holds NaN or an infinity, which JSON lacks: ask for it as binary data"
        )
    return np.ascontiguousarray(array, array.dtype.newbyteorder("=")).ravel()


def write_binary(datatype: str, array: Array) -> bytes:
    """The bytes of an output."""
    if datatype == BYTES:
        return b"".join(LENGTH.pack(len(text)) + text for text in map(_bytes, array.flat))
    if datatype == BF16:
        return bfloat16_bits(array).tobytes()
    return array.astype(DTYPES[datatype], copy=False).tobytes()


def _flat(name: str, shape: Sequence[int], data: Any) -> list[Any]:
    """The elements in row-major order; nested data must have the declared shape."""
    if not isinstance(data, list):
        raise WrongInput(f"input {name!r}: data is a list, not {shown(data)}")
    rows = data
    if data and isinstance(data[0], list):
        rows = [data]
        for axis, extent in enumerate(shape):
            if any(not isinstance(row, list) or len(row) != extent for row in rows):
                raise WrongInput(
                    f"input {name!r}: nested data is not {extent} long everywhere on axis {axis}"
                )
            rows = list(chain.from_iterable(rows))
    if len(rows) != math.prod(shape):
        raise WrongInput(
            f"input {name!r}: shape {list(shape)} takes {math.prod(shape)} numbers, data has {len(rows)}"
        )
    return rows


def _read_strings(name: str, shape: Sequence[int], raw: memoryview) -> Array:
    elements: list[bytes] = []
    place = 0
    while place < len(raw):
        start = place + LENGTH.size
        length = LENGTH.unpack_from(raw, place)[0] if start <= len(raw) else 0
        place = start + length
        if place > len(raw):
            raise WrongInput(
                f"input {name!r}: element {len(elements)} of BYTES reaches beyond binary_data_size"
            )
        elements.append(bytes(raw[start:place]))
    if len(elements) != math.prod(shape):
        wanted = math.prod(shape)
        raise WrongInput(f"input {name!r}: {list(shape)} takes {wanted} elements, here are {len(elements)}")
    return _shaped(name, _objects(elements), shape)


def _objects(elements: list[bytes]) -> Array:
    array: Array = np.empty(len(elements), object)
    array[:] = elements
    return array


def _finite(array: Array) -> bool:
    """Whether all are numbers; of few ones `all()` takes 2 us longer, in Python."""
    return bool(np.logical_and.reduce(np.isfinite(array), axis=None))


def _shaped(name: str, array: Array, shape: Sequence[int]) -> Array:
    try:
        return array.reshape(shape)
    except ValueError as error:  # empty, with extents that NumPy can't count
        raise WrongInput(f"input {name!r}: shape {list(shape)}: {error}") from None


def _bytes(element: Any) -> bytes:
    return element if isinstance(element, bytes) else str(element).encode()
