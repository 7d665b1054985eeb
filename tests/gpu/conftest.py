"""Tests that need a GPU: all of them are skipped, with the reason, where CuPy or the GPU is missing.

The one kind of test that CI may skip: its machine has no GPU.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@cache
def missing() -> str | None:
    """What this machine lacks for the tests here, or None."""
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed: pip install 'weft[cuda12]' or 'weft[cuda13]'"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy {cupy.__version__} finds no GPU: {error}"
    return None if count else f"CuPy {cupy.__version__} finds no GPU"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = missing()
    if reason is not None:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))
