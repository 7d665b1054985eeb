"""exp, tanh and erf for compiled loops: float32 polynomials that LLVM vectorises, libm in float64.

numba without Intel's SVML calls libm element by element: exp takes 1.80 ns an element there, 0.33 in NumPy,
0.13 as the polynomial below. float64 serves the tests' finite differences and is exact rather than fast.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, overload

from .compiled import ORDERED, jit


def _reinterpret(source: Any, target: Any) -> Any:
    """A compiled function that takes the bits of a `source` for a `target`."""

    def bitcast(_typing: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), generate

    return intrinsic(bitcast)


bits = _reinterpret(types.float32, types.int32)
from_bits = _reinterpret(types.int32, types.float32)


@jit(fastmath=ORDERED)
def _exp32(x: Any) -> Any:
    """Cephes' expf: 2**n p(r) with x = n ln 2 + r, |r| <= ln 2 / 2; adding 1.5 * 2**23 rounds to n."""
    x = min(max(x, np.float32(-88.0)), np.float32(88.7))  # n of -127 and 128 make 0 and infinity
    shifted = x * np.float32(1.44269504) + np.float32(12582912.0)
    n = shifted - np.float32(12582912.0)
    r = x - n * np.float32(0.693359375)
    r = r - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * (r * r) + r + np.float32(1.0)
    power = np.int32(bits(shifted) << np.int32(23))
    return p * from_bits(np.int32(power + np.int32(0x3F800000)))


@jit(fastmath=ORDERED)
def _tanh32(x: Any) -> Any:
    """x p(x²)/q(x²), Eigen's coefficients; exactly 1 beyond ±7.905."""
    c = min(max(x, np.float32(-7.905)), np.float32(7.905))
    z = c * c
    p = np.float32(-2.76076847742355e-16)
    p = p * z + np.float32(2.00018790482477e-13)
    p = p * z + np.float32(-8.60467152213735e-11)
    p = p * z + np.float32(5.12229709037114e-08)
    p = p * z + np.float32(1.48572235717979e-05)
    p = p * z + np.float32(6.37261928875436e-04)
    p = p * z + np.float32(4.89352455891786e-03)
    q = np.float32(1.19825839466702e-06)
    q = q * z + np.float32(1.18534705686654e-04)
    q = q * z + np.float32(2.26843463243900e-03)
    q = q * z + np.float32(4.89352518554385e-03)
    inside = c * p / q
    return (
        np.float32(1.0) if x > np.float32(7.905) else np.float32(-1.0) if x < np.float32(-7.905) else inside
    )


@jit(fastmath=ORDERED)
def _erf32(x: Any) -> Any:
    """x p(x²)/q(x²), Eigen's coefficients; exactly 1 beyond ±4, so that GELU of a large negative is 0."""
    c = min(max(x, np.float32(-4.0)), np.float32(4.0))
    z = c * c
    p = np.float32(-2.72614225801306e-10)
    p = p * z + np.float32(2.77068142495902e-08)
    p = p * z + np.float32(-2.10102402082508e-06)
    p = p * z + np.float32(-5.69250639462346e-05)
    p = p * z + np.float32(-7.34990630326855e-04)
    p = p * z + np.float32(-2.95459980854025e-03)
    p = p * z + np.float32(-1.60960333262415e-02)
    q = np.float32(-1.45660718464996e-05)
    q = q * z + np.float32(-2.13374055278905e-04)
    q = q * z + np.float32(-1.68282697438203e-03)
    q = q * z + np.float32(-7.37332916720468e-03)
    q = q * z + np.float32(-1.42647390514189e-02)
    inside = c * p / q
    return np.float32(1.0) if x > np.float32(4.0) else np.float32(-1.0) if x < np.float32(-4.0) else inside


def exp(x: Any) -> Any:
    """e**x inside compiled code; 1 ulp in float32 for -87.3 <= x <= 88.3, 0 and infinite outside.

    (It once kept to the least and the largest normal number: x · sigmoid(x) was -0.4 at -1e38.)
    """
    raise TypeError("weft.kernels.elementary.exp is for compiled code; use numpy.exp")


def tanh(x: Any) -> Any:
    """The hyperbolic tangent inside compiled code; within 5 ulp in float32."""
    raise TypeError("weft.kernels.elementary.tanh is for compiled code; use numpy.tanh")


def erf(x: Any) -> Any:
    """The error function inside compiled code; within 6 ulp in float32."""
    raise TypeError("weft.kernels.elementary.erf is for compiled code; use math.erf")


def _by_precision(function: Any, narrow: Any, wide: Any) -> None:
    """In compiled code `function` is `narrow` for float32 and `wide` for everything else."""

    @overload(function)
    def choose(x: Any) -> Any:
        def call_narrow(x: Any) -> Any:
            return narrow(x)

        def call_wide(x: Any) -> Any:
            return wide(x)

        return call_narrow if x == types.float32 else call_wide


_by_precision(exp, _exp32, math.exp)
_by_precision(tanh, _tanh32, math.tanh)
_by_precision(erf, _erf32, math.erf)
