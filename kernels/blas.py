"""How NumPy's matrix product runs: which OpenBLAS core, chosen before NumPy loads, and how many threads.

OpenBLAS 0.3.31 (in NumPy's wheels) does not know AMD's Zen 5 and falls back to Haswell's kernels. One thread
multiplies 1024 x 512 by 512 x 1024 in float32 at 121 GFLOP/s so, and at 228 with SkylakeX's kernels. The
library reads OPENBLAS_CORETYPE once, when NumPy loads it; so the package imports this file before all else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_SKYLAKEX_FLAGS = frozenset({"avx512f", "avx512dq", "avx512bw", "avx512vl"})


def core_type(cpuinfo: str, environment: Mapping[str, str]) -> str | None:
    """The OPENBLAS_CORETYPE to set on the CPU that `/proc/cpuinfo` describes; None to leave it alone.

    Only AMD: OpenBLAS recognises Intel's AVX-512 cores itself. A value that the user set stays.
    """
    if "OPENBLAS_CORETYPE" in environment or "AuthenticAMD" not in cpuinfo:
        return None
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return "SkylakeX" if set(flags.split()) >= _SKYLAKEX_FLAGS else None


def choose_core() -> None:
    """Set the core type for this process and its children, unless NumPy is loaded already."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            cpuinfo = file.read(8192)  # the first processor is enough; a large host lists hundreds
    except OSError:
        return  # not Linux
    chosen = core_type(cpuinfo, os.environ)
    if chosen is not None and "numpy" not in sys.modules:
        os.environ["OPENBLAS_CORETYPE"] = chosen


def limit_threads(threads: int) -> None:
    """Let every BLAS and OpenMP library of this process use at most `threads` threads from now on."""
    import numpy as np  # noqa: F401  (threadpoolctl sees only libraries that are loaded)
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=threads)


def describe() -> str:
    """The BLAS that NumPy uses, for people: name, version, core, threads."""
    import numpy as np  # noqa: F401
    from threadpoolctl import threadpool_info

    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return ", ".join(
        f"{library['internal_api']} {library['version']} ({library.get('architecture', 'unknown')} core, "
        f"{library['num_threads']} thread{'s' if library['num_threads'] != 1 else ''})"
        for library in libraries
    )


choose_core()
