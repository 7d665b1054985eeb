""".npy files of inputs and of targets, memory-mapped."""

from __future__ import annotations

from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np

from ...errors import DataError
from .arrays import Pair, joined
from .files import reading
from .parts import parts, together
from .section import NpyData
from .stored import AnyArray


def pairs(data: NpyData) -> tuple[Pair, Pair | None]:
    """The samples, and the test set if the job names one."""
    test = _pair(data.test_inputs, data.test_targets) if data.test_inputs and data.test_targets else None
    return _pair(data.inputs, data.targets), test


def _pair(inputs: str, targets: str) -> Pair:
    found = together(parts(inputs, (".npy",)), parts(targets, (".npy",)))
    return joined([Pair(mapped(x), mapped(y), str(x), str(y)) for x, y in found], inputs, targets)


def mapped(path: Path) -> AnyArray:
    """The array of a file, memory-mapped; DataError where that is not whole."""
    try:
        with reading(path) as file:
            header(file, str(path), path.stat().st_size)
        array: AnyArray = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: is not a whole .npy file: {error}; save or fetch it again") from error
    return array


def header(file: IO[bytes], name: str, nbytes: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype that .npy data of so many bytes begins with; DataError for Python objects.

    ValueError where they do not hold that: of a damaged header NumPy took any extent for one, and ended with
    an overflow, or for want of memory.
    """
    begin = file.tell()
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(file)
    except TokenError as error:  # a header that it cannot read NumPy takes for one of Python 2's
        raise ValueError(f"its header is damaged: {error}") from error
    if dtype.hasobject:
        raise DataError(f"{name}: holds Python objects; save it as numbers")
    expected = file.tell() - begin + prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or expected > nbytes:
        raise ValueError(
            f"it has {nbytes:,} bytes, but its header, {dtype} of shape {shape}, makes it {expected:,}"
        )
    return shape, fortran, dtype
