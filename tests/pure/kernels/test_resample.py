"""resample, against finite differences and PyTorch's interpolate."""

from __future__ import annotations

import pytest

from tests.pure.kernels.checks import check_against, check_gradients, normal
from weft.kernels.kernel import ArraySpec
from weft.kernels.resample import WAYS, Resample


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("axis", "extent", "scale"), [(2, 7, 0.0), (-1, 3, 0.6), (1, 1, 0.0)], ids=str)
def test_gradients_equal_finite_differences(axis, extent, scale, way, mode):
    check_gradients(Resample(axis, extent, mode, way, scale), normal(2, 3, 4, 5))


@pytest.mark.parametrize("extent", [1, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("way", ["half_pixel", "align_corners"])
def test_it_is_pytorchs_interpolate(extent, mode, way):
    torch = pytest.importorskip("torch")

    def interpolate(x):
        wide = (extent, x.shape[3])
        kind = {"linear": "bilinear", "cubic": "bicubic"}[mode]
        return torch.nn.functional.interpolate(x, wide, mode=kind, align_corners=way == "align_corners")

    check_against(Resample(2, extent, mode, way), interpolate, normal(2, 3, 4, 5))


WRONG = {
    "no extent": ((2, 0), "extent is 0 and scale 0.0; give an extent from 1 up"),
    "an unknown mode": ((2, 4, "nearest"), "mode is 'nearest', .*give linear or cubic"),
    "an unknown way": ((2, 4, "linear", "corners"), "coordinates 'corners'; give .*half_pixel, "),
}


@pytest.mark.parametrize(("attributes", "message"), WRONG.values(), ids=WRONG)
def test_wrong_attributes_are_named(attributes, message):
    with pytest.raises(ValueError, match=message):
        Resample(*attributes)


def test_the_batch_is_no_axis_of_it():
    with pytest.raises(ValueError, match="axis is 0; an input of 3 axes has 1 to 2"):
        Resample(0, 4).output(ArraySpec((2, 3, 4)))


def test_a_scale_is_that_of_the_extent():
    """An exported file has only one of the two, and made another extent."""
    with pytest.raises(ValueError, match=r"extent is 7, but scale 2\.0 makes 20 of 10 elements"):
        Resample(-1, 7, scale=2.0).output(ArraySpec((2, 3, 10)))
