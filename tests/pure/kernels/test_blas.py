"""Matrix products: oneDNN's equals NumPy's in every layout, takes over where it pays, obeys its limits."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from tests.pure.kernels.checks import allocate, normal, run
from weft.kernels import blas, onednn
from weft.kernels.kernel import Mode
from weft.kernels.linear import Dense
from weft.kernels.vectors import VECTOR_BYTES

needs_onednn = pytest.mark.skipif(onednn.load() is None, reason="needs oneDNN: the extra onednn")


@pytest.fixture
def one_thread():
    before = blas._limit.threads
    with threadpool_limits():  # restores what was
        blas.limit_threads(1)
        yield
    blas._limit.threads = before


def rows(m: int, n: int) -> np.ndarray:
    return normal(m, n, dtype="float32")


def columns(m: int, n: int) -> np.ndarray:
    return rows(n, m).T


def some_columns(m: int, n: int) -> np.ndarray:
    return rows(m, n + 7)[:, 3 : 3 + n]


def some_rows_of_columns(m: int, n: int) -> np.ndarray:
    return columns(m + 5, n)[2 : 2 + m]


LAYOUTS = [rows, columns, some_columns, some_rows_of_columns]
SIZES = [(6, 5, 4), (1, 5, 4), (6, 1, 4), (6, 5, 1), (1, 1, 1), (70, 33, 50)]


@needs_onednn
@pytest.mark.parametrize(("m", "k", "n"), SIZES)
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("into", [rows, some_columns])
def test_onednn_multiplies_whatever_lies_in_rows_or_columns(m, k, n, first, second, into):
    a, b, out = first(m, k), second(k, n), into(m, n)
    around = out.base.copy() if out.base is not None else None
    out.fill(np.nan)
    assert onednn.load().product(a, b, out)
    np.testing.assert_allclose(out, a.astype("float64") @ b.astype("float64"), rtol=1e-4, atol=1e-4)
    if around is not None:
        out[...] = 0
        around[:, 3 : 3 + n] = 0
        np.testing.assert_array_equal(out.base, around, "written beside the output")


UNSUITED = {
    "float64": lambda m, n: normal(m, n),
    "every other column": lambda m, n: rows(m, 2 * n)[:, ::2],
    "one row for all": lambda m, n: np.broadcast_to(rows(1, n), (m, n)),
    "backwards": lambda m, n: rows(m, n)[::-1],
    "nothing": lambda m, n: np.empty((m, 0), np.float32),
}


@needs_onednn
@pytest.mark.parametrize("unsuited", UNSUITED.values(), ids=UNSUITED.keys())
def test_onednn_leaves_alone_what_it_cannot_read(unsuited):
    b = unsuited(6, 5)
    out = np.full((4, b.shape[1]), 7, np.float32)
    assert not onednn.load().product(rows(4, 6), b, out)
    assert (out == 7).all()


@needs_onednn
def test_onednn_does_not_write_by_columns():
    out = np.full((4, 5), 7, np.float32, order="F")
    assert not onednn.load().product(rows(4, 6), rows(6, 5), out)
    assert (out == 7).all()


@pytest.mark.parametrize("unsuited", list(UNSUITED.values())[:-1], ids=list(UNSUITED)[:-1])
def test_numpy_computes_the_large_product_that_onednn_does_not_take(one_thread, unsuited):
    a, b = normal(4, 6, dtype="float32"), unsuited(6, 5)
    out = np.full((4, 5), np.nan, np.result_type(a, b))
    blas.product(a, b, out, of=blas.LARGE)
    np.testing.assert_array_equal(out, a @ b)


@pytest.fixture
def asked(monkeypatch, one_thread):
    """What oneDNN was asked for, by shape; it computes nothing and says that it did."""
    seen = []

    class Library:
        def product(self, a, b, out):
            seen.append((a.shape, b.shape))
            return True

    monkeypatch.setattr(onednn, "load", Library)
    monkeypatch.setattr(blas, "WIDE", True)
    return seen


def test_without_avx_512_numpy_computes_all_and_nobody_is_told_of_onednn(asked, monkeypatch):
    """There it is slower: blocks of a weight gradient took it 2.5 times as long as the whole."""
    monkeypatch.setattr(blas, "WIDE", False)
    a, b, out = rows(4, 6), rows(6, 5), np.full((4, 5), np.nan, np.float32)
    blas.product(a, b, out, of=blas.LARGE)
    assert asked == []
    np.testing.assert_array_equal(out, a @ b)
    assert "oneDNN" not in blas.describe()


@pytest.mark.parametrize(
    ("samples", "of", "takes"), [(4, blas.LARGE, True), (4, blas.LARGE - 1, False), (1, blas.LARGE, False)]
)
def test_onednn_gets_large_products_of_several_rows(asked, samples, of, takes):
    out = np.full((samples, 5), np.nan, np.float32)
    blas.product(rows(samples, 6), rows(6, 5), out, of=of)
    assert asked == ([((samples, 6), (6, 5))] if takes else [])
    assert np.isnan(out).all() == takes


def test_blocks_go_where_the_whole_goes(asked):
    kernel = Dense(1024, bias=False)
    b = run(kernel, allocate(kernel, rows(4, 512)))
    asked.clear()
    kernel.forward(b, Mode(), slice(0, 8))
    kernel.weight_gradient(b, Mode(), slice(0, 8))
    assert asked == [((4, 512), (512, 8)), ((8, 4), (4, 512))]


@needs_onednn
@pytest.mark.parametrize(("samples", "wide", "features"), [(64, 300, 150), (512, 1024, 200), (37, 777, 131)])
@pytest.mark.parametrize("block", [2, 7, 50])
def test_blocks_of_a_weight_gradient_are_the_whole(one_thread, samples, wide, features, block):
    """To the bit with vectors of 512 bits; with narrower ones it depends on the block, as in OpenBLAS."""
    dy, x = rows(samples, features), rows(samples, wide)
    whole, cut = np.empty((2, features, wide), np.float32)
    size = samples * wide * features
    assert size >= blas.LARGE
    blas.product(dy.T, x, whole, of=size)
    starts = list(range(0, features - 1, block))  # none of one row
    for start, stop in zip(starts, [*starts[1:], features], strict=True):
        blas.product(dy[:, start:stop].T, x, cut[start:stop], of=size)
    if VECTOR_BYTES == 64:
        np.testing.assert_array_equal(cut, whole)
    else:
        np.testing.assert_allclose(cut, whole, rtol=1e-5, atol=1e-4)


@needs_onednn
def test_a_failed_product_is_an_error(monkeypatch):
    monkeypatch.setattr(onednn.load(), "_sgemm", lambda *arguments: 1)
    with pytest.raises(MemoryError, match=r"product of \(4, 6\) and \(6, 5\) failed with status 1"):
        onednn.load().product(rows(4, 6), rows(6, 5), rows(4, 5))


def test_several_threads_are_numpys(asked):
    blas.limit_threads(2)
    out = np.full((4, 5), np.nan, np.float32)
    blas.product(rows(4, 6), rows(6, 5), out, of=blas.LARGE)
    assert asked == []
    assert not np.isnan(out).any()


def test_blas_says_what_it_is_and_obeys(one_thread):
    assert "threads: 1" in blas.describe()


@needs_onednn
def test_every_thread_multiplies_alone(monkeypatch):
    library = onednn.load()
    limits = []
    monkeypatch.setattr(library, "_set_threads", limits.append)
    monkeypatch.setattr(library, "_caller", threading.local())
    for _ in range(2):
        library.product(rows(4, 6), rows(6, 5), rows(4, 5))

    def elsewhere():
        for _ in range(2):
            library.product(rows(4, 6), rows(6, 5), rows(4, 5))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert limits == [1, 1], "once for each of two threads"


def test_a_missing_onednn_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(onednn, "_find", lambda: (None, ""))
    monkeypatch.setattr(blas, "WIDE", True)
    monkeypatch.setattr(blas.platform, "machine", lambda: "x86_64")
    assert "no oneDNN" in blas.describe()
    assert "weft[onednn]" in blas.describe()


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A library file of this environment, and how to say what loading one does."""
    monkeypatch.setattr(blas, "WIDE", True)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / onednn.LIBRARY).touch()
    monkeypatch.setattr(onednn.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(onednn.site, "getuserbase", lambda: str(tmp_path / "user"))

    def loading(does):
        monkeypatch.setattr(onednn.ctypes, "CDLL", does)
        monkeypatch.setattr(onednn, "_find", onednn._find.__wrapped__)

    return loading


def test_a_library_that_cannot_be_loaded_is_told_of(installed):
    def broken(path):
        raise OSError("libgomp.so.1: cannot open shared object file" if "/" in path else f"{path}: no such")

    installed(broken)
    assert onednn.load() is None
    assert onednn.trouble() == "libgomp.so.1: cannot open shared object file"
    assert "cannot be used: libgomp.so.1" in blas.describe()


def test_a_library_without_openmp_is_told_of(installed):
    installed(lambda path: object())
    assert onednn.load() is None
    assert "built without OpenMP" in blas.describe()


def test_no_library_at_all_is_no_trouble(monkeypatch, tmp_path, installed):
    monkeypatch.setattr(onednn.sys, "prefix", str(tmp_path / "other"))

    def missing(path):
        raise OSError(f"{path}: no such file")

    installed(missing)
    assert onednn.load() is None
    assert onednn.trouble() == ""
