"""Matrix products: which library computes them, and with how many threads.

Where a rank has one thread and AVX-512, and oneDNN is installed (the extra `onednn`), that computes the
large products in float32 of dense layers; NumPy's BLAS, mostly OpenBLAS, computes all others. On one such
core, 1024 to 1024 neurons, oneDNN takes 4 to 6% less time for 512 samples, 23 to 39% less for 32, half for 4,
though 9% more for blocks of the weight gradient of 4 (`python -m bench gemm`); it rounds a block of two rows
or more of a weight gradient as the whole. On two threads it is no faster for 32 samples and for 512, and
between its products OpenMP's threads spin on the cores that the event loop needs. Nor is it with AVX2 alone,
where blocks of fewer than some 400 rows take it 2.5 times as long as the whole (Zen 3, oneDNN 3.2): a step on
two hosts with portions of 1 MB took 0.83 s instead of 0.5.

OpenBLAS reads OPENBLAS_CORETYPE when NumPy loads it; left unset, it recognises the machine. On an AMD Zen 5
it then takes its SkylakeX kernels: one thread multiplies 1024 x 512 by 512 x 1024 in float32 at 225 GFLOP/s.
An environment that says Haswell (for equal rounding on unequal nodes, say) halves that to 121.
"""

from __future__ import annotations

import platform

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from . import onednn
from .device import array_module
from .kernel import Array
from .vectors import VECTOR_BYTES

WIDE = VECTOR_BYTES == 64
"""Whether this processor has AVX-512, with which alone oneDNN is faster."""

LARGE = 1 << 20
"""Multiplications (64 samples, 128 to 128 neurons) from which oneDNN pays: its call costs 5 us more."""


class _Limit:
    threads: int | None = None


_limit = _Limit()


def product(a: Array, b: Array, out: Array, *, of: int) -> None:
    """Write a b, (m, k) x (k, n), into `out`, which overlaps neither.

    `of` counts the multiplications of the product of which this is a block, so that the blocks of one product
    are all computed by the same library: a layer rounds alike, however it is cut. A vector times a matrix, so
    a block of one neuron as well, is left to NumPy, which is 12 to 16% faster with it.
    """
    if WIDE and of >= LARGE and len(a) > 1 and _limit.threads == 1 and isinstance(out, np.ndarray):
        library = onednn.load()
        if library is not None and library.product(a, b, out):
            return
    array_module(out).matmul(a, b, out=out)


def limit_threads(threads: int) -> None:
    """Let every BLAS and OpenMP library of this process use at most `threads` threads from now on."""
    threadpool_limits(limits=threads)
    _limit.threads = threads


def describe() -> str:
    """What multiplies in this process, for people: names, versions, core and threads."""
    found = [
        f"{library['internal_api']} {library['version']} ({library.get('architecture', 'unknown')} core), "
        f"threads: {library['num_threads']}"
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]
    if not WIDE:
        return ", ".join(found)
    if (library := onednn.load()) is not None:
        found.append(f"oneDNN {library.version} for dense layers on one thread")
    elif why := onednn.trouble():
        found.append(f"oneDNN, which would make dense layers faster, cannot be used: {why}")
    elif platform.machine() == "x86_64":
        found.append("no oneDNN, with which dense layers are faster: pip install 'weft[onednn]'")
    return ", ".join(found)
