"""The kernels bench: the figures it gives, and that a wrong gradient gives none."""

from __future__ import annotations

import argparse

import pytest

import bench.kernels
from bench.harness import WrongResultError
from weft.kernels.linear import Dense

SMALLEST = argparse.Namespace(cases=["dense_32"], seconds=0.0)


def test_one_case_gives_ratio_times_and_memory():
    pytest.importorskip("torch")
    figures = bench.kernels.main(SMALLEST)
    assert list(figures) == [
        "dense_over_torch",
        "dense_32_over_torch",
        "dense_32_weft_ms",
        "dense_32_torch_ms",
        "dense_32_weft_peak_mib",
        "dense_32_torch_peak_mib",
    ]
    assert all(0 <= figure.min <= figure.value <= figure.max for figure in figures.values())


def test_without_pytorch_weft_is_measured_alone(monkeypatch):
    monkeypatch.setattr(bench.kernels, "find_spec", lambda name: None)
    assert list(bench.kernels.main(SMALLEST)) == ["dense_32_weft_ms", "dense_32_weft_peak_mib"]


def test_a_wrong_gradient_gives_no_figure(monkeypatch):
    pytest.importorskip("torch")
    honest = Dense.weight_gradient

    def wrong(self, b, mode, rows=slice(None)):
        honest(self, b, mode, rows)
        b.weight_gradients[0][0] = 0

    monkeypatch.setattr(Dense, "weight_gradient", wrong)
    with pytest.raises(WrongResultError, match=r"dense_32: the gradient of dense_1\.weight"):
        bench.kernels.main(SMALLEST)
