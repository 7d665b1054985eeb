"""NumPy's matrix product: how many threads it may use, and what runs it.

OpenBLAS reads OPENBLAS_CORETYPE when NumPy loads it; left unset, it recognises the machine. On an AMD Zen 5
it then takes its SkylakeX kernels: one thread multiplies 1024 x 512 by 512 x 1024 in float32 at 225 GFLOP/s.
An environment that says Haswell (for equal rounding on unequal nodes, say) halves that to 121.
"""

from __future__ import annotations

import numpy as np  # noqa: F401  threadpoolctl sees only libraries that are loaded
from threadpoolctl import threadpool_info, threadpool_limits


def limit_threads(threads: int) -> None:
    """Let every BLAS and OpenMP library of this process use at most `threads` threads from now on."""
    threadpool_limits(limits=threads)


def describe() -> str:
    """The BLAS of this process for people: name, version, core and threads."""
    return ", ".join(
        f"{library['internal_api']} {library['version']} ({library.get('architecture', 'unknown')} core), "
        f"threads: {library['num_threads']}"
        for library in threadpool_info()
        if library["user_api"] == "blas"
    )
