"""How fast this machine computes and moves bytes, measured in milliseconds: what turns tags into seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from ...graph.tasks import Rates

SIDE = 512  # of matrices whose product takes 2 ms
BYTES = 1 << 25  # copied from memory, not from a cache
TIMES = 3
TASK_S = 10e-6
"""What a block of neurons costs besides its arithmetic: to end one and take the next 1.5 us, each of its
calls 3 to 5 us, and what it reads is in another core's cache."""


def measure() -> Rates:
    """The best of three: a rate that others on the machine do not lower."""
    a = np.ones((SIDE, SIDE), np.float32)
    product = np.empty_like(a)
    source = np.ones(BYTES, np.uint8)
    target = np.empty_like(source)
    multiply_s = _best(lambda: np.matmul(a, a, out=product))
    copy_s = _best(lambda: np.copyto(target, source))
    return Rates(2 * SIDE**3 / multiply_s, 2 * BYTES / copy_s, call_s=TASK_S / 2)


def _best(function: Callable[[], object]) -> float:
    taken = []
    for _ in range(TIMES + 1):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])
