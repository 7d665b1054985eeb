"""Wire formats as plain NumPy has them: every rank computes what all ranks send, and nothing travels.

What the carriers of runtime/exchange/formats.py are held to, bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np

WIRES = ["float16", "bfloat16", "top_k"]


class NumpyFormat:
    """Adds up what `ranks` ranks hold, as the format has them add up the parts `spans`.

    `statistics` are the elements that travel as they are. Residuals stay from one sum to the next.
    """

    def __init__(self, wire: str, ranks: int, size: int, statistics: np.ndarray, keep: float = 0.01) -> None:
        self.wire, self.keep = wire, keep
        self.residual = np.zeros((ranks, size), np.float32)
        self.statistics = statistics

    def add_up(self, held: np.ndarray, spans: Sequence[slice]) -> np.ndarray:
        """The sum over the ranks, whose values are the rows of `held`; 0 outside of the spans."""
        total = np.zeros(held.shape[1], np.float32)
        values = held.copy()
        values[:, self.statistics] = 0.0
        for span in spans:
            add_up = self._largest if self.wire == "top_k" else self._rounded
            total[span] = add_up(values[:, span], self.residual[:, span])
        total[self.statistics] = in_order(held[:, self.statistics])
        return total

    def _rounded(self, values: np.ndarray, residual: np.ndarray) -> np.ndarray:
        ranks, count = values.shape
        sent = self._feed_back(values, residual)
        each = ceil(ceil(count / ranks) / 32) * 32
        total = np.zeros(count, np.float32)
        for rank in range(ranks):
            part = slice(rank * each, (rank + 1) * each)
            total[part] = self._feed_back(in_order(sent[:, part]), residual[rank, part])
        return total

    def _feed_back(self, values: np.ndarray, residual: np.ndarray) -> np.ndarray:
        wanted = values + residual
        sent = rounded(wanted, self.wire)
        residual[...] = wanted - sent
        return sent

    def _largest(self, values: np.ndarray, residual: np.ndarray) -> np.ndarray:
        residual += values
        sent = np.zeros_like(values)
        for row, left in zip(sent, residual, strict=True):
            first = np.argsort(-np.abs(left), kind="stable")[: ceil(self.keep * left.size)]
            row[first], left[first] = left[first], 0.0
        total = np.zeros(values.shape[1], np.float32)
        for row in sent:
            total += row
        return total


def rounded(values: np.ndarray, wire: str) -> np.ndarray:
    """To the nearest number of a 16-bit format, ties to even, as float32."""
    if wire == "float16":
        return np.clip(values, -65504, 65504).astype(np.float16).astype(np.float32)
    words = values.view(np.uint32)
    return ((words + 0x7FFF + (words >> 16 & 1)) >> 16 << 16).view(np.float32)


def in_order(rows: np.ndarray) -> np.ndarray:
    """The sum of the rows, from the first on."""
    total = rows[0].copy()
    for row in rows[1:]:
        total += row
    return total
