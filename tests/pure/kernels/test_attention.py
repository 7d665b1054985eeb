"""attention: against finite differences, whole-array arithmetic and PyTorch's fused kernel; the mask."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.kernels.checks import allocate, check_against, check_gradients, check_oracle, normal, run
from weft.kernels.attention import Attention
from weft.kernels.kernel import ArraySpec, Mode

SHAPES = {
    "two heads": (2, 5, 24, 2),
    "one head": (3, 4, 9, 1),
    "heads of width one": (2, 3, 9, 3),
    "one place": (2, 1, 12, 2),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
causal = pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])


@shapes
@causal
def test_gradients_equal_finite_differences(shape, causal):
    *sizes, heads = shape
    check_gradients(Attention(heads, causal), normal(*sizes))


@shapes
@causal
def test_equals_pytorch(shape, causal):
    torch = pytest.importorskip("torch")
    *sizes, heads = shape

    def reference(x):
        samples, places, packed = x.shape
        q, k, v = x.reshape(samples, places, 3, heads, -1).permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return y.transpose(1, 2).reshape(samples, places, packed // 3)

    check_against(Attention(heads, causal), reference, normal(*sizes))


@causal
def test_equals_its_oracle(causal):
    check_oracle(Attention(4, causal), normal(3, 70, 96))


def test_a_place_does_not_see_the_places_after_it():
    kernel = Attention(2)
    x = normal(2, 6, 12, dtype="float32")
    before = run(kernel, allocate(kernel, x)).output.copy()
    x[:, 4:] = normal(2, 2, 12, dtype="float32", seed=9)
    after = run(kernel, allocate(kernel, x)).output
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    assert (after[:, 4:] != before[:, 4:]).any()


def test_scores_of_any_size_do_not_overflow():
    kernel = Attention(1)
    b = run(kernel, allocate(kernel, 1e4 * normal(2, 8, 12, dtype="float32")))
    assert np.isfinite(b.output).all()
    assert np.isfinite(b.input_gradients[0]).all()


def test_a_score_that_is_no_number_stays_visible():
    kernel = Attention(1)
    x = normal(2, 40, 12, dtype="float32")
    x[1, 35, 0] = np.nan  # a query
    b = allocate(kernel, x)
    kernel.forward(b, Mode())
    assert np.argwhere(np.isnan(b.output).any(axis=2)).tolist() == [[1, 35]]


WRONG = [
    ("a width that three does not divide", Attention(2), (2, 5, 8), r"shape \(2, 5, 8\)"),
    ("a width that the heads do not divide", Attention(4), (2, 5, 18), "4 heads divide"),
    ("no places", Attention(2), (2, 24), r"shape \(2, 24\)"),
]


@pytest.mark.parametrize(
    ("kernel", "shape", "message"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG]
)
def test_shapes_that_do_not_fit_are_named(kernel, shape, message):
    with pytest.raises(ValueError, match=message):
        kernel.output(ArraySpec(shape))


def test_no_heads_are_refused():
    with pytest.raises(ValueError, match="heads is 0"):
        Attention(0)
