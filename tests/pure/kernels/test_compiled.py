"""How a call chooses its body, and what flat refuses."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tests.pure.kernels.checks import oracle_only
from weft.kernels.compiled import compiled, fast_path, flat


def _oracle(x, y):
    y[...] = -1


@compiled(oracle=_oracle)
def _fill(x, y):
    for i in range(x.size):
        y[i] = 1


@fast_path(oracle=_oracle)
def _fill_plainly(x, y):
    y[...] = 1


@pytest.mark.parametrize("function", [_fill, _fill_plainly], ids=["compiled", "plain"])
def test_numpy_arrays_take_the_fast_path_and_others_the_oracle(function):
    x, y = np.zeros(3), np.zeros(3)
    function(x, y)
    assert y.tolist() == [1, 1, 1]
    function(memoryview(x), y)  # stands for an array of another module
    assert y.tolist() == [-1, -1, -1]
    function(x, y)
    with oracle_only():
        function(x, y)
    assert y.tolist() == [-1, -1, -1]


def test_flat_is_a_view():
    a = np.zeros((2, 3, 4))
    flat(a)[:] = 1
    assert (a == 1).all()


def test_flat_refuses_what_it_would_have_to_copy():
    with pytest.raises(ValueError, match=r"shape \(3, 2\) with strides"):
        flat(np.zeros((2, 3)).T)


def test_a_function_that_is_kept_on_disk_is_had_without_making_the_compiler_ready():
    """Every process would pay for that ahead of its first kernel: half of what a rank's start takes."""
    program = textwrap.dedent("""
        import sys, numpy
        from weft.kernels.activation import _relu as function
        function(numpy.ones(3, "f4"), numpy.ones(3, "f4"))
        kept = sum(function.function.stats.cache_hits.values())
        print(kept, "numba.np.linalg" in sys.modules)
    """)
    told = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert told[1] == "1 False\n"
