"""A pair of .npy files, memory-mapped."""

from __future__ import annotations

import numpy as np

from ...errors import DataError
from .arrays import Pair
from .files import locate
from .samples import AnyArray
from .section import NpyData


def pairs(data: NpyData) -> tuple[Pair, Pair | None]:
    """The samples, and the test set if the job names one."""
    test = _pair(data.test_inputs, data.test_targets) if data.test_inputs and data.test_targets else None
    return _pair(data.inputs, data.targets), test


def _pair(inputs: str, targets: str) -> Pair:
    return Pair(_map(inputs), _map(targets), inputs, targets)


def _map(name: str) -> AnyArray:
    path = locate(name)
    try:
        array: AnyArray = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: is not a whole .npy file: {error}") from error
    return array
