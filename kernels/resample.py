"""resample: one axis of every sample at another extent, each element from its neighbours by their distance.

A product with a matrix of (extent, elements) that holds few numbers a row, and its gradient one with the same
transposed: BLAS is faster at it than NumPy at choosing and adding up neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from .device import array_module
from .kernel import Array, ArraySpec, Buffers, Cost, Kernel, Mode, Region, Split, need_floats, sample_axis
from .region import keep_whole, on_views

Ways = Literal["half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "align_corners", "asymmetric"]
WAYS = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "align_corners", "asymmetric")

SHARPNESS = -0.75
"""The a of Keys' cubic (1981) as PyTorch and ONNX have it."""


def places(
    elements: int, extent: int, way: str, scale: float, kind: type[np.floating[Any]] = np.float64
) -> NDArray[Any]:
    """Where among `elements` each of `extent` lies, by ONNX's names for ways to count, computed in `kind`."""
    at = np.arange(extent, dtype=kind)
    half: NDArray[Any] = (at + kind(0.5)) / kind(scale) - kind(0.5)
    match way:
        case "align_corners":
            return np.asarray(at * kind(elements - 1) / kind(max(extent - 1, 1)))
        case "asymmetric":
            return np.asarray(at / kind(scale))
        case "pytorch_half_pixel" if extent == 1:
            return np.zeros(1, kind)
        case "half_pixel_symmetric":
            return np.asarray(half + kind(elements / 2 * (1 - extent / (elements * scale))))
    return half


@lru_cache(maxsize=64)
def _matrix(elements: int, extent: int, mode: str, way: str, scale: float) -> NDArray[np.float64]:
    """What each of `extent` takes of each of `elements`; beyond an edge is the edge."""
    found = np.zeros((extent, elements))
    x = places(elements, extent, way, scale)
    below = np.floor(x).astype(int)
    t = x - below
    if mode == "linear":
        shares = {0: 1 - t, 1: t}
    else:
        a = SHARPNESS
        near = [(a + 2) * d**3 - (a + 3) * d**2 + 1 for d in (t, 1 - t)]
        far = [a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a for d in (1 + t, 2 - t)]
        shares = {-1: far[0], 0: near[0], 1: near[1], 2: far[1]}
    for step, share in shares.items():
        np.add.at(found, (np.arange(extent), np.clip(below + step, 0, elements - 1)), share)
    return found


@dataclass(frozen=True, slots=True)
class Resample(Kernel):
    """`axis` with `extent` elements, between two neighbours (linear) or four (cubic).

    `coordinates` is how places are counted (ONNX's names), `scale` how many times as many there are, 0 for
    just that.
    """

    name: ClassVar[str] = "resample"

    axis: int
    extent: int
    mode: Literal["linear", "cubic"] = "linear"
    coordinates: Ways = "half_pixel"
    scale: float = 0.0

    def __post_init__(self) -> None:
        if self.extent < 1 or self.scale < 0:
            raise ValueError(
                f"resample: extent is {self.extent} and scale {self.scale}; give an extent from 1 up, and a "
                "scale above 0, or 0 for that of the extents"
            )
        if self.mode not in ("linear", "cubic") or self.coordinates not in WAYS:
            raise ValueError(
                f"resample: mode is {self.mode!r}, coordinates {self.coordinates!r}; give linear or cubic, "
                f"and one of {', '.join(WAYS)}"
            )

    def _axis(self, rank: int) -> int:
        return sample_axis(self.name, self.axis, rank)

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        need_floats(self.name, x)
        axis = self._axis(len(x.shape))
        made = int(x.shape[axis] * np.float32(self.scale)) if self.scale else self.extent
        if made != self.extent:  # nor has ONNX both: an export had the scale's extent
            raise ValueError(
                f"resample: extent is {self.extent}, but scale {self.scale} makes {made} of {x.shape[axis]} "
                "elements; give that extent, or scale 0 for that of the extents"
            )
        return ArraySpec((*x.shape[:axis], self.extent, *x.shape[axis + 1 :]), x.dtype)

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        (x,) = inputs
        own = self._axis(len(x.shape))
        return tuple(Split(axis, n) for axis, n in enumerate(x.shape) if axis not in (0, own))

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        (x,) = inputs
        axis = self._axis(len(x.shape))
        return ((*region[: axis - 1], slice(0, x.shape[axis]), *region[axis:]),)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        keep_whole(self, region, b.output, self._axis(b.output.ndim))
        on_views(self, b, mode, region)

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,), y = inputs, self.output(*inputs)
        flops = 2.0 * y.size * x.shape[self._axis(len(x.shape))]
        return Cost(flops, flops, 0.0, float(x.nbytes + y.nbytes))

    def _shares(self, x: Array) -> Array:
        elements = x.shape[self._axis(x.ndim)]
        scale = self.scale or self.extent / elements
        found = _matrix(elements, self.extent, self.mode, self.coordinates, scale)
        return array_module(x).asarray(found, dtype=x.dtype)

    def forward(self, b: Buffers, mode: Mode) -> None:
        self._product(self._shares(b.inputs[0]), b.inputs[0], b.output)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            self._product(self._shares(dx).T, b.output_gradient, dx)

    def _product(self, shares: Array, x: Array, y: Array) -> None:
        """y = shares · x along the axis."""
        axis, xp = self._axis(x.ndim), array_module(x)
        if axis == x.ndim - 1:
            y[...] = xp.matmul(x, shares.T)
        else:
            y[...] = xp.moveaxis(xp.matmul(shares, xp.moveaxis(x, axis, -2)), -2, axis)
