"""The protocol's datatypes, and the arrays that hold them.

NumPy knows no bfloat16: a BF16 tensor is an array of float32, and on the wire the upper half of each. BYTES
are arrays of objects of type bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ..request import Array

BF16: Final = "BF16"
BYTES: Final = "BYTES"

# Little-endian, as the wire has it.
DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    BF16: np.dtype("<f4"),
    BYTES: np.dtype(object),
}
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items() if name != BF16}


def datatype_of(array: Array) -> str:
    """The datatype that an output has by its array; KeyError if the protocol has none."""
    return BYTES if array.dtype.kind in "OSU" else _NAMES[array.dtype.newbyteorder("<")]


def bfloat16_bits(array: Array) -> Array:
    """The uint16 bits of float32 values as bfloat16, to nearest, ties to even; infinities and NaNs stay."""
    bits = np.ascontiguousarray(array, "<f4").view("<u4")
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    # Rounding would carry a NaN's low bits into infinity: 0x40 keeps it a (quiet) NaN.
    return np.where(np.isnan(array), (bits >> 16).astype("<u2") | np.uint16(0x40), rounded)


def from_bfloat16_bits(bits: Array) -> Array:
    """The float32 values of bfloat16 bits: exact."""
    return (bits.astype("<u4") << 16).view("<f4")
