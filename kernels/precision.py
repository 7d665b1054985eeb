"""float16 and bfloat16 for gradients on the wire: half the bytes, and what rounding loses is sent later.

    encode      total = values + residual      code = total, rounded      residual = total - code
    add_up      into = code of rank 0 + code of rank 1 + …                 in float32, in this order

The residual is error feedback (Seide et al., 1-bit SGD, Interspeech 2014): every rank keeps what its code
left out and adds it to the next step's gradient, so that over steps nothing is lost, however small. SGD then
converges at the rate of exact gradients (Karimireddy et al., arXiv 1901.09847). Their argument is for SGD:
Adam also looks at the gradients' squares, in which errors of different steps do not cancel.

Rounding is to nearest, ties to even. A finite total beyond the largest finite code becomes that code, not
infinity: the rest stays in the residual and follows in the next steps, where an infinity would end the run.
An infinity or a NaN among the values stays one, so that a run that diverged shows.

Codes are the formats' 16 bits in arrays of uint16: NumPy knows no bfloat16, numba no float16. The loops round
with integer operations, which LLVM vectorises: from cache, one Zen 5 core encodes 19 GB/s of float32 to
float16 and 31 to bfloat16, and adds up 50 and 70. NumPy's astype to float16 makes 0.8, back 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .compiled import ORDERED, FastPath, fast_path, jit
from .device import array_module
from .elementary import bits, from_bits
from .kernel import Array

LARGEST_FLOAT16 = 65504.0
LARGEST_BFLOAT16 = float(2.0**127 * (2 - 2**-7))

_word = np.int32  # numba makes the sum of two int32 an int64, unless told at every step


def encode_float16(values: Array, residual: Array, out: Array) -> None:
    """out (uint16) = float16 bits of values + residual (float32, flat); residual = what they lack."""
    _check("encode_float16", values, residual, out)
    _encode_float16(values, residual, out)


def encode_bfloat16(values: Array, residual: Array, out: Array) -> None:
    """out (uint16) = bfloat16 bits of values + residual (float32, flat); residual = what they lack."""
    _check("encode_bfloat16", values, residual, out)
    _encode_bfloat16(values, residual, out)


def add_up_float16(into: Array, parts: Sequence[Array]) -> None:
    """into (float32) = parts[0] + parts[1] + … in this order, parts (uint16) being float16 bits."""
    _add_up("add_up_float16", _decode_float16, _add_float16, into, parts)


def add_up_bfloat16(into: Array, parts: Sequence[Array]) -> None:
    """into (float32) = parts[0] + parts[1] + … in this order, parts (uint16) being bfloat16 bits."""
    _add_up("add_up_bfloat16", _decode_bfloat16, _add_bfloat16, into, parts)


def _check(name: str, values: Array, residual: Array, out: Array) -> None:
    if (
        not values.shape == residual.shape == out.shape
        or not values.dtype == residual.dtype == np.float32
        or out.dtype != np.uint16
    ):
        found = ", ".join(f"{a.shape} {a.dtype}" for a in (values, residual, out))
        raise ValueError(
            f"{name}: values, residual and out are {found}; give float32, float32 and uint16 of one shape"
        )


def _add_up(
    name: str,
    decode: FastPath[[Array, Array], None],
    add: FastPath[[Array, Array], None],
    into: Array,
    parts: Sequence[Array],
) -> None:
    if into.dtype != np.float32 or not parts:
        raise ValueError(f"{name}: {len(parts)} parts into {into.dtype}; give one or more, and float32")
    for part in parts:
        if part.shape != into.shape or part.dtype != np.uint16:
            raise ValueError(
                f"{name}: a part is {part.shape} {part.dtype}; it should be {into.shape} uint16, as the sum"
            )
    decode(parts[0], into)
    for part in parts[1:]:
        add(part, into)


@jit(fastmath=ORDERED)
def _float16_bits(x: Any) -> Any:
    """Fabian Giesen's float_to_half (gist 2156668): three ranges, all computed, one selected."""
    word = bits(x)
    size = _word(word & _word(0x7FFFFFFF))
    # The exponent less 112; half of the 13 bits that go is added, a little less where that rounds to even.
    odd = _word(_word(size >> _word(13)) & _word(1))
    normal = _word(_word(size - _word((112 << 23) - 0xFFF)) + odd) >> _word(13)
    # The last place of 0.5 in float32 is the smallest of float16: adding it makes the processor round.
    small = _word(bits(from_bits(size) + np.float32(0.5)) - _word(0x3F000000))
    code = min(small if size < _word(113 << 23) else _word(normal), _word(0x7BFF))
    if size >= _word(0x7F800000):
        code = _word(0x7C00) if size == _word(0x7F800000) else _word(0x7E00)
    return _word(code | _word(_word(word >> _word(16)) & _word(0x8000)))


