"""A shared window of one process, for ranks that take turns in a test."""

from __future__ import annotations

import numpy as np

from weft.runtime.message.atomics import AtomicWord


class Memory:
    """Every rank's segment, which is all zeros at first."""

    def __init__(self, ranks: int, nbytes: int) -> None:
        self._segments = [np.zeros(nbytes, np.uint8) for _ in range(ranks)]

    def array(self, rank: int, kind: type, count: int, offset_bytes: int = 0) -> np.ndarray:
        return self._segments[rank][offset_bytes:].view(kind)[:count]

    def atomic(self, rank: int, offset_bytes: int) -> AtomicWord:
        return AtomicWord(self.array(rank, np.int64, 1, offset_bytes))

    def sync(self) -> None:
        pass
