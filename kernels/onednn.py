"""oneDNN's matrix product in float32, on one thread, where its library is installed (the extra `onednn`).

The C interface is dnnl_sgemm (oneDNN's API reference, "BLAS functions"): matrices lie by rows, each with the
distance between its rows in elements.
"""

from __future__ import annotations

import ctypes
import site
import sys
import threading
from functools import cache
from pathlib import Path

import numpy as np

LIBRARY = "libdnnl.so.3"


class _Version(ctypes.Structure):
    _fields_ = (("major", ctypes.c_int), ("minor", ctypes.c_int), ("patch", ctypes.c_int))


class OneDNN:
    """The loaded library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        size, real, pointer = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
        self._sgemm = library.dnnl_sgemm
        self._sgemm.argtypes = (
            *(ctypes.c_char, ctypes.c_char, size, size, size),
            *(real, pointer, size, pointer, size, real, pointer, size),
        )
        library.dnnl_version.restype = ctypes.POINTER(_Version)
        version = library.dnnl_version().contents
        self.version = f"{version.major}.{version.minor}.{version.patch}"
        self._set_threads = library.omp_set_num_threads
        self._caller = threading.local()

    def product(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> bool:
        """Write a b, (m, k) x (k, n), into `out`; False where a layout or dtype does not fit."""
        first, second, written = _layout(a), _layout(b), _layout(out)
        if first is None or second is None or written is None or written[0] != b"N":
            return False
        if not hasattr(self._caller, "alone"):
            self._set_threads(1)  # OpenMP keeps the number for the thread that sets it
            self._caller.alone = True
        status = self._sgemm(
            *(first[0], second[0], *out.shape, a.shape[1]),
            *(1.0, _address(a), first[1], _address(b), second[1], 0.0, _address(out), written[1]),
        )
        if status != 0:
            raise MemoryError(f"oneDNN: the product of {a.shape} and {b.shape} failed with status {status}")
        return True


def _layout(matrix: np.ndarray) -> tuple[bytes, int] | None:
    """b"N" if its rows lie in one piece each, b"T" if its columns do, and their distance; None if neither."""
    if matrix.dtype != np.float32 or matrix.ndim != 2 or not matrix.size:
        return None
    (rows, columns), (down, across) = matrix.shape, matrix.strides
    if across == 4 or columns == 1:
        letter, length, step = b"N", columns, down if rows > 1 else 4 * columns
    elif down == 4 or rows == 1:
        letter, length, step = b"T", rows, across
    else:
        return None
    return (letter, step // 4) if step % 4 == 0 and step // 4 >= length else None


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def load() -> OneDNN | None:
    """The library of this environment, of this user, or of the system; None where none can be used."""
    return _find()[0]


def trouble() -> str:
    """Why a library that is there cannot be used; empty if it can, or if there is none."""
    return _find()[1]


@cache
def _find() -> tuple[OneDNN | None, str]:
    why = ""
    for path in (*(Path(base, "lib", LIBRARY) for base in (sys.prefix, site.getuserbase())), Path(LIBRARY)):
        try:
            return OneDNN(ctypes.CDLL(str(path))), ""
        except OSError as error:
            why = why or (str(error) if path.exists() else "")
        except AttributeError:
            why = why or f"{path} was built without OpenMP"
    return None, why
