"""The gemm bench: its figures, that a wrong product gives none, and what it says without oneDNN."""

from __future__ import annotations

import argparse

import pytest
from threadpoolctl import threadpool_limits

import bench.gemm
from bench.harness import WrongResultError
from weft.kernels import blas, onednn

SMALLEST = argparse.Namespace(batch=[3], width=300, repetitions=2)
needs_onednn = pytest.mark.skipif(onednn.load() is None, reason="needs oneDNN: the extra onednn")


@pytest.fixture(autouse=True)
def _limits_restored(monkeypatch):
    monkeypatch.setattr(blas._limit, "threads", blas._limit.threads)
    with threadpool_limits():
        yield


@needs_onednn
def test_every_product_gives_a_ratio_and_two_rates():
    figures = bench.gemm.main(SMALLEST)
    cases = ["forward_3", "input_gradient_3", "weight_gradient_3", "portions_3"]
    assert list(figures) == [
        f"{case}_{kind}" for case in cases for kind in ("over_numpy", "gflops", "numpy_gflops")
    ]
    assert all(0 < figure.min <= figure.value <= figure.max for figure in figures.values())


@needs_onednn
@pytest.mark.parametrize("row", [0, 299])
def test_a_wrong_product_gives_no_figure(monkeypatch, row):
    library = onednn.load()
    honest = library.product

    def wrong(a, b, out):
        taken = honest(a, b, out)
        if len(out) > 3:
            out[min(row, len(out) - 1)] *= 1.001
        return taken

    monkeypatch.setattr(library, "product", wrong)
    with pytest.raises(WrongResultError, match="weight_gradient of 3: the products differ by"):
        bench.gemm.main(SMALLEST)


@needs_onednn
def test_a_product_that_is_not_written_gives_no_figure(monkeypatch):
    monkeypatch.setattr(onednn.load(), "product", lambda a, b, out: True)
    with pytest.raises(WrongResultError, match="forward of 3: the products differ by nan"):
        bench.gemm.main(SMALLEST)


@needs_onednn
def test_a_block_behind_the_first_that_is_not_written_gives_no_figure(monkeypatch):
    library = onednn.load()
    honest = library.product
    monkeypatch.setattr(library, "product", lambda a, b, out: len(out) == 60 or honest(a, b, out))
    with pytest.raises(WrongResultError, match="portions of 3: the products differ by nan"):
        bench.gemm.main(SMALLEST)  # 300 neurons are blocks of 240 and 60


def test_without_onednn_there_is_nothing_to_compare(monkeypatch):
    monkeypatch.setattr(onednn, "_find", lambda: (None, ""))
    with pytest.raises(SystemExit, match=r"pip install 'weft\[onednn\]'"):
        bench.gemm.main(SMALLEST)
