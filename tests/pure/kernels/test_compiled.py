"""How a call chooses its body, and what flat refuses."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.caching import CompileResultCacheImpl

from tests.pure.kernels.checks import oracle_only
from weft.kernels import kept
from weft.kernels.compiled import compiled, fast_path, flat, jit


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


@pytest.fixture
def process(monkeypatch, tmp_path):
    """Makes a function as a process of its own has it, whose folder of what is kept was empty before."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def double(x, y):
        for i in range(x.size):
            y[i] = 2 * x[i]

    return lambda: jit(double)


def doubles(function, dtype="f4"):
    y = np.zeros(4, dtype)
    function(np.arange(4, dtype=dtype), y)
    assert y.tolist() == [0, 2, 4, 6]
    return True


def kept_of(function):
    return sum(function.stats.cache_hits.values())


def test_processes_that_compile_two_signatures_at_once_keep_each_under_its_own_name(process):
    """Every later process was given, for the one, what was compiled for the other."""
    one, other, later = process(), process(), process()
    files = [each._cache.made._cache_file for each in (one, other)]
    write = files[0]._save_data
    for each in files:  # both have read what is kept before either has written
        each._load_index = dict
    files[0]._save_data = lambda *named: doubles(other, "f8") and write(*named)
    doubles(one, "f4")
    doubles(later, "f8")
    doubles(later, "f4")
    assert kept_of(later) == 1  # of the index the last writer's: the other is compiled again, and kept
    again = process()
    assert doubles(again, "f8")
    assert doubles(again, "f4")
    assert kept_of(again) == 2


def test_a_function_that_nobody_calls_leaves_the_disk_alone(process, tmp_path):
    function = process()
    assert not list(tmp_path.iterdir())
    doubles(function)
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("left", [0, 20], ids=["empty", "a part"])
def test_what_is_kept_but_cut_short_is_compiled_again(process, tmp_path, suffix, left):
    doubles(process())
    (file,) = tmp_path.rglob(f"*.{suffix}")
    file.write_bytes(file.read_bytes()[:left])
    doubles(process())
    last = process()
    assert doubles(last)
    assert kept_of(last) == 1


def test_a_disk_that_is_full_ends_no_kernel(process, monkeypatch):
    def full(path: Path, **_: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    function = process()
    monkeypatch.setattr("numba.core.caching.os.makedirs", full)
    assert doubles(function)


def test_where_no_folder_can_be_written_kernels_are_compiled_and_not_kept(process, monkeypatch):
    monkeypatch.setattr(CompileResultCacheImpl, "_locator_classes", [])
    assert doubles(process())


@pytest.mark.parametrize("place", ["__init__", "load_overload", "save_overload"])
def test_where_numba_has_changed_its_own_cache_keeps_kernels(process, monkeypatch, place):
    def changed(*given: object) -> None:
        raise AttributeError("'FunctionCache' object has no attribute '_of_old'")

    monkeypatch.setattr(kept._Kept, place, changed)
    assert doubles(process())
    again = process()
    assert doubles(again)
    assert kept_of(again) == 1


def test_where_numba_has_moved_what_is_imported_its_own_cache_keeps_kernels(process, monkeypatch):
    monkeypatch.setattr("weft.kernels.compiled.FromFirstCall", None)
    assert doubles(process())
    again = process()
    assert doubles(again)
    assert kept_of(again) == 1


def test_a_numba_without_what_is_not_promised_is_no_reason_to_stop():
    program = textwrap.dedent("""
        import sys
        sys.modules["weft.kernels.kept"] = None  # cannot be imported
        import numpy
        from weft.kernels.activation import _relu as function
        y = numpy.ones(2, "f4")
        function(numpy.array([-1, 2], "f4"), y)
        print(y)
    """)
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "[0. 2.]\n"


def test_without_numba_kernels_are_plain_python(process, monkeypatch):
    """So they are debugged, with NUMBA_DISABLE_JIT=1."""
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    function = process()
    assert doubles(function)
    assert type(function) is type(doubles)
