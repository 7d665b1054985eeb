"""IDX files, as MNIST and its successors come (LeCun, Cortes and Burges), plain or gzipped.

0  0  type  axes  ‖  extent of each axis, 4 bytes  ‖  the numbers, big-endian, last axis fastest
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from ...errors import DataError
from .arrays import Pair, joined
from .files import decompressed, is_gzip, reading
from .parts import parts, together
from .section import IdxData
from .stored import AnyArray

ENDINGS = ("-ubyte", "-ubyte.gz", ".idx", ".idx.gz")

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def pairs(data: IdxData) -> tuple[Pair, Pair | None]:
    """The samples, and the test set if the job names one."""
    test = _pair(data.test_inputs, data.test_targets) if data.test_inputs and data.test_targets else None
    return _pair(data.inputs, data.targets), test


def _pair(inputs: str, targets: str) -> Pair:
    found = together(parts(inputs, ENDINGS), parts(targets, ENDINGS))
    made = [Pair(images(x), read_idx(y), str(x), str(y)) for x, y in found]
    return joined(made, inputs, targets)


def images(path: Path) -> AnyArray:
    """The array of a file of inputs, as convolutions want it: with an axis of channels."""
    found = read_idx(path)
    return found[:, None] if found.ndim == 3 else found


def read_idx(path: Path) -> AnyArray:
    """The array of an IDX file: memory-mapped, or read where it is gzipped."""
    content = decompressed(path) if is_gzip(path) else None
    if content is None:
        with reading(path) as file:
            head, size = file.read(4 + 4 * 255), path.stat().st_size
    else:
        head, size = content[: 4 + 4 * 255], len(content)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in TYPES or not head[3]:
        raise DataError(
            f"{path}: starts with {head[:4].hex(' ') or 'nothing'}; an IDX file starts with 00 00, a type "
            f"({', '.join(f'{code:02x}' for code in TYPES)}) and the number of axes"
        )
    dtype, axes = np.dtype(TYPES[head[2]]), head[3]
    start = 4 + 4 * axes
    if len(head) < start:
        raise DataError(f"{path}: ends within its header of {start} bytes; fetch it again")
    shape = tuple(int(extent) for extent in np.frombuffer(head, ">u4", axes, 4))
    expected = start + prod(shape) * dtype.itemsize
    if size != expected:
        raise DataError(
            f"{path}: has {size} bytes, but its header, {dtype.name} of shape {shape}, makes it {expected}; "
            "fetch it again"
        )
    if content is not None:
        return np.frombuffer(content, dtype, offset=start).reshape(shape)
    if not prod(shape):
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape)
