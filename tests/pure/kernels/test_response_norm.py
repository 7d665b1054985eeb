"""response_norm: finite differences, the array-module body, PyTorch; windows longer than the channels."""

from __future__ import annotations

import pytest

from tests.pure.kernels.checks import check_against, check_gradients, check_oracle, normal
from weft.kernels.kernel import ArraySpec
from weft.kernels.response_norm import ResponseNorm

KERNELS = {
    "as in AlexNet": ResponseNorm(5, 1e-1),
    "another power": ResponseNorm(3, 0.5, 0.6, 2.0),
    "an even window": ResponseNorm(4, 0.5, 0.75, 1.0),
    "one channel": ResponseNorm(1, 0.5),
    "more than there are": ResponseNorm(15, 0.5),
    "far more than there are": ResponseNorm(31, 0.5),
}
kernels = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


@kernels
def test_gradients_equal_finite_differences(kernel):
    check_gradients(kernel, normal(2, 6, 3, 2))


@kernels
def test_equals_its_oracle(kernel):
    check_oracle(kernel, normal(2, 9, 5, 7), dtypes=("float32", "float64"))


@pytest.mark.parametrize("size", [1, 3, 5])  # PyTorch's even windows reach the other way
def test_equals_pytorch(size):
    torch = pytest.importorskip("torch")
    kernel = ResponseNorm(size, 0.3, 0.75, 1.5)
    norm = torch.nn.LocalResponseNorm(size, 0.3, 0.75, 1.5)
    check_against(kernel, norm, normal(2, 7, 4, 3))


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="size is 0"):
        ResponseNorm(0)
    with pytest.raises(ValueError, match=r"bias is 0\.0"):
        ResponseNorm(5, bias=0.0)
    with pytest.raises(ValueError, match=r"input has shape \(2,\)"):
        ResponseNorm(5).output(ArraySpec((2,)))
