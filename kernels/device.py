"""Where arrays live: NumPy on a CPU, CuPy on a GPU. The only file that imports cupy."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np

from .kernel import Array

try:
    import cupy
except ImportError:
    cupy = None


def array_module(a: Array) -> ModuleType:
    """The module whose functions take `a`: numpy, or cupy for an array on a GPU."""
    return np if isinstance(a, np.ndarray) or cupy is None else cupy.get_array_module(a)


def erf(a: Array) -> Array:
    """The error function, element by element (NumPy has none; this one is for small arrays)."""
    if isinstance(a, np.ndarray):
        return np.vectorize(math.erf, otypes=[a.dtype])(a)
    from cupyx.scipy.special import erf as device_erf

    return device_erf(a)