@jit(fastmath=ORDERED)
def _from_float16_bits(code: Any) -> Any:
    size = _word(_word(code & _word(0x7FFF)) << _word(13))
    exponent = _word(size & _word(0x0F800000))
    normal = from_bits(_word(size + _word(112 << 23)))
    small = from_bits(_word(size + _word(113 << 23))) - np.float32(2.0**-14)
    special = from_bits(_word(size + _word(224 << 23)))
    value = small if exponent == 0 else special if exponent == _word(0x0F800000) else normal
    return from_bits(_word(bits(value) | _word(_word(code & _word(0x8000)) << _word(16))))


@jit(fastmath=ORDERED)
def _bfloat16_bits(x: Any) -> Any:
    word = bits(x)
    size = _word(word & _word(0x7FFFFFFF))
    odd = _word(_word(size >> _word(16)) & _word(1))
    code = _word(_word(_word(size + _word(0x7FFF)) + odd) >> _word(16))
    code = min(code, _word(0x7F7F))
    if size >= _word(0x7F800000):
        code = _word(0x7F80) if size == _word(0x7F800000) else _word(0x7FC0)
    return _word(code | _word(_word(word >> _word(16)) & _word(0x8000)))


@jit(fastmath=ORDERED)
def _from_bfloat16_bits(code: Any) -> Any:
    return from_bits(_word(code << _word(16)))


def _encode_float16_arrays(values: Array, residual: Array, out: Array) -> None:
    xp = array_module(values)
    total = values + residual
    bounded = xp.clip(total, -LARGEST_FLOAT16, LARGEST_FLOAT16)
    code = xp.where(xp.isinf(total), total, bounded).astype("float16")
    out[...] = code.view("uint16")
    residual[...] = total - code.astype("float32")


@fast_path(oracle=_encode_float16_arrays)
@jit(fastmath=ORDERED)
def _encode_float16(values: Array, residual: Array, out: Array) -> None:
    for i in range(values.size):
        total = values[i] + residual[i]
        code = _float16_bits(total)
        out[i] = np.uint16(code)
        residual[i] = total - _from_float16_bits(code)


def _decode_float16_arrays(part: Array, into: Array) -> None:
    into[...] = part.view("float16")


@fast_path(oracle=_decode_float16_arrays)
@jit(fastmath=ORDERED)
def _decode_float16(part: Array, into: Array) -> None:
    for i in range(part.size):
        into[i] = _from_float16_bits(_word(part[i]))


def _add_float16_arrays(part: Array, into: Array) -> None:
    into += part.view("float16").astype("float32")


@fast_path(oracle=_add_float16_arrays)
@jit(fastmath=ORDERED)
def _add_float16(part: Array, into: Array) -> None:
    for i in range(part.size):
        into[i] += _from_float16_bits(_word(part[i]))


def _encode_bfloat16_arrays(values: Array, residual: Array, out: Array) -> None:
    xp = array_module(values)
    total = values + residual
    bounded = xp.where(xp.isinf(total), total, xp.clip(total, -LARGEST_BFLOAT16, LARGEST_BFLOAT16))
    word = bounded.view("uint32")
    rounded = (word + 0x7FFF + (word >> 16 & 1)) >> 16
    out[...] = xp.where(xp.isnan(total), 0x7FC0, rounded)
    residual[...] = total - _bfloat16_arrays(out)


@fast_path(oracle=_encode_bfloat16_arrays)
@jit(fastmath=ORDERED)
def _encode_bfloat16(values: Array, residual: Array, out: Array) -> None:
    for i in range(values.size):
        total = values[i] + residual[i]
        code = _bfloat16_bits(total)
        out[i] = np.uint16(code)
        residual[i] = total - _from_bfloat16_bits(code)


def _bfloat16_arrays(part: Array) -> Array:
    return (part.astype("uint32") << 16).view("float32")


def _decode_bfloat16_arrays(part: Array, into: Array) -> None:
    into[...] = _bfloat16_arrays(part)


@fast_path(oracle=_decode_bfloat16_arrays)
@jit(fastmath=ORDERED)
def _decode_bfloat16(part: Array, into: Array) -> None:
    for i in range(part.size):
        into[i] = _from_bfloat16_bits(_word(part[i]))


def _add_bfloat16_arrays(part: Array, into: Array) -> None:
    into += _bfloat16_arrays(part)


@fast_path(oracle=_add_bfloat16_arrays)
@jit(fastmath=ORDERED)
def _add_bfloat16(part: Array, into: Array) -> None:
    for i in range(part.size):
        into[i] += _from_bfloat16_bits(_word(part[i]))
